"""Best sizes over the reference's: the planted ratio comes back, and its interval is made of both."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from redraft.scaling.fit import fit
from redraft.scaling.laws.isoflop import NOT_BRACKETED, Minimum
from redraft.scaling.laws.multiplier import Estimate
from redraft.scaling.laws.size_ratios import SizeRatio, size_ratios
from redraft.scaling.results import FamilyFit, Fits
from redraft.scaling.summary import size_sentence
from tests.planted import planted_points


@pytest.fixture(scope="module")
def fits() -> Fits:
    return fit(planted_points(families=("ar", "mdlm")), resamples=40, checks=False)


def ratios(fits: Fits) -> list[SizeRatio]:
    return size_ratios({name: family.laws.minima for name, family in fits.families.items()}, fits.reference)


def with_sizes(fits: Fits, sizes: dict[str, list[Estimate]], flags: tuple[str, ...] = ()) -> Fits:
    """The same fits with these best sizes, one a budget."""

    def changed(family: FamilyFit, own: list[Estimate]) -> FamilyFit:
        minima = tuple(
            Minimum(1e10 * 10**i, 1e10, size, size, Estimate(2.0), None, 4, flags if i else ())
            for i, size in enumerate(own)
        )
        return replace(family, isoflop=replace(fits.families["ar"].isoflop, minima=minima))

    return replace(fits, families={name: changed(fits.families[name], own) for name, own in sizes.items()})


def test_the_interval_is_that_of_independent_errors(fits: Fits) -> None:
    """Errors of a and b in ln N make sqrt(a^2 + b^2), and of the mean of two budgets 1 / sqrt(2) of that."""
    around = lambda value, error: Estimate(value, value * math.exp(-error), value * math.exp(error))
    for count in (1, 2):
        changed = with_sizes(fits, {"ar": [around(4e4, 0.3)] * count, "mdlm": [around(2e4, 0.4)] * count})
        (one,) = ratios(changed)
        half = 0.5 / math.sqrt(count)
        assert (one.family, len(one.budgets)) == ("mdlm", count)
        ends = [one.ratio.value, one.ratio.low, one.ratio.high]
        assert ends == pytest.approx([0.5, 0.5 * math.exp(-half), 0.5 * math.exp(half)])
        assert one.detectable is None


def test_the_way_down_is_the_familys_down_and_the_references_up(fits: Fits) -> None:
    (one,) = ratios(with_sizes(fits, {"ar": [Estimate(4e4, 4e4, 8e4)], "mdlm": [Estimate(4e4, 4e4, 6e4)]}))
    assert [one.ratio.value, one.ratio.low, one.ratio.high] == pytest.approx([1.0, 0.5, 1.5])
    assert one.detectable is not None and one.detectable > 1


def test_a_best_size_at_the_end_of_the_sizes_is_no_evidence(fits: Fits) -> None:
    sizes = {"ar": [Estimate(4e4, 3e4, 5e4)] * 3, "mdlm": [Estimate(2e4, 1e4, 3e4)] * 3}
    assert len(ratios(with_sizes(fits, sizes))[0].budgets) == 3
    assert len(ratios(with_sizes(fits, sizes, (NOT_BRACKETED,)))[0].budgets) == 1


def test_the_sentence_names_budgets_and_what_could_have_been_seen(fits: Fits) -> None:
    told = size_sentence(with_sizes(fits, {"ar": [Estimate(4e4, 2e4, 8e4)] * 2, "mdlm": [Estimate(3e4, 2e4, 6e4)] * 2}))
    assert told.startswith("Best size over that of AR where both lie between sizes: MDLM 0.750 (0.425 to 1.50)")
    assert "at 10 GFLOPs to 100 GFLOPs, not told apart: " in told and told.endswith("times could have been seen.")
    assert size_sentence(with_sizes(fits, {"ar": [Estimate(4e4, 2e4, 8e4)]})) == ""
