"""MAUVE (Pillutla et al. 2021, arXiv:2102.01454), where the package `mauve-text` is installed.

The judge's last hidden states stand for the texts, so values compare within one judge, length and number of samples only: they
are not those of papers, which use GPT-2 large. Below a few thousand samples the measure is noisy: read it with its sd.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from dataclasses import dataclass

import numpy as np
from torch import Tensor

SEEDS = 3  # of the k-means that quantises the features


@dataclass(frozen=True)
class Mauve:
    """In (0, 1], higher is nearer to real text; mean and standard deviation over seeds of the quantisation."""

    value: float
    sd: float


def installed() -> bool:
    return importlib.util.find_spec("mauve") is not None


def mauve(real: Tensor, made: Tensor) -> Mauve:
    """Between the features [n, d] of held-out text and of samples; the first n of each that both have."""
    from mauve import compute_mauve

    n = min(len(real), len(made))
    features = {"p_features": real[:n].numpy(), "q_features": made[:n].numpy()}
    with contextlib.redirect_stdout(io.StringIO()):
        values = [compute_mauve(**features, seed=seed, verbose=False).mauve for seed in range(SEEDS)]
    return Mauve(float(np.mean(values)), float(np.std(values, ddof=1)))
