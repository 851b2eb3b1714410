"""The report of a study: one HTML page that works offline, and the same conclusions as sentences for a terminal."""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from redraft.display import duration, quantity
from redraft.errors import UserError
from redraft.files import write_text
from redraft.studies.fit import Fits, fit, label, multiplier_sentence, ordered, pair_sentence, span
from redraft.studies.frontier import FRONTIER, SAMPLES, Frontier, Speed, load_frontier
from redraft.studies.isoflop import TOO_FEW, Minimum
from redraft.studies.records import JUDGE, json_lines, load_points, read_records

REPORT = "report.html"
MINIATURE = 1e8  # parameters; the smallest models of published scaling studies are near it
LONGEST_SAMPLE = 1200  # characters
CONVENTIONS = {
    "6ND": "6 times parameters (without embedding and head) times tokens",
    "blocks+head": "3 x 2 times the matrices of blocks and head, times tokens; attention scores are not counted",
    "full": "everything: matrices, head, attention scores and conditioning, forward and backward",
}


def write_report(study_dir: str | Path, *, title: str | None = None) -> Path:
    """Write `report.html` into a study directory and return its path.

    Reads `runs/*/record.json` and, where they are there, `study.toml`, `frontier.jsonl` and `samples.jsonl`; the page
    loads nothing else. Raises `UserError` where the directory holds no records or a file in it cannot be read.
    """
    from redraft.studies.figures import figures

    folder = Path(study_dir)
    points, speeds = load_points(folder), load_frontier(folder)
    fits = fit(points)
    page = _render(
        title=title or _title(folder),
        conclusions=conclude(fits, speeds),
        warnings=fits.warnings,
        figures=figures(points, fits, speeds),
        fits=fits,
        samples=_samples(folder),
        absent=[line for name, line in _ABSENT.items() if not (folder / name).exists()],
        runs=_runs(read_records(folder)),
        provenance=_provenance(read_records(folder), fits),
    )
    write_text(folder / REPORT, page)
    return folder / REPORT


_ABSENT = {
    FRONTIER: f"There is no {FRONTIER}: sampling speed and quality were not measured.",
    SAMPLES: f"There is no {SAMPLES}: no samples were kept.",
}


def conclusions(study_dir: str | Path) -> list[str]:
    """What a study directory says, in at most ten lines: the box at the top of its report."""
    return conclude(fit(load_points(study_dir)), load_frontier(study_dir))


def conclude(fits: Fits, speeds: Frontier | None = None) -> list[str]:
    """Who wins under which measure and by how much, with 95 % intervals, and how far to trust it."""
    lines = [*_loss_lines(fits), multiplier_sentence(fits), " ".join(map(pair_sentence, fits.pairs))]
    return [line for line in (*lines, *(_speed_lines(speeds) if speeds else ()), _caveat(fits)) if line]


def _loss_lines(fits: Fits) -> Iterator[str]:
    best = {name: m for name in fits.families if (m := _top(fits, name))}
    if not best:
        yield "No family has two budgets with three sizes each, so nothing is fitted."
        return
    ranked = sorted(best, key=lambda name: best[name].loss.value)
    first, others = best[ranked[0]], ranked[1:]
    text = f"At {quantity(first.budget, 'FLOPs')} {label(ranked[0])} has the lowest loss, {span(first.loss)} nats/token"
    yield text + "".join(f"; {label(name)} {span(best[name].loss)}" for name in others) + "."
    close = [f"{label(a)} and {label(b)}" for a, b in pairwise(ranked) if _overlap(best[a], best[b])]
    bounds = [label(name) for name in ranked if fits.families[name].loss_kind == "bound"]
    how_far = [f"Intervals overlap, so the order is not settled, between {', '.join(close)}."] if close else []
    if bounds and len(bounds) < len(ranked):
        how_far.append(
            f"Those of {', '.join(bounds)} are upper bounds: part of their gap may be the bound, not the model."
        )
    if how_far:
        yield " ".join(how_far)
    laws = [(name, law) for name in best if (law := fits.families[name].isoflop.params)]
    exponents = ", ".join(f"{label(name)} {span(law.exponent, 2)}" for name, law in laws)
    yield f"The best size grows with compute as C^a, with a: {exponents}."


