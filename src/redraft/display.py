"""Progress on standard error (a live line on a terminal, plain lines elsewhere), JSON output, quantities in words."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

EVERY = 5.0  # seconds between lines of progress where there is no terminal


def quantity(value: float, unit: str = "") -> str:
    """12.3M, 270 GFLOPs, 1.5e+18 FLOPs: three figures, a letter up to a quadrillion; a billion is B, of a unit G."""
    value = float(f"{value:.3g}")  # before a letter is chosen: 999.9 G is 1 T
    for limit, letter in ((1e12, "T"), (1e9, "G" if unit else "B"), (1e6, "M"), (1e3, "k")):
        if limit <= abs(value) < 1e15:
            return f"{value / limit:.3g}{' ' if unit else ''}{letter}{unit}"
    return f"{value:.3g}{' ' if unit else ''}{unit}"


def duration(seconds: float) -> str:
    """45 s, 12 min, 3.4 h, 6.1 days."""
    for limit, unit in ((86400 * 2, "days"), (7200, "h"), (120, "min")):
        if seconds >= limit:
            return f"{seconds / {'days': 86400, 'h': 3600, 'min': 60}[unit]:.3g} {unit}"
    return f"{seconds:.0f} s"


def monte_carlo(error: float | None) -> str:
    """The standard error of a bound's draws, or that one draw does not tell."""
    return "Monte Carlo s.e. unknown, of one draw" if error is None else f"Monte Carlo s.e. {error:.4f}"


def over_windows(error: float | None) -> str:
    """The standard error of the choice of windows, or that one window does not tell."""
    return "s.e. over windows unknown, of one window" if error is None else f"s.e. over windows {error:.4f}"


def lost_sentence(share: float) -> str:
    """What a tokenizer does not give back of a text, and what becomes of bits/byte (`text.tokenizers.tokenizer.MOST_LOST`)."""
    return f"{share:.2%} of its bytes are unknown to the tokenizer or lost by it (beyond 1 % bits/byte are withheld)"


def perplexity(value: float | None) -> str:
    return "beyond all numbers" if value is None else f"{value:.3f}"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equally many cells as lines, with the cells of a column below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


class Line:
    """One line that is rewritten in place on a terminal, and printed now and then elsewhere."""

    def __init__(self, quiet: bool = False):
        self.live, self.quiet = sys.stderr.isatty(), quiet
        self.last = 0.0
        self.shown = False

    def show(self, text: str, force: bool = False) -> None:
        now = time.monotonic()
        if self.quiet or (not force and now - self.last < (0.1 if self.live else EVERY)):
            return
        self.last, self.shown = now, True
        print(f"\r\033[K{text}" if self.live else text, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.live and self.shown:
            print(file=sys.stderr)
            self.shown = False


class Left:
    """How much is done and how long the rest will take, for a line of progress."""

    def __init__(self, total: int, what: str):
        self.total, self.what, self.began = total, what, time.monotonic()

    def __call__(self, done: int) -> str:
        gone = time.monotonic() - self.began
        left = f", {duration(gone / done * (self.total - done))} left" if 0 < done < self.total else ""
        return f"{quantity(done)} of {quantity(self.total)} {self.what}{left}"


def tokenising(quiet: bool = False) -> Any:
    """A progress callback for preparing a corpus."""
    line = Line(quiet=quiet)

    def progress(done: int, total: int | None) -> None:
        whole = f" of {quantity(total, 'B')}" if total else ""
        line.show(f"tokenising {quantity(done, 'B')}{whole}", force=bool(total) and done == total and line.shown)
        if total and done >= total:
            line.close()

    return progress


def emit(value: Any) -> None:
    """Strict JSON on standard output, for machines."""
    print(json.dumps(value, indent=1, allow_nan=False))
