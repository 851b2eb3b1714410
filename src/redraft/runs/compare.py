"""Two results side by side: differences with errors, and what makes them incomparable.

A metric says which of its terms must be equal in both results: nats per token of two tokenizers are not of the same things, a
bound and a likelihood are not the same quantity, two windows are not the same question. What differs is named, and the metric
is refused; what can still be said is said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from redraft.config import flat, read_toml
from redraft.errors import UserError
from redraft.evaluation.lm_eval.suite import mcnemar
from redraft.files import read_json
from redraft.scaling.power import detectable

TOLD = 8  # differing keys that a note names
ALPHA, SURE = 0.05, 1.96  # of a paired test; standard errors
WHY = {
    "tokenizer": "their tokens are different things; bits_per_byte can be compared",
    "text": "another text is another difficulty",
    "tokens": "the text or its cut has changed",
    "part": "other parts of the text: `redraft eval RUN --data TEXT --rows N`, N large, scores all of it for both",
    "windows": "other windows are other questions",
    "length": "a longer window gives more context",
    "convention": "windows, ends and detokenisation change a perplexity by more than most models differ",
    "estimator": "estimators of one likelihood differ in looseness and noise",
    "guidance": "guided scores are not likelihoods",
    "limit": "other questions were asked",
    "share": "other parts of the text were scored",
    "windowing": "ends and detokenisation change what is scored",
}


@dataclass(frozen=True)
class Metric:
    """`error`: one standard error. `needs`: the terms that must be equal before two values may be compared."""

    value: float
    error: float
    kind: Literal["exact", "bound", "score"]
    better: Literal["lower", "higher"]
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """What one file or run folder says. `budget` in FLOPs under `convention`, where it is known."""

    name: str
    metrics: dict[str, Metric]
    terms: dict[str, Any]
    family: str = ""
    budget: float | None = None
    convention: str = ""
    outcomes: Mapping[str, Sequence[float]] = field(default_factory=dict)  # of a metric, right or wrong by document
    truncated: int = 0  # requests that lost part of their context
    draws: int = 1  # of the noise, a request; 1 also where nothing is drawn
    config: Mapping[str, Any] = field(default_factory=dict)  # of a run folder, by dotted key


@dataclass(frozen=True)
class Comparison:
    """One metric. `difference` is B - A; `error` its standard error: document by document where both say what became of each
    (`p` is then McNemar's, exact), else as of independent results. `refused` says why nothing is concluded, else `verdict`
    says what is."""

    metric: str
    a: float
    b: float
    difference: float | None
    error: float | None
    verdict: str
    refused: str = ""
    detectable: float | None = None  # where not told apart: the least difference seen at 80 % power, by normal errors
    p: float | None = None


@dataclass(frozen=True)
class Compared:
    a: Result
    b: Result
    lines: list[Comparison]
    notes: list[str] = field(default_factory=list)


def compare(a: Result, b: Result) -> Compared:
    """Every metric that both have. `UserError` where there is none."""
    shared = [name for name in a.metrics if name in b.metrics]
    if not shared:
        raise UserError(
            f"{a.name} and {b.name} measure nothing in common: {', '.join(a.metrics)} against {', '.join(b.metrics)}"
        )
    return Compared(a, b, [_line(name, a, b) for name in shared], _notes(a, b))


def _line(name: str, a: Result, b: Result) -> Comparison:
    ours, theirs = a.metrics[name], b.metrics[name]
    needs = dict.fromkeys((*ours.needs, *theirs.needs))
    # One text may have two names; its tokens have one sum.
    same_text = a.terms.get("tokens") and all(
        a.terms.get(term) == b.terms.get(term) for term in ("tokens", "tokenizer")
    )
    for term in needs:
        if a.terms.get(term) != b.terms.get(term) and not (term == "text" and same_text):
            reason = f"{term}: {_said(a.terms.get(term))} against {_said(b.terms.get(term))}"
            why = f" ({WHY[term]})" if term in WHY else ""
            return Comparison(name, ours.value, theirs.value, None, None, "", reason + why)
    difference, error, p = theirs.value - ours.value, math.hypot(ours.error, theirs.error), None
    if name in a.outcomes and name in b.outcomes:
        paired = mcnemar(b.outcomes[name], a.outcomes[name])
        error, p = paired["stderr"] or math.inf, paired["p"]
    apart = p < ALPHA if p is not None else math.isfinite(error) and abs(difference) > SURE * error
    verdict = _verdict(a, b, ours, theirs, difference) if apart else "not told apart"
    known = error if math.isfinite(error) else None
    seen = detectable(known, math.inf) if known and not apart else None
    return Comparison(name, ours.value, theirs.value, difference, known, verdict, detectable=seen, p=p)


def _verdict(a: Result, b: Result, ours: Metric, theirs: Metric, difference: float) -> str:
    better = b if (difference < 0) == (ours.better == "lower") else a
    if {ours.kind, theirs.kind} == {"exact", "bound"}:
        bounded = a if ours.kind == "bound" else b
        if better is not bounded:
            return f"undecided: {bounded.name}'s number is a bound, its likelihood may be better"
        return f"{better.name} is better, by at least this: its number is a bound"
    if ours.kind == theirs.kind == "bound" and a.family != b.family:
        return f"{better.name} has the better bound; the bounds of {a.family} and {b.family} are not equally tight"
    return f"{better.name} is better"


def _notes(a: Result, b: Result) -> list[str]:
    notes = []
    if a.budget and b.budget and a.convention == b.convention and not 0.95 < a.budget / b.budget < 1.05:
        notes.append(
            f"training budgets: {a.budget:.3g} against {b.budget:.3g} FLOPs ({a.convention}): this compares two models, not "
            f"two families"
        )
    if told := _configuration(a.config, b.config):
        notes.append(told)
    if a.terms.get("guidance") != b.terms.get("guidance") and "guidance" in a.terms and "guidance" in b.terms:
        guides = (_said(one.terms["guidance"]) for one in (a, b))
        notes.append(f"guidance: {' against '.join(guides)}; its weight must not be chosen on these documents")
    if min(a.draws, b.draws) > 1 and a.draws != b.draws:
        notes.append(
            f"noise draws a request: {a.draws} against {b.draws}; fewer draws decide close questions by chance"
        )
    for one in (a, b):
        if one.truncated:
            notes.append(f"{one.name}: {one.truncated} requests did not fit the window and lost part of their context")
    if a.convention != b.convention:
        notes.append(f"training budgets are counted as {a.convention or 'unknown'} and as {b.convention or 'unknown'}")
    return notes


def _configuration(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """The keys of both in which two runs differ; nothing where one is no run folder."""
    keys = [key for key in ours if key in theirs and ours[key] != theirs[key]]
    if not keys:
        return ""
    told = [f"{key} {_said(ours[key])} against {_said(theirs[key])}" for key in keys[:TOLD]]
    more = f", and {len(keys) - TOLD} keys more" if len(keys) > TOLD else ""
    return f"the runs differ in {', '.join(told)}{more}"


def read_result(path: Path) -> Result:
    """The result in a run folder (its record) or in a file that `redraft eval --json` or `--out` wrote."""
    file = path / "record.json" if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise UserError(f"{path} holds no finished run (record.json is missing): give a run folder or a result file")
    table = read_json(file)
    name = path.name if path.is_dir() else path.stem
    for wanted, reader in (("tasks", _tasks), ("estimator", _likelihood), ("loss_kind", _record)):
        if isinstance(table, dict) and wanted in table:
            try:
                found = reader(name, table)
                own = path / "config.toml"
                return replace(found, config=flat(read_toml(own))) if path.is_dir() and own.exists() else found
            except (KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{file} is a damaged result: {error!r}") from None
    raise UserError(f"{file} is no result of redraft: give a run folder, or what `redraft eval --json` printed")


def _record(name: str, table: Mapping[str, Any]) -> Result:
    kind: Any = table["loss_kind"]
    data, error = table["data"], table["loss_sampling_se"]
    terms = {
        "text": " and ".join(Path(part).name for part in (data["source"], data["validation"]) if part),
        "tokens": data["sha256"][:12],
        "tokenizer": data["tokenizer_fingerprint"][:12],
        "windows": table["windows"],
        "length": table["length"],
    }
    needs = ("text", "tokenizer", "tokens", "windows", "length")
    metrics = {"nats_per_token": _measured(table["loss"], error, kind, needs)}
    if table.get("bits_per_byte") is not None:
        scale = table["bits_per_byte"] / table["loss"] if table["loss"] else 0.0
        terms["part"] = f"{table['windows']} windows of {table['length']} tokens by {terms['tokenizer']}"
        scaled = None if error is None else error * scale
        metrics["bits_per_byte"] = _measured(table["bits_per_byte"], scaled, kind, ("text", "part"))
    return Result(name, metrics, terms, table["family"], table["flops"], table["convention"])


def _likelihood(name: str, table: Mapping[str, Any]) -> Result:
    kind: Any = "exact" if table["exact"] else "bound"
    kept = ("tokenizer", "convention", "windows", "share", "estimator")
    terms = {"text": table["text_sha256"][:12], **{key: table[key] for key in kept}}
    terms["windowing"] = {key: value for key, value in table["convention"].items() if key not in ("length", "stride")}
    metrics = {"nats_per_token": _measured(table["nats"], table["sampling_error"], kind, ("text", *kept[:3]))}
    if table["bits_per_byte"] is not None:
        needs = ("text", "share", "windowing")
        metrics["bits_per_byte"] = _measured(table["bits_per_byte"], table["bits_per_byte_se"], kind, needs)
    return Result(name, metrics, terms, table["family"])


def _measured(value: float, error: float | None, kind: Any, needs: tuple[str, ...]) -> Metric:
    """An error that is not known (None, as of a single window) is infinite: nothing is then told apart."""
    return Metric(value, math.inf if error is None else error, kind, "lower", needs)


def _tasks(name: str, table: Mapping[str, Any]) -> Result:
    settings, metrics, terms = table["settings"], dict[str, Metric](), dict[str, Any]()
    terms["limit"], terms["guidance"] = table["limit"], settings["guidance"]
    own = settings["estimator"]["name"] if not settings["default_estimator"] else "the family's own"
    terms["estimator"], outcomes = own, dict[str, Any]()
    cut = table["requests"]["truncated"]
    family, drawn = settings["family"].partition("(")[0].lower(), settings["draws"]
    for task, said in table["tasks"].items():
        terms |= {f"version of {task}": said["version"], f"examples of {task}": said["shots"]}
        terms[f"documents of {task}"] = said["documents"]
        for metric, entry in said["metrics"].items():
            if entry["value"] is None:
                continue
            higher = (said["higher_is_better"] or {}).get(metric, True)
            likelihood = metric.startswith(("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"))
            needs = (
                "limit",
                *(("guidance",) if likelihood else ()),
                "estimator",
                *(f"{what} of {task}" for what in ("version", "examples", "documents")),
            )
            error = math.inf if entry["stderr"] is None else entry["stderr"]
            metrics[f"{task} {metric}"] = Metric(entry["value"], error, "score", "higher" if higher else "lower", needs)
            if metric in said["outcomes"]:
                outcomes[f"{task} {metric}"] = said["outcomes"][metric]
    return Result(name, metrics, terms, family, outcomes=outcomes, truncated=cut, draws=drawn)


def _said(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} documents"
    return "nothing" if value is None else str(value)
