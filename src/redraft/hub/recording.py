"""A text being written, frame by frame, as strings: what a terminal shows and what an animation plays. No torch.

A frame has one cell for each token of a row. Its text is what decoding that token adds to what stands before it, so the
cells of a finished row join to the decoded text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Literal

State = Literal["given", "unwritten", "new", "written"]
_CONTEXT = 8  # tokens before one that may change how it is decoded: the bytes of a character, the space before a word


@dataclass(frozen=True)
class Cell:
    """One token. `given` by the prompt or suffix, `unwritten`, `new` since the frame before, or `written` earlier."""

    text: str
    state: State


@dataclass(frozen=True)
class Frame:
    """A canvas after `calls` passes through the network and `seconds` of sampling."""

    cells: tuple[Cell, ...]
    calls: int
    seconds: float

    @property
    def text(self) -> str:
        return "".join(cell.text for cell in self.cells)


@dataclass(frozen=True)
class Recording:
    """Every frame of one text, from the canvas before the first step to the finished one."""

    title: str
    frames: tuple[Frame, ...]


def cells(
    decode: Callable[[Sequence[int]], str],
    ids: Sequence[int],
    fixed: Sequence[bool],
    vocab: int,
    mark: str,
    before: Sequence[int] | None = None,
) -> tuple[Cell, ...]:
    """The cells of a row of `ids`, of which those from `vocab` on are not written; `before`: its ids a frame ago."""
    texts = _pieces(decode, ids, vocab, mark)
    states = (_state(i, ids, fixed, vocab, before) for i in range(len(ids)))
    return tuple(Cell(text, state) for text, state in zip(texts, states, strict=True))


def _state(i: int, ids: Sequence[int], fixed: Sequence[bool], vocab: int, before: Sequence[int] | None) -> State:
    if fixed[i]:
        return "given"
    if ids[i] >= vocab:
        return "unwritten"
    return "written" if before is not None and before[i] == ids[i] else "new"


def _pieces(decode: Callable[[Sequence[int]], str], ids: Sequence[int], vocab: int, mark: str) -> list[str]:
    """What each id adds to the text before it. A character of several tokens stands in the cell of its last."""
    out, run = list[str](), list[int]()
    for number in ids:
        if number >= vocab:
            out.append(mark)
            run = []
            continue
        known, now = decode(run), decode([*run, number])
        shared = len(known) if now.startswith(known) else len(commonprefix((known, now)))  # noqa: RUF071, by characters
        back, at = len(known) - shared, len(out) - 1
        while back > 0 and at >= 0:  # tokens before were parts of a character, shown as if damaged
            taken = min(back, len(out[at]))
            out[at], back, at = out[at][: len(out[at]) - taken], back - taken, at - 1
        out.append(now[shared:])
        run = [*run, number][-_CONTEXT:]
    return out
