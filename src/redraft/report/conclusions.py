"""Conclusions of a study as sentences: which family wins under which measure, by how much, with what certainty."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby, pairwise

from redraft.display import quantity
from redraft.frontier.matched_entropy import Lead, Matching
from redraft.frontier.pareto import Frontier, Speed
from redraft.scaling.laws.isoflop import GIVEN, TOO_FEW, Minimum
from redraft.scaling.power import could_have_seen
from redraft.scaling.results import FamilyFit, Fits, label, span
from redraft.scaling.summary import NEEDED, multiplier_sentence, pair_sentence

MINIATURE = 1e8  # parameters; the smallest models of published scaling studies are near it
LEADS = 3  # sentences on the matched comparison; those of the slowest settings, whose quality is best


def shown(family: FamilyFit) -> list[Minimum]:
    """The minima that a family's laws may rest on."""
    return [
        m for m in family.laws.minima if TOO_FEW not in m.flags or GIVEN in m.flags or family.laws is family.envelope
    ]


def conclude(fits: Fits, speeds: Frontier | None = None, matching: Matching | None = None) -> list[str]:
    """Who wins under which measure and by how much, with 95 % intervals, and how far to trust it."""
    lines = [*_loss_lines(fits), multiplier_sentence(fits), " ".join(map(pair_sentence, fits.pairs))]
    if speeds:
        lines.append(_extremes(speeds))
        lines += matched_lines(matching) if matching and matching.matches else _speed_lines(speeds)
    return [line for line in (*lines, _caveat(fits)) if line]


def _loss_lines(fits: Fits) -> Iterator[str]:
    best = {name: m for name in fits.families if (m := _top(fits, name))}
    if not best:
        yield "No family has two budgets with three sizes each, or three budgets, so nothing is fitted."
        yield from _lowest_line(fits)
        return
    ranked = sorted(best, key=lambda name: best[name].loss.value)
    first, others = best[ranked[0]], ranked[1:]
    text = f"At {quantity(first.budget, 'FLOPs')} {label(ranked[0])} has the lowest loss, {span(first.loss)} nats/token"
    yield text + "".join(f"; {label(name)} {span(best[name].loss)}" for name in others) + "."
    close = [f"{label(a)} and {label(b)}" for a, b in pairwise(ranked) if _overlap(best[a], best[b])]
    bounds = [label(name) for name in ranked if fits.families[name].loss_kind == "bound"]
    how_far = [f"Intervals overlap, so the order is not settled, between {', '.join(close)}."] if close else []
    if others and any(m.loss.low is None or m.loss.high is None for m in best.values()):
        how_far.append("Nothing tells how far chance moves these losses, so the order is not settled: add seeds.")
    if bounds and len(bounds) < len(ranked):
        how_far.append(
            f"Those of {', '.join(bounds)} are upper bounds: part of their gap may be the bound, not the model."
        )
    if how_far:
        yield " ".join(how_far)
    laws = [(name, law) for name in best if (law := fits.families[name].laws.params)]
    exponents = ", ".join(f"{label(name)} {span(law.exponent, 2)}" for name, law in laws)
    if laws:
        yield f"The best size grows with compute as C^a, with a: {exponents}."
    if untold := [label(name) for name in best if not fits.families[name].laws.params]:
        yield f"How the best size of {', '.join(untold)} grows with compute, these runs do not tell: {NEEDED}."


def _lowest_line(fits: Fits) -> Iterator[str]:
    """Where nothing is fitted: the lowest losses of the largest budget that all have."""
    shared = set.intersection(*({m.budget for m in family.laws.minima} for family in fits.families.values()))
    if not shared:
        return
    top = {n: next(m for m in family.laws.minima if m.budget == max(shared)) for n, family in fits.families.items()}
    ranked = sorted(top, key=lambda name: top[name].loss.value)
    told = "; ".join(f"{label(name)} {span(top[name].loss)}" for name in ranked)
    yield f"Lowest losses at {quantity(max(shared), 'FLOPs')}, nats/token (by chance, perhaps: add seeds): {told}."


def _top(fits: Fits, name: str) -> Minimum | None:
    """The minimum at the largest budget that every fitted family has; at its own largest where there is none."""
    fitted = {n: shown(f) for n, f in fits.families.items() if f.laws.loss}
    budgets = [{m.budget for m in minima} for minima in fitted.values()]
    shared = set.intersection(*budgets) if budgets else set()
    own = [m for m in fitted.get(name, ()) if not shared or m.budget in shared]
    return own[-1] if own else None


def _overlap(a: Minimum, b: Minimum) -> bool:
    return a.loss.high is not None and b.loss.low is not None and a.loss.high > b.loss.low


def _extremes(speeds: Frontier) -> str:
    best, fastest = speeds.front[-1], speeds.front[0]
    return (
        f"Sampling{_where(best)}: {in_steps(best)} is best under the judge, {best.quality:.3g} nats/token at "
        f"{quantity(best.tokens_per_second)} tokens/s, entropy {best.entropy:.3g}; {in_steps(fastest)} is fastest, "
        f"{quantity(fastest.tokens_per_second)} tokens/s at {fastest.quality:.3g}, entropy {fastest.entropy:.3g}."
    )


