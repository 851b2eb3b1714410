"""How long each stage may take, and how large its cases are: on a GPU, and in a rehearsal on a CPU. No torch."""

from __future__ import annotations

from dataclasses import dataclass

FAMILIES = ("ar", "mdlm", "duo", "esolm")  # those of the two papers, which are timed; the laws are for all there are


@dataclass(frozen=True)
class Scale:
    """`ends`: by which second of the script's clock a stage is over. Rows and lengths in tokens.

    `kernel` L of attention, of 16 heads' worth of rows; `square` of the matrix product; `copy` bytes. `small` and `large`:
    sizes of stages 2a, 3 and of 2b. `run`: size, rows, length, steps of the run of stage 4.
    """

    ends: dict[str, float]
    square: int
    copy: int
    kernel: int
    vocab: int
    small: str
    small_rows: int
    large: str
    large_rows: int
    checkpointed_rows: int
    length: int
    sampled: int
    steps: tuple[int, ...]
    batches: tuple[int, ...]
    ar_batches: tuple[int, ...]
    run: tuple[str, int, int, int]
    least: float  # seconds for which a case is timed


GPU = Scale(
    ends={"0": 30, "1": 120, "2a": 190, "2b": 290, "3": 410, "4": 465}, square=8192, copy=1 << 30, kernel=2048,
    vocab=32000, small="170M", small_rows=16, large="2121M", large_rows=4, checkpointed_rows=8, length=2048, sampled=1024,
    steps=(8, 32, 128), batches=(1, 8, 64), ar_batches=(1, 8, 64, 256), run=("19M", 32, 512, 150), least=1.5,
)  # fmt: skip
QUICK = Scale(
    ends={"0": 30, "1": 130, "2a": 160, "2b": 185, "3": 215, "4": 285}, square=512, copy=1 << 24, kernel=128,
    vocab=257, small="60k", small_rows=2, large="150k", large_rows=2, checkpointed_rows=4, length=64, sampled=32,
    steps=(2, 8), batches=(1, 4), ar_batches=(1, 4), run=("25k", 8, 64, 40), least=0.1,
)  # fmt: skip
LEAST = 8.0  # seconds without which a stage is not begun: its process has to start


def scale(quick: bool) -> Scale:
    return QUICK if quick else GPU


def ends(of: Scale, chosen: list[str]) -> dict[str, float]:
    """By which second each of the chosen stages is over, each having its own time and what those before it leave."""
    out, before, clock = {}, 0.0, 0.0
    for name, end in of.ends.items():
        if name in chosen:
            clock += end - before
            out[name] = clock
        before = end
    return out
