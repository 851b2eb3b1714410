"""The demo: a page as soon as each family has a run, and the same command goes on."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from redraft.commands.demo import Pages, _table
from redraft.commands.plan import recipe_table
from redraft.config import dump_toml, read_toml
from redraft.planning import pace
from redraft.planning.study import plan_study
from redraft.report.report import write_report
from redraft.studies.execute import Status
from tests.planted import write_study


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What pages were written."""
    pages: list[str] = []

    def write(folder: Path, *, underway: str) -> Path:
        pages.append(underway)
        return folder / "report.html"

    monkeypatch.setattr("redraft.report.report.write_report", write)
    return pages


def test_a_page_is_there_once_each_family_has_a_run(written: list[str], tmp_path: Path) -> None:
    runs = plan_study(recipe_table("demo")).runs
    pages, done = Pages(tmp_path, quiet=True), set[str]()
    for run in runs:
        done.add(run.name)
        pages([Status(other, "done" if other.name in done else "waiting") for other in runs])
        families = {one.arm for one in runs if one.name in done} - {"judge"}
        assert bool(written) == (len(families) == 4)
    assert len(done) == len(runs) and written[0].endswith(f"of {len(runs)} runs are done.")


def test_pages_take_a_small_part_of_the_time(
    written: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 0.0, 6.0, 6.0, 10.0, 50.0, 50.0, 50.0, 50.0])
    monkeypatch.setattr("redraft.commands.demo.time.monotonic", lambda: next(now))
    runs, pages = plan_study(recipe_table("demo")).runs, Pages(tmp_path, quiet=True)
    for count in (40, 44, 48):
        pages([Status(run, "done" if i < count else "waiting") for i, run in enumerate(runs)])
    assert len(written) == 2  # at 0 (it took 6 seconds) and at 50, not at 10


def test_a_study_under_way_reloads_its_page_and_a_finished_one_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    write_study(folder)
    page = write_report(folder, underway="3 of 9 runs are done.").read_text(encoding="utf-8")
    assert '<meta http-equiv="refresh"' in page and "3 of 9 runs are done. This page reloads itself." in page
    page = write_report(folder).read_text(encoding="utf-8")
    assert "refresh" not in page and "reloads" not in page


def test_a_demo_that_was_begun_goes_on_with_the_budgets_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "slowness", lambda: 1.0)
    monkeypatch.setattr(pace, "_timed", lambda part: 1e-5)
    asked = Namespace(into=tmp_path, recipe=None, minutes=6.0, json=True)
    config = plan_study(_table(asked)).config
    (tmp_path / "study.toml").write_text(dump_toml(config), encoding="utf-8")
    monkeypatch.setattr(pace, "_timed", lambda part: 1e-3)
    assert plan_study(_table(asked)).config == config and read_toml(tmp_path / "study.toml")
