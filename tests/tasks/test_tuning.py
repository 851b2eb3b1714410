"""Fine-tuning on traces: what a network is shown of a prompt is the prompt; the completion alone is paid for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from redraft.network.init import initialised
from redraft.network.padding import reading
from redraft.network.wrapped import Wrapped
from redraft.noise.counter_rng import Key
from redraft.tasks.gsm8k import written
from redraft.training.loader import as_batch
from redraft.training.setup import set_up
from redraft.types import Network, View
from tests.small_runs import tiny


@dataclass
class Watched(Wrapped):
    """A network that notes every token it is shown with its place."""

    network: Network
    shown: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def trunk(self, view: View) -> Tensor:
        self.shown.append((view.tokens, view.positions.expand_as(view.tokens)))
        return self.network.trunk(view)


@pytest.mark.parametrize("family", ["ar", "mdlm", "duo", "esolm"])
def test_noise_leaves_prompts_alone(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDRAFT_CACHE", str(tmp_path / "cache"))
    traces = tmp_path / "traces.txt"
    traces.write_text("".join(f"What is {a} + 1?||<<{a}+1={a + 1}>> #### {a + 1}\n" for a in range(60)))
    data: dict[str, Any] = {**written(traces, tmp_path / "data"), "length": 80, "eos": "fill"}
    setup = set_up(tiny(traces, family=family, data=data, train={"batch": 16}))
    rows = setup.reader.step(0)
    batch = as_batch(rows, slice(None), "cpu")
    watched = Watched(initialised(setup.budget.shape, 0, torch.float32))
    loss = setup.family.loss(reading(watched, batch), batch, key=Key.of(0), progress=0.0)
    assert torch.equal(loss.scored, batch.scored)
    assert not loss.nats[~batch.scored].any()
    prompts, shift = (~rows.scored).sum(1), int(family == "ar")  # left to right, BOS stands before the text
    seen = noised = 0
    for tokens, places in watched.shown:
        for row, prompt in enumerate(prompts.tolist()):
            where = places[row].numpy() - shift
            given = (where >= 0) & (where < prompt)
            assert np.array_equal(tokens[row].numpy()[given], rows.tokens[row][where[given]])
            seen += int(given.sum())
            rest = where >= prompt
            noised += int((tokens[row].numpy()[rest] != rows.tokens[row][where[rest]]).sum())
    assert seen == prompts.sum()
    assert (noised > 0) == (family != "ar")
