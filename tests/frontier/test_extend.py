"""Where a sweep of temperatures goes on: planted curves are bracketed in a few steps, or it is said why not."""

from __future__ import annotations

import math

import pytest

from redraft.frontier.extend import HOTTEST, TRIES, bracketed, next_temperature, why_not

CURVES = {
    "straight": lambda t: 1 + 1.5 * t,
    "saturating": lambda t: 4.8 * math.tanh(t) + 0.3,
    "flat when cold": lambda t: 2.0 + max(0.0, t - 0.5) ** 2,
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("level", [2.05, 2.3, 2.7, 3.1])
@pytest.mark.parametrize("start", [(0.8, 0.9, 1.0), (0.3, 0.4), (1.4,)])
def test_a_curve_that_has_the_entropy_is_bracketed(name: str, level: float, start: tuple[float, ...]) -> None:
    curve = {t: CURVES[name](t) for t in start}
    for _ in range(TRIES):
        following = next_temperature(curve, level)
        if following is None:
            break
        assert following not in curve and 0 <= following <= HOTTEST
        curve[following] = CURVES[name](following)
    assert bracketed(curve, level)


def test_nothing_is_colder_than_greedy_and_nothing_hotter_is_text() -> None:
    assert next_temperature({0.0: 2.36, 0.8: 2.5}, 2.34) is None
    assert next_temperature({1.0: 1.0, HOTTEST: 1.1}, 2.34) is None
    assert next_temperature({}, 1.0) is None
    assert why_not(0.0, 1.0, True, 3) == "greedy reached, nothing is colder"
    assert why_not(0.8, 1.0, True, 3) == "sweep colder" and why_not(0.8, 1.0, False, 3) == "sweep hotter"
    assert why_not(0.8, HOTTEST, False, 3).startswith("temperature 4 reached")
    assert why_not(1.0, 1.0, True, 1).startswith("one setting is no curve")


def test_a_curve_that_does_not_move_ends_at_greedy() -> None:
    curve, tried = {0.8: 2.5, 1.0: 2.5}, []
    while (following := next_temperature(curve, 2.0)) is not None:
        curve[following] = 2.5
        tried.append(following)
    assert tried[-1] == 0.0 and len(tried) <= TRIES
