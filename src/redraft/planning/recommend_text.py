"""A recommendation as a table and sentences, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from redraft.display import quantity
from redraft.planning.recommend import FAR, Demand, Option, Recommendation
from redraft.scaling.results import label, span

HEAD = ("family", "steps", "parameters", "tokens", "loss, nats/token", "training", "generating", "s a text", "")


def recommendation_lines(found: Recommendation, source: str) -> list[str]:
    """What to train, what each option costs, and what none of it knows."""
    rows = [HEAD, *(_row(option) for option in found.options)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    counted = f", counted as {found.convention}" if found.convention else ""
    return [
        _verdict(found),
        "",
        *table,
        "",
        f"By {source}{counted}; intervals are 95 %. {_hardware(found)}",
        "What this does not know:",
        *(f"- {sentence}" for sentence in found.unknown),
    ]


def _verdict(found: Recommendation) -> str:
    best, demand = found.chosen, found.demand
    if best is None:
        nearest = f" The nearest, {_short(found.options[0])}: {found.options[0].misses}." if found.options else ""
        return f"No family does it ({_asked(demand)}).{nearest}"
    rest = {
        option.family: option
        for option in reversed(found.options)
        if not option.misses and option.family != best.family
    }
    others = "; ".join(f"{label(name)} {span(option.loss, 4)}" for name, option in rest.items())
    against = f" Others: {others}." if others else ""
    return (
        f"Train {_short(best)} on {quantity(best.tokens)} tokens: {span(best.loss, 4)} nats/token "
        f"({best.loss_kind}), {quantity(best.training_flops, 'FLOPs')} of training"
        + (f" and {quantity(best.serving_flops, 'FLOPs')} of generating" if best.serving_flops else "")
        + f", {best.seconds:.3g} s a text."
        + (f" Outside the study, {_far(best)}: a guess." if best.beyond > FAR else "")
        + against
    )


def _short(option: Option) -> str:
    return f"{label(option.family)} with {quantity(option.params)} parameters, {option.steps} steps a text"


def _asked(demand: Demand) -> str:
    parts = [
        demand.budget is not None and f"within {quantity(demand.budget, 'FLOPs')}",
        demand.quality is not None and f"at most {demand.quality:g} nats/token",
        demand.latency is not None and f"at most {demand.latency:g} s a text of {demand.length} tokens",
        bool(demand.generate) and f"{quantity(demand.generate)} tokens to be generated",
    ]
    return ", ".join(part for part in parts if part)


def _hardware(found: Recommendation) -> str:
    device = found.hardware
    return (
        f"Generating on one {device.name}: {quantity(device.rate, 'FLOP/s')} useful, "
        f"{quantity(device.bandwidth, 'B/s')} read, texts of {found.demand.length} tokens one at a time."
    )


def _far(option: Option) -> str:
    return f"{option.beyond_in} {option.beyond:.3g}x"


def _row(option: Option) -> tuple[str, ...]:
    far = f"{_far(option)} outside the study" if option.beyond > 1 else ""
    return (
        label(option.family), str(option.steps), quantity(option.params), quantity(option.tokens), span(option.loss, 4),
        quantity(option.training_flops), quantity(option.serving_flops) if option.serving_flops else "-",
        f"{option.seconds:.3g}", "; ".join(filter(None, (option.misses, far))),
    )  # fmt: skip


def recommendation_json(found: Recommendation) -> dict[str, Any]:
    """Every option under the names of `Option`, best first, and the chosen one again."""
    options = [asdict(option) | {"total_flops": option.total_flops} for option in found.options]
    return {
        "demand": asdict(found.demand),
        "hardware": asdict(found.hardware) | {"rate": found.hardware.rate},
        "convention": found.convention,
        "chosen": options[0] if found.chosen else None,
        "options": options,
        "unknown": list(found.unknown),
    }