def _top(fits: Fits, name: str) -> Minimum | None:
    """The minimum at the largest budget that every fitted family has; at its own largest where there is none."""
    fitted = {n: f.isoflop.minima for n, f in fits.families.items() if f.isoflop.loss}
    budgets = [{m.budget for m in minima if TOO_FEW not in m.flags} for minima in fitted.values()]
    shared = set.intersection(*budgets) if budgets else set()
    own = [m for m in fitted.get(name, ()) if TOO_FEW not in m.flags and (not shared or m.budget in shared)]
    return own[-1] if own else None


def _overlap(a: Minimum, b: Minimum) -> bool:
    return a.loss.high is not None and b.loss.low is not None and a.loss.high > b.loss.low


def _speed_lines(speeds: Frontier) -> Iterator[str]:
    front, real = speeds.front, speeds.real
    best, fastest = front[-1], front[0]
    yield (
        f"Sampling: {_setting(best)} is best under the judge, {best.quality:.3g} nats/token at "
        f"{quantity(best.tokens_per_second)} tokens/s; {_setting(fastest)} is fastest, "
        f"{quantity(fastest.tokens_per_second)} tokens/s at {fastest.quality:.3g}."
    )
    groups = [(name, list(group)) for name, group in groupby(front, key=lambda s: s.family)]
    steps = [f"{label(name)} ({', '.join(_steps(s) for s in group)})" for name, group in groups]
    yield f"No setting measured is both faster and better than, fastest first (steps): {', '.join(steps)}."
    yield from _steps_lines(speeds)
    if real:
        dull = [s for s in front if real.entropy - s.entropy > 2 * (real.entropy_se**2 + s.entropy_se**2) ** 0.5]
        if dull:
            which = "All of these are" if len(dull) == len(front) else f"{', '.join(map(_setting, dull))} are"
            yield f"{which} less varied than held-out text by more than two standard errors: discount their quality."


def _steps_lines(speeds: Frontier) -> Iterator[str]:
    """What more steps buy: each family's quality at its fewest and most steps, and the gain with its 95 % interval."""
    gains = []
    for name, group in groupby(
        sorted((place.speed for place in speeds.places), key=lambda s: (s.family, s.steps)), key=lambda s: s.family
    ):
        own = [s for s in group if s.temperature == 1]
        if len(own) > 1:
            gain, error = own[0].quality - own[-1].quality, 1.96 * math.hypot(own[0].quality_se, own[-1].quality_se)
            gains.append(
                f"{label(name)} {own[0].quality:.2f} in {own[0].steps}, {own[-1].quality:.2f} in {own[-1].steps} steps "
                f"(gain {gain:.2f}, {gain - error:.2f} to {gain + error:.2f})"
            )
    if gains:
        yield f"Quality against steps, nats/token under the judge: {'; '.join(gains)}."


def _setting(speed: Speed) -> str:
    return f"{label(speed.family)} in {_steps(speed)} steps"


def _steps(speed: Speed) -> str:
    return str(speed.steps) if speed.temperature == 1 else f"{speed.steps} at T {speed.temperature:g}"


def _caveat(fits: Fits) -> str:
    """How small the study is, and how many warnings its fits carry."""
    text = ""
    largest = max(m.params.value for family in fits.families.values() for m in family.isoflop.minima)
    if largest < MINIATURE:
        text = f"This is a miniature (best sizes up to {quantity(largest)} parameters): the order may differ at scale."
    if fits.warnings:
        text += f" The fits carry {len(fits.warnings)} warning{'s' * (len(fits.warnings) > 1)}; the report lists them."
    return text.strip()


