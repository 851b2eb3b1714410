"""Measuring the frontier of a study: chosen runs sample at every setting, and an evaluator model scores the samples.

Writes `frontier.jsonl` (one measurement a line: a setting and a batch) and `samples.jsonl` (one setting a line: some of its
texts, and the scores of every sample). What is already measured is not measured again. Quality is that of the largest batch;
smaller ones are only timed, for a sample does not depend on who is drawn beside it. A sweep of temperatures that misses the
entropy at which families are compared goes on by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redraft.errors import UserError
from redraft.files import disk, lines, read_text
from redraft.frontier.extend import TRIES, next_temperature
from redraft.frontier.pareto import FRONTIER, SAMPLES, TEXT
from redraft.planning.frontier import FrontierConfig
from redraft.planning.study import JUDGE, Study
from redraft.registry import SAMPLERS
from redraft.studies.execute import RUNS

if TYPE_CHECKING:
    from torch import Tensor

    from redraft.evaluation.compute import Compute
    from redraft.evaluation.generation.evaluators import Evaluator
    from redraft.evaluation.generation.speed import Generated
    from redraft.hub.model import Model
    from redraft.text.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Checkpoint:
    """A model that is measured, and the name of its curve."""

    family: str
    name: str
    folder: Path


@dataclass(frozen=True)
class Bench:
    """What every measurement shares. `real` [n, L]: held-out text in ids of `tokenizer`."""

    settings: FrontierConfig
    compute: Compute
    judge: Evaluator
    source: Evaluator | None
    real: Tensor
    tokenizer: Tokenizer

    @property
    def batches(self) -> list[int]:
        """Largest first: its samples are scored."""
        return sorted(set(self.settings.batches or [self.settings.samples]), reverse=True)

    @cached_property
    def real_features(self) -> Tensor:
        return self.judge.features(self.real[: self.settings.samples], self.tokenizer)


def measure(
    study: Study, folder: Path, records: list[dict[str, Any]], compute: Compute, settings: FrontierConfig | None = None
) -> Iterator[dict[str, Any]]:
    """Yields each new measurement of a study. Call it when nothing else runs on the machine: it takes times.

    `compute`: how models sample, and on which device they are judged. `settings`: instead of the study's own `[frontier]`.
    """
    import torch

    if settings is None:
        assert study.config.frontier is not None
        settings = study.config.frontier
    threads = study.runs[0].config.train.threads
    if threads:
        torch.set_num_threads(threads)  # small networks are timed as they were trained
    chosen = [Checkpoint(r["arm"], r["name"], folder / RUNS / r["name"]) for r in _chosen(records, settings.runs)]
    judge, source = _judges(settings, folder, records, compute.device)
    tokenizer = compute.load(chosen[0].folder).tokenizer
    real = _held_out(study, settings, tokenizer)
    yield from measure_models(chosen, folder, Bench(settings, compute, judge, source, real, tokenizer))


def measure_models(models: Sequence[Checkpoint], folder: Path, bench: Bench) -> Iterator[dict[str, Any]]:
    """Yields each new measurement, and keeps it in the folder. `UserError` where other judges have measured there, or models
    sampled on other hardware: their times are not those of this one."""
    rows = read_rows(folder / FRONTIER)
    _check_judge(folder, rows, bench)
    done = {row_key(row) for row in rows}
    if not any(row["family"] == TEXT for row in rows):
        yield _keep(folder, *_real(bench))
    for checkpoint in models:
        model = bench.compute.load(checkpoint.folder)
        _check_compute(folder, rows, bench.compute.record(model))
        if model.tokenizer.fingerprint != bench.tokenizer.fingerprint:
            raise UserError(f"{checkpoint.name} has another tokenizer than {models[0].name}: measure them apart")
        settings = bench.settings
        for steps, temperature, top_p in product(_steps(model, settings), settings.temperatures, settings.top_p):
            keys = [(checkpoint.name, steps, temperature, top_p, batch) for batch in bench.batches]
            if not set(keys) <= done:
                yield from _setting(model, checkpoint, bench, steps, temperature, top_p, folder, done)
        if settings.extend and len(settings.temperatures) > 1:
            for steps in _steps(model, settings):
                yield from _extended(model, checkpoint, bench, steps, folder)


def _extended(model: Model, of: Checkpoint, bench: Bench, steps: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Settings beyond the sweep of a curve, until it brackets the common entropy or cannot (`extend.py`).

    What is measured says where to go on, so a killed measurement goes on the same way. The widest top-p is swept.
    """
    top_p = max(bench.settings.top_p)
    while True:
        rows = read_rows(folder / FRONTIER)
        done = set(map(row_key, rows))
        own = [row for row in rows if (row["name"], row["steps"], row["top_p"]) == (of.name, steps, top_p)]
        beyond = {row["temperature"] for row in own if row.get("extended")}
        torn = [t for t in beyond if any((of.name, steps, t, top_p, batch) not in done for batch in bench.batches)]
        curve = {row["temperature"]: row["entropy"] for row in own}
        temperature = torn[0] if torn else next_temperature(curve, _level(bench.settings, rows))
        if temperature is None or (not torn and len(beyond) >= TRIES):
            return
        yield from _setting(model, of, bench, steps, temperature, top_p, folder, done, extended=True)


