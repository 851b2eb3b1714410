"""What the network of each registered family should predict on the enumerable world, and options that must obey the laws too.

A family of one's own adds its entry here before the tests are collected: examples/my_family_laws.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.world import Exact, Hybrid, LeaveOneOut, Moving, Oracle, Score

# Options beyond the defaults under which a family must obey the laws too.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "mdlm": [{}, {"objective": "nelbo"}, {"schedule": "cosine"}, {"grid": 16}],
    "duo": [{}, {"schedule": "linear"}],
    "esolm": [{"alpha_0": a, "variant": v} for v in "BA" for a in (0.0, 0.3, 1.0)],
    "bd3lm": [{"block": b} for b in (1, 2, 3)],
    "sedd": [{}, {"schedule": "cosine"}],
    "d3pm": [{}, {"grid": 16, "schedule": "cosine"}],
    "gidd": [{}, {"uniform": 0.0}, {"uniform": 0.2, "weights": "nelbo"}],
    "xdlm": [{}, {"uniform": 0.0}, {"uniform": 1.0}, {"uniform": 0.4, "schedule": "cosine"}],
}
ORACLES: dict[str, Callable[[Any], Oracle]] = {
    "ar": lambda family: Exact(shift=1),
    "mdlm": lambda family: Exact(),
    "duo": lambda family: LeaveOneOut(),
    "esolm": lambda family: Exact(),
    "bd3lm": lambda family: Exact(),
    "sedd": lambda family: Score(),
    "d3pm": lambda family: Exact(),
    "gidd": lambda family: Moving(family.schedule),
    "xdlm": lambda family: Hybrid(family.law(torch.ones((), dtype=torch.float64))),
}
