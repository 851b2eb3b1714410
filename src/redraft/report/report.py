"""The report of a study: one HTML page that works offline, and the same conclusions as sentences for a terminal."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redraft.display import duration
from redraft.errors import UserError
from redraft.files import write_text
from redraft.frontier.carried import carried_file, carried_sentence
from redraft.frontier.matched_entropy import Matching, match
from redraft.frontier.pareto import FRONTIER, SAMPLES, TEXT, Frontier, load_frontier
from redraft.report.conclusions import conclude, matched_lines
from redraft.report.page import render, visible
from redraft.scaling.fit import RESAMPLES, fit
from redraft.scaling.influence_text import influence_rows
from redraft.scaling.records import JUDGE, Point, json_lines, load_points, read_records
from redraft.scaling.results import Fits, ordered
from redraft.scaling.summary import decided

__all__ = ["REPORT", "StudyResults", "conclusions", "results", "visible", "write_report"]

REPORT = "report.html"
LONGEST_SAMPLE = 1200  # characters
BRIEF = 60  # resamples of a page of a study that is under way
CONVENTIONS = {
    "6ND": "6 times parameters (without embedding and head) times tokens",
    "blocks+head": "3 x 2 times the matrices of blocks and head, times tokens; attention scores are not counted",
    "full": "everything: matrices, head, attention scores and conditioning, forward and backward",
}
SAMPLING = (
    "tokens/s of whole batches after a warm-up, model loaded; FLOPs of the forward passes, counted in full, that really "
    "went through; nats per token are per the judge's token; memory is the peak of the allocator or, on a CPU, of the process"
)


@dataclass(frozen=True)
class StudyResults:
    """All that a study directory says, worked out once."""

    title: str
    points: list[Point]
    fits: Fits
    speeds: Frontier | None
    matching: Matching | None


def results(study_dir: str | Path, brief: bool = False) -> StudyResults:
    """Reads and fits a study directory; `brief`: with few resamples and no checks.

    Raises `UserError` where it holds no records or a file in it cannot be read.
    """
    folder = Path(study_dir)
    points, speeds = load_points(folder), load_frontier(folder)
    matching = match(speeds, stated_entropy(folder)) if speeds else None
    title = str(_recipe(folder).get("title") or folder.resolve().name)
    fits = fit(points, resamples=BRIEF if brief else RESAMPLES, checks=not brief)
    return StudyResults(title, points, fits, speeds, matching)


def write_report(
    study_dir: str | Path, *, title: str | None = None, underway: str = "", found: StudyResults | None = None
) -> Path:
    """Write `report.html` into a study directory and return its path. `found`: its results, where they are known.

    Reads `runs/*/record.json` and, where they are there, `study.toml`, `frontier.jsonl` and `samples.jsonl`; the page
    loads nothing else. `underway`: what is still being done; the page then says so and reloads itself. Raises `UserError`
    where the directory holds no records or a file in it cannot be read.
    """
    from redraft.report.answer import answer_figure, answers, setting
    from redraft.report.figures import figures

    folder, found = Path(study_dir), found or results(study_dir, brief=bool(underway))
    records = read_records(folder)
    budget, rows = answers(found.fits, found.matching)
    page = render(
        "report.html.j2",
        title=title or found.title,
        underway=underway,
        budget=budget,
        answers=[(row, setting(row.fastest), setting(row.best)) for row in rows],
        matching=found.matching,
        answer_figure=answer_figure(found.fits),
        conclusions=[*conclude(found.fits, found.speeds, found.matching), *_carried(folder)],
        warnings=found.fits.warnings,
        figures=figures(found.points, found.fits, found.speeds, found.matching),
        fits=found.fits,
        deciders=_deciders(found.fits),
        speeds=found.speeds.places if found.speeds else (),
        samples=_samples(folder),
        absent=[line for name, line in _ABSENT.items() if not (folder / name).exists()],
        runs=_runs(records),
        provenance=_provenance(records, found.fits, found.speeds),
    )
    write_text(folder / REPORT, page)
    return folder / REPORT


def _deciders(fits: Fits) -> dict[str, Any]:
    """Rows of the table of what moves E, alpha and beta of each family most."""
    known = decided(fits).items()
    return {name: influence_rows(f.parametric, f.influence) for name, f in known if f.influence}


_ABSENT = {
    FRONTIER: f"There is no {FRONTIER}: sampling speed and quality were not measured.",
    SAMPLES: f"There is no {SAMPLES}: no samples were kept.",
}


def conclusions(study_dir: str | Path, found: StudyResults | None = None) -> list[str]:
    """What a study directory says, in a few lines: the box at the top of its report. `found`: its results, where known."""
    found = found or results(study_dir)
    return [*conclude(found.fits, found.speeds, found.matching), *_carried(Path(study_dir))]


def _carried(folder: Path) -> list[str]:
    """What the frontiers that were carried over to other sizes say, and what of them was measured."""
    told = []
    for path in sorted(folder.glob(carried_file("*"))):
        found = load_frontier(folder, path.name)
        matching = match(found, stated_entropy(folder)) if found else None
        lines = matched_lines(matching) if matching and matching.matches else []
        told += [carried_sentence([row for _, row in json_lines(path)]), *lines] if found else []
    return told


def stated_entropy(folder: Path) -> float | None:
    """`entropy` of the `[frontier]` table of the study's recipe."""
    value = (_recipe(folder).get("frontier") or {}).get("entropy")
    return float(value) if isinstance(value, (int, float)) else None


