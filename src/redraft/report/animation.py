"""An animation of a text being written: standalone SVG, HTML (play, pause, scrub) or GIF. Loads no torch.

Frames are shown at the pace at which they were made, stretched to between four and twelve seconds for the whole; the clock
and the number of calls under the text are the recorded ones.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from pathlib import Path

from markupsafe import Markup

from redraft.errors import UserError, require
from redraft.files import whole_file, write_text
from redraft.hub.recording import Cell, Frame, Recording
from redraft.report.page import render, visible

WIDTH = 76  # characters of a line
MOST_FRAMES = 160  # beyond, frames in between are left out
SHORTEST, LONGEST, HELD = 4.0, 12.0, 2.0  # seconds of playing, and that the last frame stays
_GLYPH, _LINE, _EDGE = 8.4, 20, 16  # width of a character, height of a line and margin, in pixels
COLOURS = {"given": "#57606a", "unwritten": "#c4c9d0", "new": "#b3470a", "written": "#1f2328"}
KINDS = (".svg", ".html", ".gif")


def check_animation(path: Path) -> None:
    """`UserError` where an animation cannot be written there."""
    if path.suffix.lower() not in KINDS:
        raise UserError(f"--animate {path}: its name must end in {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--animate {path}: there is no folder {path.absolute().parent}")
    if path.suffix.lower() == ".gif":
        require("--animate to .gif (.svg needs none)", "figures", "vl_convert", "PIL")


def write_animation(recording: Recording, path: Path) -> None:
    """The recording as a file of the kind that its name says; whole or not at all."""
    check_animation(path)
    recording = thinned(recording)
    if path.suffix.lower() == ".svg":
        write_text(path, svg(recording))
    elif path.suffix.lower() == ".html":
        write_text(path, html(recording))
    else:
        _write_gif(recording, path)


def thinned(recording: Recording) -> Recording:
    """At most `MOST_FRAMES`, evenly spread, the first and the last among them. Tokens of the others appear as written."""
    count = len(recording.frames)
    if count <= MOST_FRAMES:
        return recording
    kept = sorted({round(i * (count - 1) / (MOST_FRAMES - 1)) for i in range(MOST_FRAMES)})
    return Recording(recording.title, tuple(recording.frames[i] for i in kept))


def starts(frames: Sequence[Frame]) -> tuple[list[float], float]:
    """When each frame appears and how long the whole plays, in seconds, at the recorded pace."""
    first, last = frames[0].seconds, frames[-1].seconds
    length = min(max(last - first, SHORTEST), LONGEST)
    even = [i / max(1, len(frames) - 1) for i in range(len(frames))]
    shares = [(f.seconds - first) / (last - first) for f in frames] if last > first else even
    return [share * length for share in shares], length + HELD


def lines(cells: Sequence[Cell], width: int = WIDTH) -> list[list[Cell]]:
    """The cells wrapped to lines of `width` characters, at ends of lines in the text and wherever a line is full."""
    out: list[list[Cell]] = [[]]
    used = 0
    for cell in cells:
        for number, part in enumerate(visible(cell.text).expandtabs(4).split("\n")):
            if number:
                out.append([])
                used = 0
            while part:
                if used == width:
                    out.append([])
                    used = 0
                piece, part = part[: width - used], part[width - used :]
                out[-1].append(Cell(piece, cell.state))
                used += len(piece)
    return out


def svg(recording: Recording) -> str:
    """All frames in one SVG; style sheets alone show one after another, so it plays in an `<img>`. What runs none of them
    shows the last frame, which alone is not hidden by an attribute."""
    frames = recording.frames
    begins, length = starts(frames)
    rules, groups = [], []
    for number, (frame, begin) in enumerate(zip(frames, begins, strict=True)):
        last = number == len(frames) - 1
        end = 100.0 if last else 100 * begins[number + 1] / length
        hidden = "" if last else f"{end:.3f}%{{visibility:hidden}}"
        shown = f"{100 * begin / length:.3f}%{{visibility:visible}}"
        rules.append(f"@keyframes k{number}{{0%{{visibility:hidden}}{shown}{hidden}}}")
        rules.append(f"#f{number}{{animation:k{number} {length:.2f}s step-end infinite}}")
        unseen = "" if last else ' visibility="hidden"'
        groups.append(f'<g id="f{number}" class="f"{unseen}>{_body(frame)}</g>')
    rules.append("@media (prefers-reduced-motion:reduce){.f{animation:none!important}}")
    return _document(recording, "\n".join(groups), "".join(rules))


def still(recording: Recording, frame: Frame) -> str:
    """One frame as an SVG, of the size that the whole animation has."""
    return _document(recording, _body(frame), "")


def html(recording: Recording) -> str:
    """A page that plays the recording, with a slider, keys and nothing to load."""
    begins, length = starts(recording.frames)
    frames = [
        {"at": round(at, 3), "calls": f.calls, "seconds": round(f.seconds, 3), "runs": _runs(f.cells)}
        for at, f in zip(begins, recording.frames, strict=True)
    ]
    data = json.dumps({"length": round(length, 3), "frames": frames}).replace("<", "\\u003c")
    last = recording.frames[-1].text
    return render("animation.html.j2", script="animation.js", title=recording.title, data=Markup(data), last=last)


def _document(recording: Recording, body: str, style: str) -> str:
    tall = max(len(lines(frame.cells)) for frame in recording.frames)
    wide, high = int(2 * _EDGE + WIDTH * _GLYPH), 2 * _EDGE + (tall + 3) * _LINE
    classes = "".join(f".{state}{{fill:{colour}}}" for state, colour in COLOURS.items())
    title = escape(recording.title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" role="img" '
        f'aria-label="{title}"><title>{title}</title><style>text{{font:14px ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,'
        f"monospace;white-space:pre}}{classes}.new{{font-weight:bold}}{style}</style>"
        f'<rect width="100%" height="100%" fill="#ffffff"/>'
        f'<text x="{_EDGE}" y="{_EDGE + _LINE // 2}" class="given">{title}</text>{body}</svg>'
    )


def _body(frame: Frame) -> str:
    rows = []
    for number, row in enumerate(lines(frame.cells)):
        spans = "".join(f'<tspan class="{state}">{escape(text)}</tspan>' for text, state in _runs(row))
        rows.append(f'<text x="{_EDGE}" y="{_EDGE + (number + 2) * _LINE}" xml:space="preserve">{spans}</text>')
    below = _EDGE + (len(rows) + 2.5) * _LINE
    calls = f"{frame.calls} call{'' if frame.calls == 1 else 's'}, {frame.seconds:.2f} s"
    return "".join(rows) + f'<text x="{_EDGE}" y="{below:g}" class="given">{calls}</text>'


def _runs(row: Sequence[Cell]) -> list[tuple[str, str]]:
    """Neighbouring cells of one state as one piece of text."""
    out: list[tuple[str, str]] = []
    for cell in row:
        if out and out[-1][1] == cell.state:
            out[-1] = out[-1][0] + visible(cell.text), cell.state
        else:
            out.append((visible(cell.text), cell.state))
    return out


def _write_gif(recording: Recording, path: Path) -> None:
    import vl_convert
    from PIL import Image

    pictures = [
        Image.open(io.BytesIO(vl_convert.svg_to_png(still(recording, frame)))).convert(
            "P", palette=Image.Palette.ADAPTIVE
        )
        for frame in recording.frames
    ]
    begins, length = starts(recording.frames)
    times = [max(20, round(1000 * (b - a))) for a, b in pairwise([*begins, length])]
    out = io.BytesIO()
    pictures[0].save(out, "GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0)
    with whole_file(path) as file:
        file.write(out.getvalue())
