"""How a GGUF file scales rotary angles, in the words of `transformers`.

linear   `rope.scaling.factor` with the type "linear" or none, and the older `rope.scale_linear`
yarn     `rope.scaling.*`, with `yarn_beta_fast` and `yarn_beta_slow`
llama3   no key: the tensor rope_freqs.weight [D/2] holds by what each frequency is divided

What llama.cpp does with any other key is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from redraft.errors import UserError
from redraft.hub.lazy_tensor import LazyTensor
from redraft.network.rope import divisors
from redraft.network.sizes import Scaling

DIVISORS = "rope_freqs.weight"
ORIGINALS = [2**k for k in range(4, 24)]  # 2^13 is Llama 3's
WIDEST = 1 << 12  # of a head
# The only values of further keys under which the angles are ours: -1 and 0 are llama.cpp's words for "left out".
NEUTRAL = {
    "attn_factor": (1.0,), "yarn_attn_factor": (1.0, -1.0), "yarn_ext_factor": (1.0, -1.0), "alpha": (0.0,),
    "yarn_log_multiplier": (0.0,),
}  # fmt: skip


def scaling_of(path: Path, of: Callable[[str], Any], table: LazyTensor | None, head: Any, theta: Any) -> dict[str, Any]:
    """Part of `rope_parameters`; `of`: the architecture's keys. `table`: DIVISORS. `UserError` for what is not known."""
    for key, good in NEUTRAL.items():
        if (said := of(f"rope.scaling.{key}")) is not None and said not in good:
            raise UserError(f"{path} scales rotary angles with {key} {str(said)[:40]}, which is not known here")
    found = _by_keys(of)
    if table is None:
        return found
    if found:
        raise UserError(f"{path} scales rotary angles twice, by {found['rope_type']!r} and by {DIVISORS}")
    return _by_table(path, table, head, theta if isinstance(theta, float) else 10000.0)


def _by_keys(of: Callable[[str], Any]) -> dict[str, Any]:
    """llama.cpp takes a factor without a type for "linear"."""
    factor = of("rope.scaling.factor")
    factor = of("rope.scale_linear") if factor is None else factor
    kind = of("rope.scaling.type") or ("linear" if factor not in (None, 0, 1) else "none")
    if kind == "none":
        return {}
    names = {
        "original_max_position_embeddings": "original_context_length", "beta_fast": "yarn_beta_fast",
        "beta_slow": "yarn_beta_slow",
    }  # fmt: skip
    return {"rope_type": kind, "factor": factor, **{ours: of(f"rope.scaling.{key}") for ours, key in names.items()}}


def _by_table(path: Path, table: LazyTensor, head: Any, theta: float) -> dict[str, Any]:
    """The scaling "llama3" that divides by the table, as `low` 1 and `high` 4 are those of every Llama 3."""
    if type(head) is not int or not 0 < head <= WIDEST or head % 2 or table.shape != (head // 2,):
        raise UserError(f"{path} has {list(table.shape)} numbers in {DIVISORS}, which heads of width {head} do not fit")
    said = table.whole().double()
    if torch.equal(said, torch.ones_like(said)):
        return {}
    if not bool(((said >= 1) & said.isfinite()).all()) or theta <= 0:
        raise UserError(f"{path} has numbers in {DIVISORS} that divide no frequency")
    factor = float(f"{float(said.max()):.6g}")
    for original in ORIGINALS:
        if torch.allclose(divisors(head, theta, Scaling("llama3", factor, original)), said, rtol=1e-4, atol=0):
            return {
                "rope_type": "llama3", "factor": factor, "original_max_position_embeddings": original,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            }  # fmt: skip
    raise UserError(
        f"{path} scales rotary angles by a table of its own ({DIVISORS}) that is not Llama 3's, which is not known here: "
        f"convert the folder of transformers that it was made of"
    )
