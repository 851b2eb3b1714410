"""What the data of a small study cannot tell is not told: no exponent of two runs, no figure of nothing."""

from __future__ import annotations

import re

import pytest

from redraft.report.conclusions import conclude
from redraft.report.figures import figures
from redraft.report.theme import Figure, panel, points, quantity_axis, x_axis, y_axis
from redraft.scaling.fit import fit
from redraft.scaling.records import Point
from redraft.scaling.results import Fits
from redraft.scaling.summary import summary

LOSS = {"ar": 3.2, "mdlm": 3.5}


def grid(budgets: int, sizes: int, best: int = 0) -> list[Point]:
    """Runs of two families whose best size is the `best`-th at every budget."""
    return [
        Point(
            family=family, params=2e5 * 2**n, tokens=1e12 * 4**b / (6 * 2e5 * 2**n), flops=1e12 * 4**b, budget=1e12 * 4**b,
            loss=base * 0.9**b + 0.05 * (n - best) ** 2, name=f"{family}-{n}-{b}", convention="6ND",
        )
        for family, base in LOSS.items() for b in range(budgets) for n in range(sizes)
    ]  # fmt: skip


def told(runs: list[Point]) -> tuple[Fits, str]:
    fits = fit(runs, resamples=40)
    return fits, "\n".join([*summary(fits), *conclude(fits)])


def test_two_lowest_runs_are_no_law() -> None:
    fits, words = told(grid(2, 2))
    assert all(f.laws.loss is f.laws.params is f.multiplier is None for f in fits.families.values())
    assert "C^" not in words and "Times the compute" not in words
    assert "so nothing is fitted" in words
    assert "Lowest losses at 4 TFLOPs, nats/token (by chance, perhaps: add seeds): AR 2.88; MDLM 3.15." in words
    assert figures(grid(2, 2), fits) == []


@pytest.mark.parametrize(("sizes", "best"), [(2, 0), (3, -1)])
def test_a_best_size_that_is_the_grid_s_has_no_exponent(sizes: int, best: int) -> None:
    """Three budgets with the lowest run always the smallest: of parabolas too, which then have no vertex."""
    fits, words = told(grid(3, sizes, best))
    for family in fits.families.values():
        assert family.laws.loss and family.laws.params is None and family.laws.tokens is None
    assert "N* ~" not in words and "C^a" not in words and "loss ~ C^" in words
    assert "How the best size of AR, MDLM grows with compute, these runs do not tell" in words
    drawn = {figure.name: figure for figure in figures(grid(3, sizes, best), fits)}
    assert len(drawn["laws"].panels) == 1 and "best size" not in drawn["laws"].title


def test_a_best_size_within_the_grid_has_one() -> None:
    fits, words = told(grid(3, 5, best=2))
    assert all(f.laws.params for f in fits.families.values()) and "N* ~ C^" in words


@pytest.mark.parametrize("shape", [(2, 2), (3, 2), (2, 3), (3, 3), (3, 5)], ids=str)
def test_captions_are_of_what_is_drawn(shape: tuple[int, int]) -> None:
    runs = grid(*shape, best=min(1, shape[1] - 1))
    fits, _ = told(runs)
    for figure in figures(runs, fits):
        assert figure.panels
        if figure.name == "isoflop":
            assert ("parabola" in figure.caption) == (shape[1] > 2)
        if figure.name == "residuals":
            assert ("(right)" in figure.caption) == (len(figure.panels) == 2)


def test_losses_without_an_error_settle_no_order() -> None:
    _, words = told(grid(3, 2))
    assert ("the order is not settled" in words) or "(" in words.split("lowest loss, ")[1].split("nats")[0]


@pytest.mark.parametrize(
    "y", [y_axis("loss"), y_axis("loss", type="log"), quantity_axis("loss"), quantity_axis("parameters")]
)
def test_labels_of_an_axis_are_short(y: object) -> None:
    """Of a single value, whose axis spans nothing, too."""
    for value in (6.47253327328, 0.123456789, 1234567.891):
        rows = [{"x": value, "y": value, "d": "one"}]
        figure = Figure("one", "one", "one", (panel(points(rows, x_axis("tokens/s"), y)),))
        labels = [text for text in re.findall(r">([^<>]+)</text>", figure.svg()) if re.match(r"[-\d]", text)]
        assert labels and all(len(label) <= 9 for label in labels), labels
