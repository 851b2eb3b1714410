"""Which tokens of a frame are final: what a server may send before the text is finished."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from redraft.noise.counter_rng import Key
from redraft.registry import SAMPLERS
from redraft.sampling.base import Denoiser, build, final
from redraft.types import Canvas
from tests.laws.cases import Case, fitting
from tests.world import L

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "psi": [{"kappa": 1.0}, {"kappa": 0.5}, {"kappa": "cap", "eta": 0.3, "profile": "loop"}],
    "semi_autoregressive": [{"block": 2}, {"block": 2, "inner": "psi"}],
    "low_confidence": [{"order": order} for order in ("top_probability", "margin", "entropy")],
    "ordered": [{"order": "block", "steps": 2}, {"order": "block_autoregressive", "steps": 2, "super_blocks": 2}],
    "bd3lm": [{"steps": 0}],
}


def cases() -> list[tuple[Case, str, dict[str, Any]]]:
    """Every registered sampler, in several settings, with every family that it fits."""
    return [(case, name, more) for case, name in fitting() for more in [{}, *VARIANTS.get(name, [])]]


@pytest.mark.parametrize(("case", "name", "more"), cases())
def test_a_final_token_never_changes(case: Case, name: str, more: dict[str, Any]) -> None:
    steps = {"steps": 6} if "steps" in SAMPLERS[name].options else {}
    sampler = build(name, {**steps, **more}, case.family)
    fixed = torch.arange(L).expand(64, L) < 1
    frames = list(
        sampler(Denoiser(case.oracle, case.family), Canvas(torch.zeros(64, L, dtype=torch.int64), fixed), Key.of(5))
    )
    finished = frames[-1].tokens
    sure = [final(sampler, case.family, frame) for frame in frames]
    for frame, known in zip(frames, sure, strict=True):
        assert torch.equal(frame.tokens[known], finished[known])
    for before, after in zip(sure, sure[1:], strict=False):
        assert bool((after | ~before).all())
    once = case.family.settles and not sampler.rewrites
    assert bool(sure[-1].all()) == once, "what is written once is all final in the end; else the sampler's end says so"
