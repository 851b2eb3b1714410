"""Tests of the report share their fits: what a study's runs give is worked out once, whichever page or file asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from redraft.report import report
from redraft.scaling.fit import fit
from redraft.scaling.records import Point
from redraft.scaling.results import Fits


@pytest.fixture(scope="session", autouse=True)
def _fits_are_shared() -> Iterator[None]:
    known: dict[tuple[str, int, bool], Fits] = {}

    def remembered(points: Sequence[Point], *, resamples: int, checks: bool) -> Fits:
        key = repr(points), resamples, checks
        if key not in known:
            known[key] = fit(points, resamples=resamples, checks=checks)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "fit", remembered)
        yield
