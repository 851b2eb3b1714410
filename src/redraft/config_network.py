"""The network's table of the configuration, and the class of all tables. `redraft/config.py` has the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from redraft.numbers import WIDEST, Amount, Count, Positive
from redraft.registry import with_new_names


class Part(BaseModel):
    """A table of the configuration. `renamed`: keys of earlier versions, which still load, and what they are called now."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)
    renamed: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _called_now(cls, value: Any) -> Any:
        return with_new_names(value, cls.renamed) if isinstance(value, Mapping) else value


class ScalingConfig(Part):
    """Rotary frequencies scaled for longer rows."""

    kind: Literal["linear", "llama3", "yarn"]
    factor: Positive
    original: int = Field(0, ge=0, le=WIDEST, description="of llama3 and yarn: tokens in a row before")
    low: Positive = Field(1.0, description="of llama3: waves within them below which a frequency is divided")
    high: Positive = Field(4.0, description="of llama3: and above which it stays")
    fast: Positive = Field(32.0, description="of yarn: turns within them above which a frequency stays")
    slow: Positive = Field(1.0, description="of yarn: and below which it is divided")
    attention: float = Field(0.0, ge=0, le=1e6, description="of yarn: gain of cos and sin; 0 derives it from factor")


class NetworkConfig(Part):
    """The transformer: a size by name or number, or depth, heads and width."""

    renamed: ClassVar[Mapping[str, str]] = {"hidden": "mlp_width"}

    block: Literal["dit", "llama", "gpt2"] = "dit"
    size: str | None = Field(
        None,
        description="a name of SMDM's ladder, or a number (200k, 3M) of weights in the matrices of the blocks: head, "
        "embedding and modulation come on top, and `redraft plan` counts them; 3M if left out",
    )
    depth: Count | None = None
    heads: Count | None = None
    width: Count | None = None
    mlp_width: Count | None = Field(None, description="inner width of the MLP; 4 x width if left out")
    cond: int = Field(128, ge=0, le=WIDEST, description="width of the time conditioning of dit; 0 leaves adaLN out")
    theta: Amount = Field(10000.0, description="base of the rotary angles")
    scaling: ScalingConfig | None = Field(None, description="of the rotary angles, for longer rows")
    kv_heads: int = Field(0, ge=0, le=WIDEST, description="heads of keys and values, which heads share; 0: as many")
    head_dim: int = Field(0, ge=0, le=WIDEST, description="width of a head; 0: width / heads")
    qkv_bias: bool = Field(False, description="of llama: biases on queries, keys and values (Qwen2)")
    qk_norm: bool = Field(False, description="of llama: norms on queries and keys (Qwen3)")
    tied: bool = Field(False, description="of llama and gpt2: the head is the embedding")
    eps: float = Field(1e-5, gt=0, le=1, description="of llama and gpt2: what norms add to the mean square")
    context: int = Field(0, ge=0, le=WIDEST, description="of gpt2: rows of the table of positions; 0: 1024")
    clock: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="of converted GIDD: the conditioning reads its time, at this share of uniform noise",
    )
