"""Stage 5: what was found, in at most 60 lines. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from gpu_stages.plan import FAMILIES
from gpu_stages.record import Case, Report, Stage

LINES, WIDTH, FAILURES = 60, 150, 12


def table(report: Report) -> list[str]:
    """Failures first: a table that is cut short must not hide them."""
    stages = report.stages
    lines = [_machine(report), *(_stage(stage) for stage in stages.values()), *failures(report)]
    for name, part in PARTS.items():
        if name in stages and stages[name].cases:
            lines += part(stages[name])
    kept = (
        lines
        if len(lines) <= LINES
        else [*lines[: LINES - 1], f"... {len(lines) - LINES + 1} more lines: see the file"]
    )
    return [line[:WIDTH] for line in kept]


def failures(report: Report) -> list[str]:
    """FAIL lines name the case and the error; those beyond `FAILURES` are counted."""
    found = [
        f"FAIL stage {stage.name}, {case.name}: {case.error}"
        for stage in report.stages.values()
        for case in stage.cases
        if case.state == "fail"
    ]
    found += [f"FAIL stage {s.name} died: {s.error}" for s in report.stages.values() if s.state == "died"]
    more = len(found) - FAILURES
    return found if more <= 0 else [*found[:FAILURES], f"FAIL {more} more: see the file"]


def _machine(report: Report) -> str:
    facts = report.facts
    return f"{facts.get('device_name', '?')}, torch {facts.get('torch', '?')}, {facts.get('seconds', 0):.0f} s in all"


def _stage(stage: Stage) -> str:
    counts = Counter(case.state for case in stage.cases)
    said = ", ".join(f"{counts[state]} {state}" for state in ("pass", "fail", "refused", "skipped") if counts[state])
    return f"stage {stage.name:2} {stage.state:7} {stage.seconds:5.0f} s  {said}"


def _passed(stage: Stage) -> Iterator[tuple[Case, dict[str, Any]]]:
    return ((case, case.numbers) for case in stage.cases if case.state == "pass")


def ceilings(stage: Stage) -> list[str]:
    out = []
    for case, n in _passed(stage):
        if "bytes_per_second" in n:
            out.append(f"{case.name}: {n['bytes_per_second'] / 1e9:,.0f} GB/s")
        elif "flops_per_second" in n:
            out.append(f"{case.name}: {n['flops_per_second'] / 1e12:.3g}")
    products = [line.removeprefix("matmul ") for line in out if line.startswith("matmul")]
    attention = [line.removeprefix("attention ") for line in out if line.startswith("attention")]
    copies = [line for line in out if line.startswith("copy")]
    parts = {"matmul": products, "attention, forward and backward": attention}
    told = [f"{name}, TFLOP/s: {', '.join(some)}" for name, some in parts.items() if some]
    return [*copies, *(part for line in told for part in _folded(line))]


def laws(stage: Stage) -> list[str]:
    """The largest differences, bits, and host waits: each family's, where most of them are."""
    found = {case.name: n for case, n in _passed(stage)}
    off = [
        max((v for v in n.values() if isinstance(v, float)), default=0.0)
        for name, n in found.items()
        if "float" in name
    ]
    bits = [
        f"{name}: {'equal' if n['same_bits'] else 'not equal'} bits" for name, n in found.items() if "same_bits" in n
    ]
    waits = {name.removeprefix("waits of "): n for name, n in found.items() if name.startswith("waits of ")}
    each = ", ".join(f"{name} {n['training']:.0f}/{n['sampling']:.1f}" for name, n in waits.items())
    places: Counter[str] = Counter()
    for n in waits.values():
        places.update(n["training, where"])
    most = ", ".join(f"{place} {count}" for place, count in places.most_common(4))
    out = [f"largest difference of a loss, gradient or bound: {max(off):.1e}"] if off else []
    out += [", ".join(bits)] if bits else []
    return out + ([*_folded(f"host waits, step/call: {each}"), f"in training most at: {most}"] if each else [])


def steps(stage: Stage) -> list[str]:
    out = list[str]()
    for case, n in _passed(stage):
        out = out or [f"a training step, {n['parameters'] / 1e6:,.3g} M parameters"]
        rate = f"{n['tokens_per_second']:,.0f} tokens/s, {n['flops_per_second'] / 1e12:.3g} TFLOP/s"
        shares = {"of the product": n["share"], "MFU": n["mfu"], "busy": n.get("busy")}
        said = [f"{share:.0%} {name}" for name, share in shares.items() if share is not None]
        if n["allocated"] is not None:
            held, plan = n["reserved"] / 1e9, n["planned"] / 1e9
            said.append(f"{n['allocated'] / 1e9:.1f} GB ({held:.1f} held, {plan:.1f} planned)")
        out.append(", ".join([f"{case.name}: {rate}", *said]))
    profiled = [(case.name, n["top"]) for case, n in _passed(stage) if n.get("top")]
    for name, top in profiled[-1:]:
        out += _folded(f"top of {name}: {', '.join(f'{kernel[:28]} {share:.0%}' for kernel, share in top[:4])}")
    return out


def sampling(stage: Stage) -> list[str]:
    """A line for each family and batch; the steps side by side."""
    rows: dict[str, list[str]] = {}
    for case, n in _passed(stage):
        family, _, way = case.name.partition(", ")
        busy = f" {n['busy']:.0%}" if n["busy"] is not None else ""
        rows.setdefault(family, []).append(f"{way}: {n['tokens_per_second']:,.0f}/s {n['latency']:.2f} s{busy}")
    order = sorted(rows, key=lambda row: (FAMILIES.index(row.split()[0]), int(row.rpartition("x")[2])))
    lines = (_folded(f"{row}, {', '.join(rows[row])}") for row in order)
    return ["sampling: tokens/s, latency, busy", *(part for line in lines for part in line)]


def commands(stage: Stage) -> list[str]:
    numbers = {case.name: n for case, n in _passed(stage)}
    done, written = numbers.get("train, continued"), numbers.get("sample")
    out = []
    if done:
        killed = numbers.get("train, killed", {}).get("step", "?")
        rate = f"{done['tokens_per_second']:,.0f} tokens/s" if done["tokens_per_second"] else "no pace"
        out.append(
            f"trained {done['steps']} steps, killed at {killed}, the last {done['steps_again']} after it: "
            f"loss {done['loss']:.3f}, {rate}, {done['device']} {done['precision']}, compiled: {done['compiled']}"
        )
    return out + ([f"sample: {written['tokens_per_second']:,.0f} tokens/s"] if written else [])


def _folded(line: str) -> list[str]:
    """At commas, into lines of `WIDTH`."""
    out = [""]
    for word in line.split(", "):
        if out[-1] and len(out[-1]) + len(word) + 2 > WIDTH:
            out.append(f"  {word}")
        else:
            out[-1] = f"{out[-1]}, {word}" if out[-1] else word
    return out


PARTS: dict[str, Callable[[Stage], list[str]]] = {
    "0": ceilings,
    "1": laws,
    "2a": steps,
    "2b": steps,
    "3": sampling,
    "4": commands,
}
