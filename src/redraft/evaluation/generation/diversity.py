"""Diversity of generated token ids [n, L]: distinct n-grams, repetition, unigram entropy. No evaluator model is needed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

ORDERS = (1, 2, 3, 4)  # of n-grams


def unigram_entropy(row: Tensor) -> Tensor:
    """Entropy of a row's own token frequencies, nats."""
    p = row.unique(return_counts=True)[1].double() / len(row)
    return -(p * p.log()).sum()


def distinct(tokens: Tensor, n: int) -> float:
    """distinct-n: the share of different n-grams among all n-grams of all rows (Li et al. 2016, arXiv:1510.03055).

    It falls with the number and the length of rows, so it compares sets of one size only.
    """
    grams = tokens.unfold(1, n, 1).flatten(0, 1)
    return len(grams.unique(dim=0)) / len(grams)


def repetition(tokens: Tensor, n: int) -> float:
    """rep-n: the share of a row's n-grams that stood earlier in the row, mean over rows (arXiv:1908.04319)."""
    return sum(1 - distinct(row[None], n) for row in tokens) / len(tokens)


def ngrams(tokens: Tensor) -> dict[str, Any]:
    """distinct-1 to -4 and rep-2 to -4 of rows [n, L]; not a number where rows are shorter."""
    kinds = [("distinct", distinct, n) for n in ORDERS] + [("repetition", repetition, n) for n in ORDERS[1:]]
    return {f"{name}_{n}": of(tokens, n) if tokens.shape[1] >= n else float("nan") for name, of, n in kinds}
