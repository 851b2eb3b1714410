"""Animations of a text being written: every kind holds every frame, plays without anything else, and runs no text."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from redraft.cli import main
from redraft.commands import recorder
from redraft.errors import UserError
from redraft.hub.recording import Cell, Frame, Recording
from redraft.report.animation import LONGEST, MOST_FRAMES, SHORTEST, lines, starts, svg, thinned, write_animation
from tests.hub.models import folder

HOSTILE = "<script>alert(1)</script>&\x1b[31m]]>"
UNWRITTEN, WRITTEN = (tuple(Cell(c, state) for c in text) for text, state in (("____", "unwritten"), ("word", "new")))
TWO = Recording("mdlm, ancestral", (Frame(UNWRITTEN, 0, 0.0), Frame((*WRITTEN, Cell(HOSTILE, "written")), 3, 1.5)))
SPACE = "{http://www.w3.org/2000/svg}"


def test_an_svg_shows_each_frame_once_and_ends_with_the_last() -> None:
    root = ElementTree.fromstring(svg(TWO))
    groups = {group.get("id"): "".join(group.itertext()) for group in root.iter(f"{SPACE}g")}
    assert list(groups) == ["f0", "f1"]
    assert "____" in groups["f0"] and "word" in groups["f1"] and "3 calls, 1.50 s" in groups["f1"]
    assert "<script>alert(1)" in groups["f1"] and not list(root.iter(f"{SPACE}script"))
    style = "".join(next(iter(root.iter(f"{SPACE}style"))).itertext())
    assert "prefers-reduced-motion" in style and style.count("@keyframes") == 2


def test_without_animations_an_svg_is_its_last_frame() -> None:
    pytest.importorskip("vl_convert")
    import vl_convert

    picture = vl_convert.svg_to_png(svg(TWO))
    alone = re.sub(r'<g id="f0".*?</g>', "", svg(TWO), flags=re.DOTALL)
    blank = re.sub(r'<g id="f1".*?</g>', "", alone, flags=re.DOTALL)
    assert picture == vl_convert.svg_to_png(alone) != vl_convert.svg_to_png(blank)


def test_a_page_holds_every_frame_and_its_own_script_alone(tmp_path: Path) -> None:
    write_animation(TWO, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    [data] = re.findall(r'<script type="application/json" id="recording">(.*?)</script>', page, re.DOTALL)
    frames = json.loads(data)["frames"]
    assert frames[0]["runs"] == [["____", "unwritten"]]
    assert "alert(1)" in frames[1]["runs"][-1][0]
    assert "<script>alert" not in page and "://" not in page


def test_frames_keep_their_pace_within_bounds() -> None:
    frames = [Frame(UNWRITTEN, i, seconds) for i, seconds in enumerate((0.0, 1.0, 100.0))]
    begins, length = starts(frames)
    assert begins == [0.0, LONGEST / 100, LONGEST] and length > LONGEST
    assert starts([Frame(UNWRITTEN, 0, 0.0), Frame(WRITTEN, 1, 0.01)])[0] == [0.0, SHORTEST]
    assert starts([Frame(UNWRITTEN, 0, 0.0), Frame(WRITTEN, 1, 0.0)])[0] == [0.0, SHORTEST]


def test_long_recordings_are_thinned_from_the_first_frame_to_the_last() -> None:
    many = Recording("t", tuple(Frame(UNWRITTEN, i, float(i)) for i in range(1000)))
    kept = [frame.calls for frame in thinned(many).frames]
    assert len(kept) == MOST_FRAMES and kept[0] == 0 and kept[-1] == 999 and kept == sorted(set(kept))


def test_lines_are_wrapped_and_lose_nothing() -> None:
    cells = [Cell("ab\n", "new"), Cell("c" * 25, "written"), Cell("d", "new")]
    found = lines(cells, 10)
    assert ["".join(cell.text for cell in line) for line in found] == ["ab", "c" * 10, "c" * 10, "ccccc" + "d"]


@pytest.mark.parametrize(
    ("name", "told"), [("a.mp4", r"\.svg, \.html or \.gif"), ("nowhere/a.svg", "there is no folder")]
)
def test_where_it_cannot_be_written_is_told(name: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        write_animation(TWO, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_gif_without_its_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UserError, match=r"'PIL': pip install 'redraft\[figures\]'"):
        write_animation(TWO, tmp_path / "a.gif")


def test_a_gif_has_a_picture_for_each_frame(tmp_path: Path) -> None:
    write_animation(TWO, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as made:
        assert made.n_frames == 2 and made.info["loop"] == 0


@pytest.mark.parametrize("family", ["ar", "mdlm", "duo", "esolm", "bd3lm"])
def test_sample_shows_each_step_and_saves_them(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last frame is the text that is printed, and the clock is that of the sampler."""
    model = folder(tmp_path / "model", family, "dit")
    steps = [] if family == "ar" else ["--steps", "5"]
    asked = ["sample", str(model), "--prompt", "ab", "--length", "12", *steps, "--watch", "--json"]
    main([*asked, "--animate", str(tmp_path / "a.html")])
    told = capsys.readouterr()
    result = json.loads(told.out)
    page = (tmp_path / "a.html").read_text()
    [data] = re.findall(r'id="recording">(.*?)</script>', page, re.DOTALL)
    frames = json.loads(data)["frames"]
    shown = [line for line in told.err.splitlines() if " calls, " in line]
    assert len(shown) == len(frames) - 1 and frames[-1]["calls"] == result["forwards"]
    assert frames[0]["runs"][0] == ["ab", "given"] and "".join(text for text, _ in frames[-1]["runs"]).startswith("ab")
    assert {state for _, state in frames[-1]["runs"]} <= {"given", "new", "written"}


def test_a_place_that_cannot_be_written_is_told_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["sample", str(folder(tmp_path / "model", "mdlm", "dit")), "--animate", str(tmp_path / "a.mp4")])
    assert "its name must end in" in capsys.readouterr().err


def test_an_interrupted_recording_leaves_the_terminal_as_it_was_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rich hides the cursor while it shows a text in place, and has to be stopped to show it again."""
    stopped: list[bool] = []

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recorder.Recorder, "add", interrupted)
    monkeypatch.setattr(recorder.Recorder, "stop", lambda self: stopped.append(True))
    asked = ["sample", str(folder(tmp_path / "model", "mdlm", "dit")), "--length", "8", "--steps", "3"]
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        main([*asked, "--animate", str(tmp_path / "a.svg")])
    assert stopped == [True] and not (tmp_path / "a.svg").exists()
