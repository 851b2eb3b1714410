"""Learning-rate and batch presets: published rules for a model size N and a number of tokens D. No torch.

The coefficients of step-law were read in a secondary source, those of power-lines are to be checked against the paper.
All were found on AR models. For diffusion the batch that is best grows much faster, about D^0.82 (von Ruette et al. 2025,
arXiv:2512.10858): `redraft study tune` asks the families themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redraft.config import RunConfig
from redraft.errors import UserError, unknown
from redraft.planning.budget import Budget


@dataclass(frozen=True)
class Preset:
    """`rule` gives settings of `train` for N (parameters of the blocks), D (tokens), and tokens a row, at a learning rate."""

    summary: str
    rule: Callable[[float, float, int, float], dict[str, Any]]


def preset_table(name: str, budget: Budget, config: RunConfig) -> dict[str, Any]:
    """The settings of `train` that a preset gives a run. `UserError` for a name that is not known."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    if name == "completep" and config.train.completep is None:
        raise UserError(
            "preset completep needs to know the network that lr was chosen on: train.completep.width and .depth"
        )
    counts = budget.parameters
    params = sum(counts.values()) - counts["embedding"] - counts["head"]
    return PRESETS[name].rule(params, budget.tokens, config.data.length, config.train.lr)


def _papers(params: float, tokens: float, length: int, lr: float) -> dict[str, Any]:
    steps = tokens / (256 * length)
    return {
        "lr": 2e-4, "min_lr": 0.1, "schedule": "cosine", "batch": 256, "warmup": float(max(100, round(0.01 * steps))),
        "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1, "clip": 1.0,
    }  # fmt: skip


def _step_law(params: float, tokens: float, length: int, lr: float) -> dict[str, Any]:
    best = 1.79 * params**-0.713 * tokens**0.307
    return {"lr": best, "min_lr": min(1.0, 1e-5 / best), "batch": _rows(0.58 * tokens**0.571, length)}


def _power_lines(params: float, tokens: float, length: int, lr: float) -> dict[str, Any]:
    rows = _rows(2048 * 0.0306 * tokens**0.383, length)
    timescale = 1.084 * (tokens / params) ** -0.527  # B / (lr x decay x D): how far back the weights' average reaches
    return {"batch": rows, "weight_decay": rows * length / (lr * timescale * tokens)}


def _rows(tokens: float, length: int) -> int:
    return max(1, round(tokens / length))


PRESETS: dict[str, Preset] = {
    "papers": Preset(
        "lr 2e-4 to 2e-5 by cosine, 256 rows, 1 % warmup (100 steps at least), whatever the size; "
        "arXiv:2602.15014 and arXiv:2410.18514",
        _papers,
    ),
    "step-law": Preset(
        "lr 1.79 N^-0.713 D^0.307 to 1e-5, batch of 0.58 D^0.571 tokens; Li et al. 2025, arXiv:2503.04715", _step_law
    ),
    "power-lines": Preset(
        "batch of 0.0306 D^0.383 rows of 2048, weight decay from the timescale 1.084 (D/N)^-0.527, your lr; "
        "Bergsma et al. 2025, arXiv:2505.13738",
        _power_lines,
    ),
    "completep": Preset(
        "your lr and batch, carried from the network of train.completep to wider and deeper ones (training/completep.py); "
        "Dey et al. 2025, arXiv:2505.01618",
        lambda params, tokens, length, lr: {},
    ),
}
