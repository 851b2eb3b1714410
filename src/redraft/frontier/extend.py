"""Temperatures beyond a sweep, until the curve has the common entropy between two of its settings, or cannot have it.

Entropy rises with temperature, so a curve that lies above the entropy is cooled and one below it is warmed. The next
temperature is where the straight line through the two settings at that end meets the entropy, a fifth further, and never
beyond half or one and a half times the last. At temperature 0 (greedy) there is nothing colder, and from `HOTTEST` on
samples are noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

HOTTEST = 4.0
COLDEST = 0.1  # below it, but for greedy, nothing differs from greedy
TRIES = 8  # further settings of a curve, at most
BEYOND = 1.2  # of the way to the entropy that the line promises: noise must not leave the setting just short of it


def bracketed(curve: Mapping[float, float], level: float) -> bool:
    """Whether two neighbours of a curve (entropy in nats by temperature) have the level between them."""
    entropies = sorted(curve.values())
    return any(low <= level <= high and low < high for low, high in pairwise(entropies))


def next_temperature(curve: Mapping[float, float], level: float) -> float | None:
    """The temperature to measure next; None where the curve brackets the level, or nothing colder or hotter will."""
    if not curve or bracketed(curve, level):
        return None
    warmer = max(curve.values()) < level
    ends = sorted(curve, reverse=warmer)
    if (warmer and ends[0] >= HOTTEST) or (not warmer and ends[0] == 0):
        return None
    reach = (1.5 if warmer else 0.5) * ends[0]
    least = (1.05 if warmer else 0.95) * ends[0]
    aim = _aim(curve, level, ends)
    found = min(max(aim, least), reach) if warmer else max(min(aim, least), reach)
    found = round(found, 3)
    return min(found, HOTTEST) if warmer else found if found >= COLDEST else 0.0


def _aim(curve: Mapping[float, float], level: float, ends: list[float]) -> float:
    """Where the line through the two settings at the end meets the level, and a fifth beyond; far where it does not."""
    far = 0.0 if max(curve.values()) >= level else HOTTEST
    if len(ends) < 2:
        return far
    slope = (curve[ends[0]] - curve[ends[1]]) / (ends[0] - ends[1])
    return ends[0] + BEYOND * (level - curve[ends[0]]) / slope if slope > 0 else far


def why_not(coldest: float, hottest: float, below: bool, settings: int) -> str:
    """Why a curve does not reach an entropy that lies below it, or above."""
    if settings == 1:
        return "one setting is no curve: sweep temperatures"
    if below:
        return "greedy reached, nothing is colder" if coldest == 0 else "sweep colder"
    return f"temperature {hottest:g} reached, samples are noise" if hottest >= HOTTEST else "sweep hotter"