def _render(**values: Any) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    safe = lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
    page = Environment(autoescape=True, finalize=safe, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {"quantity": quantity, "label": label, "span": span, "svg": lambda figure: Markup(figure.svg())}
    template = files("redraft.studies").joinpath("report.html.j2").read_text(encoding="utf-8")
    return page.from_string(template).render(**values) + "\n"


def visible(text: str) -> str:
    r"""Text in which control, format and unassigned characters are seen as \x1b or \u202e; lines and tabs stay."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _title(folder: Path) -> str:
    path = folder / "study.toml"
    if not path.exists():
        return folder.resolve().name
    try:
        return str(tomllib.loads(path.read_text(encoding="utf-8")).get("title") or folder.resolve().name)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}.") from error


def _samples(folder: Path) -> list[dict[str, Any]]:
    """Of each family the samples with the fewest, a middling number and the most steps, cut to a readable length."""
    path = folder / SAMPLES
    rows = [row for _, row in json_lines(path)] if path.exists() else []
    for row in rows:
        if not isinstance(row.get("family"), str) or not isinstance(row.get("text"), str):
            raise UserError(f"{path} has a sample without a family or a text.")
    chosen = []
    for family in ordered(sorted({row["family"] for row in rows})):
        own = sorted((row for row in rows if row["family"] == family), key=lambda row: row.get("steps", 0))
        places = sorted({0, len(own) // 2, len(own) - 1})
        texts = [{"steps": own[i].get("steps"), "text": own[i]["text"][:LONGEST_SAMPLE]} for i in places]
        chosen.append({"family": family, "texts": texts})
    return chosen


def _runs(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table of runs: family, then budget, size and seed; the judge last."""
    place = {name: i for i, name in enumerate(ordered(sorted({r["arm"] for r in records if r["arm"] != JUDGE})))}
    key = lambda r: (place.get(r["arm"], len(place)), r["flops"], r["params"], r.get("seed") or 0)
    return sorted(records, key=key)


def _provenance(records: Sequence[dict[str, Any]], fits: Fits) -> list[tuple[str, str]]:
    """What the numbers come from, as (name, value) pairs."""
    runs = [r for r in records if r["arm"] != JUDGE]
    seconds = sum((r.get("timing") or {}).get("seconds") or 0 for r in records)
    noise = {f.isoflop.noise for f in fits.families.values() if f.isoflop.loss}
    counted = f"{fits.convention}: {CONVENTIONS.get(fits.convention or '', 'as the study counts them')}"
    rows = [
        ("FLOPs", counted),
        ("Parameters", "without the input embedding, head included"),
        ("Losses", "nats per token on held-out text; intervals are 95 %"),
        ("Intervals", f"{fits.resamples} resamples from seed {fits.seed}"),
        *(("Noise of a run", f"{n.sd:.3g} nats/token, {n.dof} degrees of freedom: {n.source}") for n in noise if n.sd),
        ("Judge of samples", _joined(r["name"] for r in records if r["arm"] == JUDGE)),
        ("Data", _joined(_told(r.get("data"), "source", "sha256", "tokenizer", "tokens") for r in runs)),
        ("Seeds of runs", _joined(str(r.get("seed")) for r in runs)),
        ("Versions", _joined(_told(r.get("versions")) for r in records)),
        ("Source", _joined(_told(r.get("git")) for r in records)),
        ("Hardware", _joined(_told(r.get("machine")) for r in records)),
        ("Training time", duration(seconds) if seconds else ""),
    ]
    return [(name, value) for name, value in rows if value]


def _told(part: dict[str, Any] | None, *keys: str) -> str:
    return ", ".join(f"{key} {part[key]}" for key in keys or part if key in part) if part else ""


def _joined(values: Any) -> str:
    """Distinct values, the commonest first."""
    return "; ".join(value for value, _ in Counter(v for v in values if v).most_common())
