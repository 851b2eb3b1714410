"""Intervals of shares and means."""

from __future__ import annotations

import math

import pytest
from scipy.stats import binomtest

from redraft.tasks.intervals import of_mean, wilson


@pytest.mark.parametrize(("right", "n"), [(0, 40), (40, 40), (13, 40), (1, 3)])
def test_shares_have_wilsons_interval(right: int, n: int) -> None:
    theirs = binomtest(right, n).proportion_ci(method="wilson")
    ours = wilson(right, n)
    assert ours.value == right / n
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_a_mean_has_students_interval() -> None:
    """Of 1, 2, 3: s = 1, and t with two degrees of freedom is 4.3027 at 97.5 %."""
    found = of_mean([1.0, 2.0, 3.0])
    assert (found.value, found.high) == pytest.approx((2.0, 2 + 4.30265 / math.sqrt(3)), abs=1e-4)


def test_one_value_says_nothing_of_its_spread() -> None:
    assert of_mean([1.0]).low == -math.inf
