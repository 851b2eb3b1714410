"""`redraft sample` as it writes: a line or the whole text on a terminal, frames elsewhere, and a recording to animate."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from redraft.hub.recording import Cell, Frame, Recording, cells

if TYPE_CHECKING:
    from redraft.hub.model import Model
    from redraft.types import Canvas

STYLES = {"given": "dim", "unwritten": "bright_black", "new": "bold yellow", "written": "none"}
_LINE = 100  # characters of the text on one line


class Recorder:
    """The first text of a canvas, frame by frame."""

    def __init__(self, model: Model, canvas: Canvas, options: Namespace):
        self.model, self.options, self.frames = model, options, list[Frame]()
        self.fixed, self.before = canvas.fixed[0].tolist(), canvas.tokens[0].tolist()
        self.terminal = sys.stderr.isatty()
        self.live: Any = None
        if options.watch and self.terminal:
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), auto_refresh=False, vertical_overflow="visible")
            self.live.start()
        if options.animate is not None:
            self.frames.append(self.frame(canvas, 0, 0.0))

    def add(self, canvas: Canvas, calls: int, seconds: float) -> None:
        """What a step wrote."""
        if self.options.watch or self.options.animate is not None:
            frame = self.frame(canvas, calls, seconds)
            if self.options.animate is not None:
                self.frames.append(frame)
            if self.options.watch:
                self.show(frame)
                return
        if self.terminal and not self.options.json:
            self.line(canvas)

    def frame(self, canvas: Canvas, calls: int, seconds: float) -> Frame:
        from redraft.hub.model import MARK

        ids = canvas.tokens[0].tolist()
        found = cells(self.model.tokenizer.decode, ids, self.fixed, self.model.family.vocab, MARK, self.before)
        self.before = ids
        return Frame(found, calls, seconds)

    def show(self, frame: Frame) -> None:
        """The whole text in place on a terminal; elsewhere a line for each frame."""
        if self.live is None:
            print(f"[{frame.calls} calls, {frame.seconds:.2f} s] {frame.text!r}", file=sys.stderr, flush=True)
            return
        self.live.update(_coloured(frame.cells, f"\n{frame.calls} calls, {frame.seconds:.2f} s"), refresh=True)

    def line(self, canvas: Canvas) -> None:
        """The beginning of the text on one line of a terminal."""
        from redraft.types import Canvas

        [text] = self.model.show(Canvas(canvas.tokens[:1, : 2 * _LINE], canvas.fixed[:1, : 2 * _LINE]))
        print(f"\r\033[K{' '.join(text.split())[:_LINE]}", end="", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Leave the terminal as it was; also where sampling was interrupted."""
        if self.live is not None:
            self.live.stop()
        elif self.terminal:
            print("\r\033[K", end="", file=sys.stderr)

    def save(self) -> None:
        """Write the animation that was asked for."""
        if self.options.animate is not None:
            from redraft.report.animation import write_animation

            title = f"{self.model.family.name}, {self.options.sampler or self.model.family.sampler}"
            write_animation(Recording(title, tuple(self.frames)), self.options.animate)
            print(f"{len(self.frames)} frames in {self.options.animate}", file=sys.stderr)


def _coloured(found: tuple[Cell, ...], clock: str) -> Any:
    from rich.text import Text

    from redraft.report.page import visible

    text = Text()
    for cell in found:
        text.append(visible(cell.text), style=STYLES[cell.state])
    return text.append(clock, style="dim")
