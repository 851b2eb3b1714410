"""Ranges of numbers that come from outside: fields of the configuration and flags. No torch.

An upper end is where something behind it ends: a seed fills the generators' 64 bits, and the number of a sample, a row or a
token stays below 2^63 in every product that is made of it (2^40 steps of 2^20 rows are 2^60 samples).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Annotated, TypeVar

from annotated_types import Ge, Gt, Le, Lt

T = TypeVar("T")

SEEDS = -(2**63), 2**64 - 1  # what torch.Generator takes
WIDEST, LONGEST = 2**20, 2**40

Seed = Annotated[int, Ge(SEEDS[0]), Le(SEEDS[1])]
Count = Annotated[int, Gt(0), Le(WIDEST)]  # of rows, tokens in a row, layers, widths, draws
Many = Annotated[int, Gt(0), Le(LONGEST)]  # of steps
Amount = Annotated[float, Gt(0), Le(1e30)]  # of FLOPs or tokens (the largest runs: 1e27), and what float32 holds
Positive = Annotated[float, Gt(0), Le(1e6)]
Share = Annotated[float, Ge(0), Le(1)]
BelowOne = Annotated[float, Ge(0), Lt(1)]


def whole(least: int = 1, most: int = LONGEST) -> Callable[[str], int]:
    """What reads a flag that is a whole number from `least` to `most`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
        if not least <= value <= most:
            bound = f"at least {least}" if value < least else f"at most {most}"
            raise argparse.ArgumentTypeError(f"must be {bound}, got {text}")
        return value

    return read


def real(least: float = 0.0, most: float = 1e30, above: bool = False) -> Callable[[str], float]:
    """What reads a flag that is a number from `least` to `most`, or `above` the least."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
        within = least <= value <= most and not (above and value == least)
        if not within:  # NaN is not
            bound = f"above {least:g}" if above else f"at least {least:g}"
            raise argparse.ArgumentTypeError(f"must be a number {bound} and at most {most:g}, got {text}")
        return value

    return read


def several(read: Callable[[str], T]) -> Callable[[str], list[T]]:
    """What reads a flag of values between commas, each once."""

    def values(text: str) -> list[T]:
        found = list(dict.fromkeys(read(part) for part in text.split(",") if part.strip()))
        if not found:
            raise argparse.ArgumentTypeError(f"must be numbers between commas, got {text!r}")
        return found

    return values


seed = whole(*SEEDS)