def _recipe(folder: Path) -> dict[str, Any]:
    path = folder / "study.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}.") from error


def _samples(folder: Path) -> list[dict[str, Any]]:
    """Of each family the samples with the fewest, a middling number and the most steps, cut to a readable length.

    Those at temperature 1 without a nucleus, where there are any.
    """
    path = folder / SAMPLES
    rows = [row for _, row in json_lines(path)] if path.exists() else []
    for row in rows:
        if not isinstance(row.get("family"), str) or not isinstance(row.get("text"), str):
            raise UserError(f"{path} has a sample without a family or a text.")
    chosen = []
    for family in ordered(sorted({row["family"] for row in rows})):
        own = sorted((row for row in rows if row["family"] == family), key=lambda row: row.get("steps", 0))
        plain = [row for row in own if row.get("temperature", 1) == 1 and row.get("top_p", 1) == 1] or own
        places = sorted({0, len(plain) // 2, len(plain) - 1})
        texts = [{"steps": plain[i].get("steps"), "text": plain[i]["text"][:LONGEST_SAMPLE]} for i in places]
        chosen.append({"family": "held-out text" if family == TEXT else family, "texts": texts})
    return chosen


def _runs(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table of runs: family, then budget, size and seed; the judge last."""
    place = {name: i for i, name in enumerate(ordered(sorted({r["arm"] for r in records if r["arm"] != JUDGE})))}
    key = lambda r: (place.get(r["arm"], len(place)), r["flops"], r["params"], r.get("seed") or 0)
    return sorted(records, key=key)


def _provenance(records: Sequence[dict[str, Any]], fits: Fits, speeds: Frontier | None) -> list[tuple[str, str]]:
    """What the numbers come from, as (name, value) pairs."""
    runs = [r for r in records if r["arm"] != JUDGE]
    times = [seconds for r in records if (seconds := (r.get("timing") or {}).get("seconds"))]
    noise = {f.isoflop.noise for f in fits.families.values() if f.isoflop.loss}
    counted = f"{fits.convention}: {CONVENTIONS.get(fits.convention or '', 'as the study counts them')}"
    rows = [
        ("FLOPs", counted),
        ("Parameters", "without the input embedding, head included"),
        ("Losses", "nats per token on held-out text; intervals are 95 %"),
        ("Intervals", f"{fits.resamples} resamples from seed {fits.seed}"),
        *(("Noise of a run", f"{n.sd:.3g} nats/token, {n.dof} degrees of freedom: {n.source}") for n in noise if n.sd),
        ("Evaluator of samples", _told(speeds.judge) if speeds else ""),
        ("Source of the text", _told(speeds.source) if speeds else ""),
        ("Sampling", SAMPLING if speeds else ""),
        ("Data", _joined(_told(r.get("data"), "source", "sha256", "tokenizer", "tokens") for r in runs)),
        ("Seeds of runs", _joined(str(r.get("seed")) for r in runs)),
        ("Versions", _joined(_told(r.get("versions")) for r in records)),
        ("Source", _joined(_told(r.get("git")) for r in records)),
        ("Hardware", _joined(_told(r.get("machine")) for r in records)),
        (
            "Training time",
            f"{duration(sum(times))}, summed over {len(times)} run{'s' * (len(times) > 1)}" if times else "",
        ),
    ]
    return [(name, value) for name, value in rows if value]


def _told(part: Mapping[str, Any] | None, *keys: str) -> str:
    return ", ".join(f"{key} {part[key]}" for key in keys or part if key in part) if part else ""


def _joined(values: Any) -> str:
    """Distinct values, the commonest first."""
    return "; ".join(value for value, _ in Counter(v for v in values if v).most_common())
