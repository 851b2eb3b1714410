"""Figures and numbers as files, and several studies on one page."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from redraft.errors import UserError
from redraft.report.comparison import write_comparison
from redraft.report.exports import save_figures, save_numbers
from redraft.scaling.records import load_points
from tests.frontier.planted_speeds import matched_quality


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_figure_is_a_file_of_each_format(study: Path, tmp_path: Path) -> None:
    paths = save_figures(study, tmp_path / "new", ("svg", "pdf"))
    assert len(paths) == len(set(paths)) == 2 * 10
    assert all(p.read_bytes()[:4] == (b"<svg" if p.suffix == ".svg" else b"%PDF") for p in paths)
    assert not [p for p in paths if p.suffix == ".svg" and "NaN" in p.read_text(encoding="utf-8")]
    with pytest.raises(UserError, match="'gif': choose from svg, pdf, png"):
        save_figures(study, tmp_path, ("gif",))


def test_numbers_are_those_of_the_study(study: Path, tmp_path: Path) -> None:
    tables = {p.stem: table(p) for p in save_numbers(study, tmp_path)}
    assert set(tables) >= {"runs", "minima", "laws", "residuals", "multipliers", "pairs", "frontier", "text", "matched"}
    assert {(r["name"], float(r["loss"])) for r in tables["runs"]} == {(p.name, p.loss) for p in load_points(study)}
    for row in tables["matched"]:
        assert float(row["quality"]) == pytest.approx(matched_quality(row["family"], int(row["steps"])))
        assert float(row["quality_low"]) < float(row["quality"]) < float(row["quality_high"])
    for row in tables["multipliers"]:
        assert (
            float(row["multiplier_low"])
            < float(row["flops"]) / float(row["reference_flops"])
            < float(row["multiplier_high"])
        )


def test_a_comparison_says_what_keeps_studies_from_being_compared(study: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(study, other)
    for path in other.glob("runs/*/record.json"):
        record = json.loads(path.read_text())
        record["data"]["sha256"] = "ff" * 32
        path.write_text(json.dumps(record))
    page = write_comparison([study, other], tmp_path / "deep" / "both.html").read_text(encoding="utf-8")
    assert "differ in their training data" in page and "tokenizer (" not in page
    assert "judged by different" not in page
    assert page.count("<svg") == 4 + 4 + 3 + 4  # loss, size, multiplier, matched: a panel a family
    assert "other: Duo at" in page and 'id="matches"' in page


def test_a_comparison_needs_two_studies(study: Path, tmp_path: Path) -> None:
    for folders in ([study], [study, study]):
        with pytest.raises(UserError, match="two or more different"):
            write_comparison(folders, tmp_path / "x.html")