def _level(settings: FrontierConfig, rows: Sequence[dict[str, Any]]) -> float:
    """The entropy at which families are compared, nats."""
    held_out = next(row["entropy"] for row in rows if row["family"] == TEXT)
    return float(held_out if settings.entropy is None else settings.entropy)


def _chosen(records: list[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """The runs of those names; or of each family's own arm the run of lowest loss, the first name among equals."""
    if names:
        known = {record["name"]: record for record in records}
        missing = [name for name in names if name not in known]
        if missing:
            raise UserError(f"the study has no run {missing[0]!r}: `redraft study status` lists them")
        return [known[name] for name in names]
    best: dict[str, dict[str, Any]] = {}
    for record in sorted(records, key=lambda r: (r["loss"], r["name"])):
        if record["arm"] == record["family"]:
            best.setdefault(record["family"], record)
    return [best[family] for family in sorted(best)]


def _judges(
    settings: FrontierConfig, folder: Path, records: list[dict[str, Any]], device: str
) -> tuple[Evaluator, Evaluator | None]:
    from redraft.evaluation.generation.evaluator_files import load_evaluator

    if isinstance(settings.judge, str):
        of: str | Path = settings.judge
    else:
        of = folder / RUNS / next(r["name"] for r in records if r["arm"] == JUDGE)
    judge = load_evaluator(of, source=settings.source == settings.judge, download=settings.download, device=device)
    if settings.source is None or judge.identity.source:
        return judge, judge if judge.identity.source else None
    return judge, load_evaluator(settings.source, source=True, download=settings.download, device=device)


def check_judges(settings: FrontierConfig) -> None:
    """`UserError` where a judge that is there already could not be opened: told before anything is trained."""
    from redraft.evaluation.generation.evaluator_files import check_evaluator

    for one in (settings.judge, settings.source):
        if isinstance(one, str):
            check_evaluator(one, download=settings.download)


def _check_judge(folder: Path, rows: Sequence[dict[str, Any]], bench: Bench) -> None:
    now = json.loads(json.dumps(asdict(bench.judge.identity)))
    for row in rows:
        if row.get("judge") != now:
            was = (row.get("judge") or {}).get("name", "an unnamed one")
            raise UserError(
                f"{folder / FRONTIER} was measured under another judge or version ({was}, now {now['name']}): "
                f"remove it and {SAMPLES}"
            )


def _check_compute(folder: Path, rows: Sequence[dict[str, Any]], now: dict[str, Any]) -> None:
    """Rows that say nothing of it are of a CPU, in float32, not compiled."""
    before = {"device": "cpu", "device_name": None, "precision": "float32", "compiled": False}
    for row in rows:
        if row["family"] == TEXT:
            continue
        was = {key: row.get(key, value) for key, value in before.items()}
        if _hardware(was) != _hardware({**now, "device_name": was["device_name"] and now["device_name"]}):
            raise UserError(
                f"{folder / FRONTIER} was measured with {_told(was)}, and this is {_told(now)}: ask for the same by --device, "
                f"--precision and --compile, or remove it and {SAMPLES}"
            )


def _hardware(said: dict[str, Any]) -> tuple[Any, ...]:
    """What times depend on: which of several equal devices it was does not matter."""
    return said["device"].partition(":")[0], said["device_name"], said["precision"], said["compiled"]


def _told(said: dict[str, Any]) -> str:
    name = f" ({said['device_name']})" if said["device_name"] else ""
    return f"{said['device']}{name} in {said['precision']}{', compiled' if said['compiled'] else ''}"


def _steps(model: Model, settings: FrontierConfig) -> list[int]:
    """Left to right has no choice of steps: one a token."""
    chosen = "steps" in SAMPLERS[model.family.sampler].options
    return settings.steps if chosen else [settings.length]


def _setting(
    model: Model,
    of: Checkpoint,
    bench: Bench,
    steps: int,
    temperature: float,
    top_p: float,
    folder: Path,
    done: set[Any],
    extended: bool = False,
) -> Iterator[dict[str, Any]]:
    """A line for every batch that is not `done`. The first says what samples are. `extended`: beyond what was asked for."""
    from redraft.evaluation.generation.speed import generate

    settings, compute, scores = bench.settings, bench.compute, dict[str, Any]()
    about = {"family": of.family, "name": of.name, "sampler": model.family.sampler, "steps": steps,
             "temperature": temperature, "top_p": top_p, "extended": extended, **compute.record(model)}  # fmt: skip
    for number, batch in enumerate(bench.batches):
        count = max(settings.repeats, -(-settings.samples // batch) if number == 0 else 1)
        made = generate(model, count, batch, settings.length, steps, temperature, top_p, compute.compiled)
        sample = None
        if number == 0:
            scores, sample = _scored(made.tokens[: settings.samples], bench)
            sample = {**about, "nfe": made.forwards, **sample}
        row = {**about, "batch": batch, **_costs(made), **scores}
        if row_key(row) not in done:
            yield _keep(folder, row, sample)


def _costs(made: Generated) -> dict[str, Any]:
    return {
        "tokens_per_second": made.tokens_per_second,
        "latency_p50": made.latency(0.5),
        "latency_p95": made.latency(0.95),
        "timed": len(made.seconds),
        "nfe": made.forwards,
        "tokens_per_forward": made.tokens_per_forward,
        "flops_per_token": made.flops_per_token,
        "peak_bytes": made.peak_bytes,
    }


def _real(bench: Bench) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same measures of held-out text: what samples should look like."""
    scores, sample = _scored(bench.real, bench)
    about = {"family": TEXT, "name": TEXT, "steps": 0, "temperature": 1.0, "top_p": 1.0}
    return {**about, "batch": 0, **scores}, {**about, "nfe": 0, **sample}


def _scored(tokens: Tensor, bench: Bench) -> tuple[dict[str, Any], dict[str, Any]]:
    """The measures of a set of rows [n, L], and what is kept of the rows themselves."""
    from redraft.evaluation.generation.diversity import ngrams, unigram_entropy
    from redraft.evaluation.generation.evaluators import mean, texts

    scores = bench.judge.score(tokens, bench.tokenizer)
    entropy = [float(unigram_entropy(row)) for row in tokens]
    source = bench.source.score(tokens, bench.tokenizer) if bench.source else None
    measures = {
        **_pair("quality", scores.per_token()),
        **_pair("nats_per_byte", scores.per_byte()),
        **_pair("entropy", mean(entropy)),
        **ngrams(tokens),
        **_pair("source_quality", source.per_token() if source else (None, None)),
        **_mauve(tokens, bench),
        "samples": len(tokens),
        "length": tokens.shape[1],
        "judge": asdict(bench.judge.identity),
        "source": asdict(bench.source.identity) if bench.source else None,
    }
    kept = texts(tokens[: bench.settings.keep], bench.tokenizer)
    each = {"nats": _short(scores.nats.tolist()), "tokens": scores.tokens.tolist(), "entropy": _short(entropy)}
    return measures, {"text": kept[0], "texts": kept, **each}


def _mauve(tokens: Tensor, bench: Bench) -> dict[str, float | None]:
    from redraft.evaluation.generation.mauve import installed, mauve

    if tokens is bench.real or not installed():
        return {"mauve": None, "mauve_sd": None}
    found = mauve(bench.real_features, bench.judge.features(tokens, bench.tokenizer))
    return {"mauve": found.value, "mauve_sd": found.sd}


def _pair(name: str, values: tuple[Any, Any]) -> dict[str, Any]:
    return {name: values[0], f"{name}_se": values[1]}


def _short(values: Sequence[float]) -> list[float]:
    """Six figures: a tenth of what a file of them would otherwise take is rounding."""
    return [float(f"{value:.6g}") for value in values]


def _held_out(study: Study, settings: FrontierConfig, tokenizer: Tokenizer) -> Tensor:
    """Windows of validation text, four for each sample."""
    import torch

    from redraft.text.shards.packing import ordered_windows
    from redraft.text.shards.prepare import prepare_cached

    data = study.runs[0].config.data
    corpus = prepare_cached(data.source, tokenizer, validation=data.validation)
    return torch.from_numpy(ordered_windows(corpus.split("validation"), settings.length, 4 * settings.samples))


def _keep(folder: Path, row: dict[str, Any], sample: dict[str, Any] | None) -> dict[str, Any]:
    """The sample first: a measurement that is recorded has its sample recorded."""
    if sample is not None:
        append_row(folder / SAMPLES, sample)
    append_row(folder / FRONTIER, row)
    return row


def append_row(path: Path, row: dict[str, Any]) -> None:
    """One more line of a file of measurements."""
    with disk(path.parent), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Whole lines; a torn last one, left by a kill, is cut off."""
    if not path.exists():
        return []
    whole = read_text(path).rpartition("\n")[0]
    path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")
    return [json.loads(line) for line in lines(whole)]


def row_key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What no two measurements of a file share."""
    return tuple(row.get(part) for part in ("name", "steps", "temperature", "top_p", "batch"))
