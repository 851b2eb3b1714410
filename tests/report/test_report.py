"""Summaries, figures and the report: strict, self-contained, safe, and cheap to import."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from redraft.display import duration
from redraft.errors import UserError
from redraft.frontier.matched_entropy import match
from redraft.frontier.pareto import load_frontier
from redraft.report import report
from redraft.report.figures import figures
from redraft.report.page import script_hash
from redraft.report.report import conclusions, visible, write_report
from redraft.scaling.fit import fit
from redraft.scaling.laws.multiplier import Estimate
from redraft.scaling.records import load_points, read_records
from redraft.scaling.results import Fits, label, span
from redraft.scaling.schema import to_json
from redraft.scaling.summary import multiplier_sentence, pair_sentence, summary
from tests.planted import HOSTILE, planted_points, write_study


@pytest.fixture(scope="module")
def page(study: Path) -> str:
    return write_report(study).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def fits(study: Path) -> Fits:
    return fit(load_points(study), resamples=40)


@pytest.fixture(scope="module")
def said(study: Path) -> list[str]:
    return conclusions(study)


class _Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def test_the_page_loads_nothing_and_runs_one_script_of_its_own(page: str) -> None:
    found = _Tags(page)
    assert not {"link", "img", "iframe", "object", "image", "base", "form"} & set(found.tags)
    links = [
        (n, v) for n, v in found.attributes if n in ("src", "href", "xlink:href", "action") and not v.startswith("#")
    ]
    assert links == []
    assert not re.search(r"url\((?!#)|@import", page)
    assert not [n for n, _ in found.attributes if n.startswith("on")]
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    policy = next(v for n, v in found.attributes if n == "content" and "default-src" in v)
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src '{script_hash(script)}'"
    assert not re.search(r"fetch|XMLHttp|WebSocket|import|eval|innerHTML|https?:", script)


def test_a_point_says_which_run_it_is(page: str, study: Path) -> None:
    says = re.findall(r'aria-label="([^"]*)" role="img" class="p"', page)
    table = re.findall(r'<tr data-run="([^"]*)">', page)
    fitted = [p for p in load_points(study) if p.family != "mdlm-nelbo"]  # one size and budget: it has no curve
    for p in fitted:
        mine = [text for text in says if text.startswith(f"{p.name}: ")]
        assert mine and all(f"loss {p.loss:.4f}" in text for text in mine)
        assert p.name in table
    assert any("± 0.0030" in text for text in says)


def test_tables_hold_numbers_to_sort_by(page: str) -> None:
    runs = re.search(r'<table class="sortable" id="runs">.*?</table>', page, re.S)
    assert runs is not None
    losses = [float(v) for v in re.findall(r'data-v="([^"]*)">[\d.]+(?: ± [\d.]+)?</td><td class="text">', runs[0])]
    assert len(losses) == runs[0].count("<tr data-run") and min(losses) > 1
    assert 'data-of="runs"' in page and 'data-of="settings"' in page and 'id="settings"' in page


def test_hostile_samples_and_titles_are_shown_not_run(page: str) -> None:
    assert "A planted &lt;study&gt;" in page and "<study>" not in page
    assert "&lt;script src=&#34;http://x.example/a.js&#34;&gt;" in page
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", page)
    assert r"\x00\x1b[31m\u202e\x07" in page


def test_visible_text_keeps_what_can_be_printed() -> None:
    assert visible("a\tb\né日 \\") == "a\tb\né日 \\"
    assert visible("\ud800\x9b\u2028\ufeff") == r"\ud800\x9b\u2028\ufeff"
    assert visible(HOSTILE).isprintable()


def test_ids_on_the_page_are_unique(page: str) -> None:
    ids = [value for name, value in _Tags(page).attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_the_page_holds_every_part(page: str, said: list[str], study: Path) -> None:
    assert page.count("<svg") == 1 + 4 + 2 + 1 + 2 + 2 + 1 + 2 + 1 + 1  # panels of the answer and the nine figures
    for run in load_points(study):
        assert str(run.name) in page
    for word in ("AR", "MDLM", "Duo", "Eso-LM", "ab12" * 16, "blocks+head", "0123abcd", "x86_64", "judge-150k"):
        assert word in page
    for line in said:
        assert line.replace("'", "&#39;") in page


def test_a_study_without_samples_or_frontier_says_so(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path, dirs_exist_ok=True)
    for name in ("frontier.jsonl", "samples.jsonl", "study.toml"):
        (tmp_path / name).unlink()
    page = write_report(tmp_path, title="Other").read_text(encoding="utf-8")
    assert "<h1>Other</h1>" in page and page.count("<svg") == 1 + 4 + 2 + 1 + 2 + 2 + 1
    assert "There is no frontier.jsonl" in page and "There is no samples.jsonl" in page


def test_a_study_too_small_to_fit_still_gets_a_report(tmp_path: Path) -> None:
    write_study(tmp_path)
    for run in (tmp_path / "runs").iterdir():
        if run.name not in ("ar-12k-3e10-s0", "mdlm-12k-3e10-s0"):
            shutil.rmtree(run)
    assert "nothing is fitted" in write_report(tmp_path).read_text(encoding="utf-8")


def test_the_report_is_the_same_twice_and_appears_whole(
    study: Path, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "fit", fit)
    assert write_report(study).read_text(encoding="utf-8") == page
    assert not list(study.glob("report.html?*"))


def test_a_broken_study_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no runs"):
        write_report(tmp_path)
    write_study(tmp_path)
    (tmp_path / "runs" / "ar-12k-3e10-s0" / "record.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is not JSON"):
        write_report(tmp_path)


def test_conclusions_are_few_and_name_the_winner(said: list[str]) -> None:
    assert 5 <= len(said) <= 10
    assert any("at the same entropy" in line or "and the same entropy, AR" in line for line in said)
    assert said[0].startswith("At 270 GFLOPs AR has the lowest loss, 2.1")
    assert any(re.search(r"MDLM [34]\.\d+ \(3\.\d+ to [45]\.\d+\)", line) for line in said)  # 4 was planted
    assert any("miniature" in line for line in said)


def test_a_mean_over_budgets_is_called_one(fits: Fits) -> None:
    k = fits.families["mdlm"].multiplier
    assert k is not None and len(k.ratios) > 1
    for count, mean in ((len(k.ratios), ", on average over budgets (geometric mean)"), (1, "")):
        ratios = tuple(replace(ratio, extrapolated=False) for ratio in k.ratios[-count:])
        family = replace(fits.families["mdlm"], multiplier=replace(k, ratios=ratios))
        told = multiplier_sentence(replace(fits, families={"mdlm": family}))
        assert told.startswith(f"Times the compute of AR needed for the same loss{mean}: MDLM ")


def test_training_time_is_summed_over_runs(page: str, study: Path) -> None:
    times = [t for run in read_records(study) if (t := (run.get("timing") or {}).get("seconds"))]
    assert f"{duration(sum(times))}, summed over {len(times)} runs" in page


def test_json_is_strict_and_complete(fits: Fits) -> None:
    data = json.loads(json.dumps(to_json(fits), allow_nan=False))
    assert set(data["families"]) == {"ar", "mdlm", "duo", "esolm", "mdlm-nelbo"}
    assert data["families"]["mdlm"]["multiplier"]["mean"]["value"] == pytest.approx(4, abs=0.3)
    assert data["families"]["mdlm-nelbo"]["parametric"]["flags"] == ["too few runs"]
    assert data["pairs"][0]["seeds"] == [0, 1, 2]


def test_paired_arms_give_the_planted_difference(fits: Fits) -> None:
    (pair,) = fits.pairs
    gap = pair.difference
    assert (pair.arm, pair.against) == ("mdlm-nelbo", "mdlm")
    assert gap.low is not None and gap.high is not None and gap.low < 0.03 < gap.high


def test_the_page_says_who_decides_the_laws(page: str) -> None:
    assert "Who decides L(N, D)" in page and "without the run ar-" in page and "without the budget " in page


def test_summary_is_sentences(fits: Fits) -> None:
    lines = summary(fits)
    assert 6 <= len(lines) <= 14
    assert all(line.endswith(".") and "nan" not in line and "None" not in line for line in lines)


def test_a_pair_that_is_not_told_apart_says_what_it_could_have_seen(fits: Fits) -> None:
    (pair,) = fits.pairs
    alike = replace(pair, losses=(2.0, 2.1, 2.2), losses_against=(2.1, 2.0, 2.2), difference=Estimate(0.0, -0.25, 0.25))
    # sd of the gaps -.1, .1, 0 is .1, so the error is .0577; t of 2 degrees of freedom sees 5.65 of these (Cohen 1988)
    assert "not told apart: 0.33 nats could have been seen (80 % power)" in pair_sentence(alike)


def test_no_reference_is_a_warning_by_default() -> None:
    fits = fit(planted_points(families=("mdlm",)), resamples=40)
    assert fits.families["mdlm"].multiplier is None
    assert any("no runs of 'ar'" in warning for warning in fits.warnings)


def test_every_figure_has_a_name_of_its_own(study: Path, fits: Fits) -> None:
    points = load_points(study)
    speeds = load_frontier(study)
    assert speeds is not None
    drawn = figures(points, fits, speeds, match(speeds))
    assert len({figure.name for figure in drawn}) == len(drawn) == 9
    assert drawn[2].png(1).startswith(b"\x89PNG")


def test_labels_and_numbers_read_well() -> None:
    names = ("ar", "esolm", "mdlm-nelbo", "bd3lm", "ours")
    assert [label(f) for f in names] == ["AR", "Eso-LM", "MDLM-nelbo", "BD3-LM", "ours"]
    assert span(Estimate(1.7, 1.48, 633)) == "1.70 (1.48 to 633)"
    assert span(Estimate(0.5)) == "0.500"


def test_fitting_imports_nothing_heavy() -> None:
    code = "import sys, redraft.scaling.fit; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "altair", "vl_convert", "jinja2", "pyarrow", "scipy"} & set(loaded)


def test_a_best_size_at_the_end_of_the_sizes_is_marked(tmp_path: Path) -> None:
    write_study(tmp_path)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "†" not in page
    least = min(float(p.params) for p in load_points(tmp_path) if p.family == "mdlm")
    for record in tmp_path.glob("runs/*/record.json"):
        told = json.loads(record.read_text())
        if told["arm"] == "mdlm" and told["params"] <= 1.01 * least:
            record.write_text(json.dumps(told | {"loss": told["loss"] - 1.0}))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "†" in page and "Further sizes of this budget settle it." in page
