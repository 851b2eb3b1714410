"""A measured frontier carried over to another size on hardware that is not here, by the serving model.

A call over so many tokens of so many rows multiplies, and reads all weights once (`BYTES` each); it takes the longer of the
two (planning/serving_cost.py). Alone a call costs its weights; in large batches its tokens, or the cache of those that it does
not read again. The number of calls is the small run's, and so are the tokens that go through the network in them: metered
FLOPs over the FLOPs of a token. With other batches than the measured one the calls are an upper bound, for one is left out
where no row of its batch changes. The time to start a kernel and to draw tokens is not in the model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redraft.display import quantity
from redraft.evaluation.compute import Compute
from redraft.files import write_text
from redraft.frontier.carried import CARRIED, carried_file, in_batches, require_measured
from redraft.frontier.measure import read_rows
from redraft.frontier.pareto import FRONTIER, TEXT
from redraft.network.flops import forward_flops, parameters
from redraft.network.sizes import Shape, from_size
from redraft.planning.serving_cost import BYTES, USEFUL, Hardware
from redraft.studies.execute import RUNS

MODELLED = ("tokens_per_second", "latency_p50", "latency_p95", "flops_per_token")


def serve(folder: Path, size: str, device: Hardware, batches: Sequence[int] = ()) -> list[dict[str, Any]]:
    """The rows of the measured frontier at that size on that device; kept in the study's folder."""
    require_measured(folder)
    measured = read_rows(folder / FRONTIER)
    rows = [next(row for row in measured if row["family"] == TEXT)]
    shapes = {
        name: Compute("cpu").load(folder / RUNS / name).network.shape
        for name in {row["name"] for row in measured} - {TEXT}
    }
    rows += [served(row, shapes[row["name"]], size, device) for row in in_batches(measured, batches)]
    write_text(
        folder / carried_file(size, device.name), "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    )
    return rows


def served(row: dict[str, Any], small: Shape, size: str, device: Hardware) -> dict[str, Any]:
    """One setting of a run of shape `small`."""
    large = from_size(size, small.block, small.vocab, small.cond)
    length, batch, calls = row["length"], row["batch"], row["nfe"]
    through = row["flops_per_token"] / _forward(small, length)  # tokens through the network for one that is written
    flops = through * _forward(large, length)
    multiply = flops * batch * length / calls / device.rate
    call = max(multiply, _read(large, batch, length, through * length / calls) / device.bandwidth)
    seconds = calls * call
    return row | {
        "as": size,
        "params": sum(parameters(large).values()),
        "params_measured": sum(parameters(small).values()),
        "carried": CARRIED,
        "modelled": MODELLED,
        "device": device.name,
        "device_name": device.name,
        "precision": "bfloat16",
        "compiled": False,
        "timed": 0,
        "peak_bytes": None,
        "seconds_per_call": call,
        "flops_per_token": flops,
        "tokens_per_second": batch * length / seconds,
        "latency_p50": seconds,
        "latency_p95": seconds,
    }


def _read(shape: Shape, batch: int, length: int, tokens: float) -> float:
    """Bytes that a call over `tokens` of each row reads: the weights (embeddings are looked up), and keys and values of those
    that are in a cache, on average half of the others."""
    weights = parameters(shape)
    cached = max(length - tokens, 0.0) / 2
    return BYTES * (
        sum(weights.values()) - weights["embedding"] + 2 * shape.depth * shape.keys * shape.head * batch * cached
    )


def _forward(shape: Shape, length: int) -> float:
    """FLOPs of a token in a row of `length`, everything counted."""
    return sum(forward_flops(shape, length).values())


def served_sentence(rows: Sequence[dict[str, Any]], device: Hardware) -> str:
    """What is computed and what is carried over."""
    one = next(row for row in rows if row["family"] != TEXT)
    return (
        f"As {one['as']} ({quantity(one['params'])} parameters) on one {device.name}, by the serving model, not measured: a "
        f"call takes the time to read {BYTES:g} bytes a weight, and its cache, at {quantity(device.bandwidth)}B/s, or to "
        f"multiply at {quantity(device.rate)}FLOP/s ({USEFUL:.0%} of its peak), whichever is longer. Carried over from runs "
        f"of {quantity(one['params_measured'])} parameters: the number of calls, and quality and entropy after them, which a "
        f"model of that size would have to show for itself."
    )
