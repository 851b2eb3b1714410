"""A recommendation as a table and sentences, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from redraft.display import columns, quantity
from redraft.planning.recommend import FAR, Demand, Option, Recommendation
from redraft.scaling.results import label, span

HEAD = (
    "family", "steps", "parameters", "tokens", "loss, nats/token", "lost by few calls", "training", "generating",
    "s a text", "",
)  # fmt: skip


def recommendation_lines(found: Recommendation, source: str) -> list[str]:
    """What to train, what each option costs, and what none of it knows."""
    rows = [HEAD, *(_row(option) for option in found.options if not option.far)]
    counted = f", counted as {found.convention}" if found.convention else ""
    return [
        _verdict(found),
        "",
        *(columns(rows) if len(rows) > 1 else []),
        *_not_offered(found),
        _calls(found),
        "",
        f"By {source}{counted}; intervals are 95 %. {_hardware(found)}",
        "What this does not know:",
        *(f"- {sentence}" for sentence in found.unknown),
    ]


def _verdict(found: Recommendation) -> str:
    best, demand = found.chosen, found.demand
    if best is None:
        first = found.options[0] if found.options else None
        nearest = f" The nearest, {_short(first)}: {_why_not(first)}" if first else ""
        return f"No family does it within what was fitted ({_asked(demand)}).{nearest}"
    rest = {
        option.family: option
        for option in reversed(found.options)
        if not option.misses and not option.far and option.family != best.family
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
        + ("" if found.calls else " By likelihood alone: no frontier says what its samples lose by few calls.")
    )


def _why_not(option: Option) -> str:
    """What the nearest option lacks."""
    outside = f"Outside the study, {_far(option)}: a guess." if option.beyond > FAR else ""
    return " ".join(part for part in (f"{option.misses}." if option.misses else "", outside) if part)


def _not_offered(found: Recommendation) -> list[str]:
    """What the laws would have, far from all that was trained and from the best sizes too: no rows like the others."""
    far = [option for option in found.options if option.far]
    if not far:
        return []
    told = dict.fromkeys(
        f"{label(o.family)} in {o.steps} steps ({quantity(o.params)} parameters on {quantity(o.tokens)} tokens: {_far(o)} "
        f"outside the study)"
        for o in far
    )
    return ["", f"Not offered, for no law was fitted near it: {'; '.join(told)}."]


def _calls(found: Recommendation) -> str:
    """How the number of calls was weighed."""
    if found.calls is None:
        return (
            "The number of calls is not weighed: nothing here measured what samples lose by few. `redraft study frontier F` "
            "measures it, and --study F reads it."
        )
    return f"Lost by few calls: {found.calls.source}; a loss counts with this added, and those not measured come last."


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
        "not measured" if option.sampling_loss is None else f"{option.sampling_loss:.3f}",
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
        "calls": None if found.calls is None else asdict(found.calls),
    }
