"""Tables that read well on a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    line = lambda row: "| " + " | ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)) + " |"
    return [line(head), "| " + " | ".join("-" * width for width in widths) + " |", *map(line, body)]


def cell(found: dict[str, Any] | None) -> str:
    """A value with its interval; what cannot be asked is a dash."""
    if found is None:
        return "-"
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
