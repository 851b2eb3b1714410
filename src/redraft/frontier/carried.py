"""A measured frontier carried over to another size and machine: quality by number of calls, the cost of a call anew.

What samples are worth after so many calls was measured on the study's runs (`frontier.jsonl`). What a call costs is measured
here, on a network of the size asked for, of the same family, block and vocabulary, with random weights: time, FLOPs and memory
of a call do not depend on what the weights say. A text then takes its measured number of calls times the seconds of a
call. That quality stays as it is at another size is an assumption, and every row says so: `carried` names the fields that
are the small run's, `measured` those of this machine and size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redraft.display import quantity
from redraft.errors import UserError
from redraft.frontier.matched_entropy import match
from redraft.frontier.measure import append_row, read_rows, row_key
from redraft.frontier.pareto import FRONTIER, TEXT, load_frontier
from redraft.network.flops import parameters
from redraft.network.sizes import from_size
from redraft.studies.execute import RUNS

if TYPE_CHECKING:
    from redraft.evaluation.compute import Compute
    from redraft.evaluation.generation.speed import Generated
    from redraft.frontier.matched_entropy import Matching
    from redraft.hub.model import Model

MEASURED = ("tokens_per_second", "latency_p50", "latency_p95", "flops_per_token", "peak_bytes")
CARRIED = ("quality", "entropy", "nfe")
TIMED = 3  # batches at most: a call at that size is long, and steady


def carried_file(size: str, hardware: str = "") -> str:
    """Where a study keeps the frontier of its runs as models of another size; `hardware`: that is not here."""
    return f"frontier-as-{size}{hardware and f'-on-{hardware}'}.jsonl"


def require_measured(folder: Path) -> None:
    """`UserError` where there is nothing to carry over."""
    if load_frontier(folder) is None:
        raise UserError(f"{folder} has no measured frontier to carry over: `redraft study frontier {folder}` first")


def carry(folder: Path, size: str, compute: Compute, batches: Sequence[int] = ()) -> Iterator[dict[str, Any]]:
    """Yields each new row, and keeps it; what is there is not measured again. `batches`: rows of a call that are timed, in
    place of those of the measured frontier (quality is of single rows, so it stays). `UserError` where no frontier was
    measured, or the rows that are there are of another machine or precision."""
    new, place = left(folder, size, batches), folder / carried_file(size)
    there = read_rows(place)
    if not there:
        append_row(place, next(row for row in read_rows(folder / FRONTIER) if row["family"] == TEXT))
    for name, own in new.items():
        yield from _of_run(compute.load(folder / RUNS / name), own, there, place, size, compute)


def left(folder: Path, size: str, batches: Sequence[int] = ()) -> dict[str, list[dict[str, Any]]]:
    """The measured rows whose cost at that size is not known yet, by run, in the batches that are to be timed."""
    require_measured(folder)
    done = {row_key(row) for row in read_rows(folder / carried_file(size))}
    new: dict[str, list[dict[str, Any]]] = {}
    for row in in_batches(read_rows(folder / FRONTIER), batches):
        if row_key(row) not in done:
            new.setdefault(row["name"], []).append(row)
    return new


def in_batches(rows: Sequence[dict[str, Any]], batches: Sequence[int]) -> list[dict[str, Any]]:
    """Every setting of the samplers once for each of the batches; as measured where none are asked for."""
    asked: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        for batch in (batches or [row["batch"]]) if row["family"] != TEXT else ():
            one = {**row, "batch": batch, "batch_measured": row["batch"]}
            asked.setdefault(row_key(one), one)
    return list(asked.values())


def cost_sentence(new: dict[str, list[dict[str, Any]]], size: str) -> str:
    """How many calls are to be timed, before the first is."""
    timed = {(name, row["steps"], row["batch"]): row for name, rows in new.items() for row in rows}
    calls = sum(row["nfe"] * _count(row) for row in timed.values())
    rows = ", ".join(f"{batch}" for batch in sorted({row["batch"] for row in timed.values()}))
    return (
        f"As {size}: {len(timed)} settings to time, {quantity(calls)} calls of the network in all, with {rows} rows each. It "
        f"can be stopped, and goes on with the next."
    )


def _count(row: dict[str, Any]) -> int:
    """Batches to time."""
    return min(max(1, int(row["timed"])), TIMED)


def _of_run(
    model: Model,
    rows: Sequence[dict[str, Any]],
    there: Sequence[dict[str, Any]],
    place: Path,
    size: str,
    compute: Compute,
) -> Iterator[dict[str, Any]]:
    """The rows of one run, a measurement for each number of steps and batch: a call costs the same at every temperature."""
    from redraft.evaluation.generation.speed import generate

    large = at_size(model, size)
    said = compute.record(large)
    for row in there:
        if row["family"] != TEXT and any(row[key] != said[key] for key in ("device_name", "precision", "compiled")):
            raise UserError(f"{place} was measured on another machine or in another precision: remove it")
    counts = {"as": size, "params": sum(parameters(large.network.shape).values())}
    counts |= {"params_measured": sum(model.parameters.values()), "carried": CARRIED, "measured": MEASURED}
    for steps, batch in dict.fromkeys((row["steps"], row["batch"]) for row in rows):
        own = [row for row in rows if (row["steps"], row["batch"]) == (steps, batch)]
        made = generate(large, _count(own[0]), batch, own[0]["length"], steps, compiled=compute.compiled)
        for row in own:
            new = {**row, **said, **counts, **_costs(made, row)}
            append_row(place, new)
            yield new


def at_size(model: Model, size: str) -> Model:
    """A model of the same family, block and vocabulary, of another size, with random weights."""
    from redraft.hub.model import Model
    from redraft.network.init import initialised

    shape = model.network.shape
    network = initialised(from_size(size, shape.block, shape.vocab, shape.cond), 0, model.network.compute)
    network = network.to(model.device).requires_grad_(False)
    if model.family.clocked or network.time is None:
        network.narrow()
    return Model(model.family, network, model.tokenizer, model.length, {})


def _costs(made: Generated, row: dict[str, Any]) -> dict[str, Any]:
    """Of the measured number of calls, each as long and as dear as the mean call here. Other batches than the measured ones
    take calls of their own: a call is left out where no row of the batch changes."""
    share = row["nfe"] / made.forwards if row["batch"] == row["batch_measured"] else 1.0
    return {
        "nfe": made.forwards * share,
        "tokens_per_second": made.tokens_per_second / share,
        "latency_p50": made.latency(0.5) * share,
        "latency_p95": made.latency(0.95) * share,
        "timed": len(made.seconds),
        "flops_per_token": made.flops_per_token * share,
        "peak_bytes": made.peak_bytes,
        "seconds_per_call": made.latency(0.5) / made.forwards,
    }


def matched(folder: Path, file: str, entropy: float | None) -> dict[int, Matching]:
    """Families at one entropy, at the speeds of that file, by the rows of a call."""
    found = load_frontier(folder, file)
    batches = sorted({place.speed.batch for place in found.places}) if found else []
    alone = {b: replace(found, places=tuple(p for p in found.places if p.speed.batch == b)) for b in batches if found}
    return {batch: told for batch, one in alone.items() if (told := match(one, entropy))}


def carried_sentence(rows: Sequence[dict[str, Any]]) -> str:
    """What is measured and what is carried over."""
    one = next(row for row in rows if row["family"] != TEXT)
    where = one["device_name"] or one["device"]
    return (
        f"As {one['as']} ({quantity(one['params'])} parameters). Measured here, with random weights, on {where} in "
        f"{one['precision']}: seconds, FLOPs and memory of a call. Carried over from runs of "
        f"{quantity(one['params_measured'])} parameters: the number of calls, and quality and entropy after them, "
        f"which a model of that size would have to show for itself."
    )
