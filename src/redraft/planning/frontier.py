"""The `[frontier]` table of a study: samplers, steps, and the evaluator model.

[frontier]
samples = 512
length = 128
steps = [4, 16, 64]
temperatures = [0.8, 0.9, 1.0, 1.1]  # goes on, colder or hotter, where a curve does not reach the common entropy
judge = "models/gpt2-large"          # or a table: an arm of the study, an AR model of its own that is not compared
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from redraft.config_network import Part
from redraft.numbers import WIDEST, Amount, Count

Share = Annotated[float, Field(gt=0, le=1)]
Temperature = Annotated[float, Field(ge=0, le=1e6)]


class FrontierConfig(Part):
    """Every family samples at every combination of steps, temperature and top-p; every batch is timed."""

    judge: dict[str, Any] | str = Field(
        description="an arm to train (a table), or a model: folder, .gguf, .bin, hub name"
    )
    source: str | None = Field(None, description="the model that the training text was drawn from: a second judge")
    download: bool = Field(False, description="a judge given by its hub name may be fetched")
    runs: list[str] = Field(default_factory=list, description="names of runs; each family's best if left out")
    samples: int = Field(32, gt=1, le=WIDEST, description="rows that are scored")
    length: int = Field(128, gt=3, le=WIDEST, description="tokens of a row")
    steps: list[Count] = Field([4, 16, 64], min_length=1, description="sampling steps, of families that have a choice")
    temperatures: list[Temperature] = Field([1.0], min_length=1, description="of sampling")
    top_p: list[Share] = Field([1.0], min_length=1, description="of sampling")
    batches: list[Count] = Field(default_factory=list, description="rows at a time; all samples at once if left out")
    repeats: Count = Field(1, description="timed batches, at least; p50 and p95 of latency need twenty or so")
    extend: bool = Field(
        True,
        description="a sweep of temperatures that misses the entropy goes on until it has it, or greedy is reached",
    )
    entropy: Amount | None = Field(None, description="nats at which families are compared; held-out text's if left out")
    keep: Count = Field(4, description="texts kept of every setting")
