"""Entropy, distinct-n and rep-n by hand."""

from __future__ import annotations

import math

import pytest
import torch

from redraft.evaluation.generation.diversity import distinct, repetition, unigram_entropy


def test_entropy_by_hand() -> None:
    expected = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert float(unigram_entropy(torch.tensor([0, 0, 1, 2]))) == pytest.approx(expected)


def test_distinct_counts_over_all_rows() -> None:
    rows = torch.tensor([[0, 1, 0, 1], [0, 1, 2, 2]])
    assert distinct(rows, 1) == pytest.approx(3 / 8)
    assert distinct(rows, 2) == pytest.approx(4 / 6)
    assert distinct(rows, 4) == 1


def test_repetition_counts_within_a_row() -> None:
    """The first row has 01 10 01: one of three stood before. The second has none."""
    assert repetition(torch.tensor([[0, 1, 0, 1], [0, 1, 2, 2]]), 2) == pytest.approx((1 / 3 + 0) / 2)
    assert repetition(torch.tensor([[5, 5, 5, 5, 5]]), 2) == pytest.approx(3 / 4)