def _where(speed: Speed) -> str:
    """What the times are of, where the measurements say it."""
    if not speed.device_name:
        return ""
    name = "a CPU" if speed.device.startswith("cpu") else speed.device_name
    return f" on {name} in {speed.precision}" + ", compiled" * speed.compiled


def _speed_lines(speeds: Frontier) -> Iterator[str]:
    """Where no entropy is common to all: the front, what steps buy, and whose quality is to be discounted."""
    front, real = speeds.front, speeds.real
    groups = [(name, list(group)) for name, group in groupby(front, key=lambda s: s.family)]
    steps = [f"{label(name)} ({', '.join(_steps(s) for s in group)})" for name, group in groups]
    yield f"No setting measured is both faster and better than, fastest first (steps): {', '.join(steps)}."
    yield from _steps_lines(speeds)
    if real:
        dull = [s for s in front if real.entropy - s.entropy > 2 * (real.entropy_se**2 + s.entropy_se**2) ** 0.5]
        if dull:
            which = "All of these are" if len(dull) == len(front) else f"{', '.join(map(in_steps, dull))} are"
            yield f"{which} less varied than held-out text by more than two standard errors: discount their quality."


def _steps_lines(speeds: Frontier) -> Iterator[str]:
    """What more steps buy: each family's quality at its fewest and most steps, and the gain with its 95 % interval."""
    gains = []
    for name, group in groupby(
        sorted((place.speed for place in speeds.places), key=lambda s: (s.family, s.steps)), key=lambda s: s.family
    ):
        plain = [s for s in group if s.temperature == 1 and s.top_p == 1]
        own = list({s.steps: s for s in plain}.values())
        if len(own) > 1:
            gain, error = own[0].quality - own[-1].quality, 1.96 * math.hypot(own[0].quality_se, own[-1].quality_se)
            gains.append(
                f"{label(name)} {own[0].quality:.2f} in {own[0].steps}, {own[-1].quality:.2f} in {own[-1].steps} steps "
                f"(gain {gain:.2f}, {gain - error:.2f} to {gain + error:.2f})"
            )
    if gains:
        yield f"Quality against steps, nats/token under the judge: {'; '.join(gains)}."


def in_steps(speed: Speed) -> str:
    """'Duo in 16 steps at T 0.9'."""
    return f"{label(speed.family)} in {speed.steps} steps{_knobs(speed)}"


def _steps(speed: Speed) -> str:
    return f"{speed.steps}{_knobs(speed)}"


def _knobs(speed: Speed) -> str:
    return f" at T {speed.temperature:g}" * (speed.temperature != 1) + f" at top-p {speed.top_p:g}" * (speed.top_p != 1)


def matched_lines(matching: Matching) -> Iterator[str]:
    """Who is best at the common entropy from which speed on, and which curves do not reach it."""
    whose = "stated" if matching.stated else "that of held-out text"
    leads = matching.leads()
    for number, lead in enumerate(leads[-LEADS:]):
        entropy = f"entropy {matching.entropy.value:.3g} ({whose})" if number == 0 else "the same entropy"
        yield f"At {quantity(lead.rate)} tokens/s or more and {entropy}, {_lead(lead)}."
    if matching.misses:
        whom: dict[str, list[str]] = {}
        for miss in matching.misses:
            whom.setdefault(miss.why, []).append(
                f"{label(miss.family)} in {miss.steps} steps, {miss.low:.3g} to {miss.high:.3g}"
            )
        told = "; ".join(f"{', '.join(dict.fromkeys(curves))}: {why}" for why, curves in whom.items())
        yield (
            f"{len(matching.misses)} of {len(matching.misses) + len(matching.matches)} curves do not reach that entropy "
            f"({told})."
        )


def _lead(lead: Lead) -> str:
    best = f"{label(lead.best.family)} in {lead.best.steps} steps"
    if not lead.rivals:
        return f"{best} is alone: {span(lead.best.quality)} nats/token"
    (rival, gap), value = lead.rivals[0], span(lead.best.quality)
    against = f"{label(rival.family)} in {rival.steps} steps, {span(rival.quality)}"
    resolved = gap.low is not None and gap.low > 0
    how = "is best" if resolved else "is lowest but not told apart"
    seen = None if resolved else could_have_seen(gap)
    power = "" if seen is None else f"; {seen:.2g} could have been seen, at 80 % power"
    return f"{best} {how}: {value} nats/token against {against} (gap {span(gap, 2)}{power})"


def _caveat(fits: Fits) -> str:
    """How small the study is, and how many warnings its fits carry."""
    text = ""
    largest = max(m.params.value for family in fits.families.values() for m in family.laws.minima)
    if largest < MINIATURE:
        text = f"This is a miniature (best sizes up to {quantity(largest)} parameters): the order may differ at scale."
    if fits.warnings:
        text += f" The fits carry {len(fits.warnings)} warning{'s' * (len(fits.warnings) > 1)}; the report lists them."
    return text.strip()
