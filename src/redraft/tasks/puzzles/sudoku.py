"""Small Sudoku: fill the blanks so that every row, column and box holds each digit once.

Clues anywhere decide a cell, so no fixed order of writing is the right one ("Beyond autoregression", arXiv:2410.14157, has the
9 x 9 kind). Any grid that keeps the clues and obeys the rules is right.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from redraft.errors import UserError
from redraft.tasks.puzzles.puzzle import Puzzle, Question

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # rows and columns of a box, by the side of the grid
BLANK = "_"


@dataclass(frozen=True)
class Sudoku(Puzzle):
    """Grids of `side` 4, 6 or 9, with 1 to `blanks` cells hidden; the groups are the halves of that range."""

    side: int = 4
    blanks: int = 10
    name: str = "sudoku"

    def __post_init__(self) -> None:
        if self.side not in BOXES:
            raise UserError(f"--side takes {', '.join(map(str, BOXES))}; got {self.side}")
        if not 1 <= self.blanks <= self.side**2:
            raise UserError(
                f"--blanks must be from 1 to {self.side**2} of a grid of side {self.side}, got {self.blanks}"
            )

    @property
    def groups(self) -> tuple[str, ...]:
        parts = min(2, self.blanks)
        cuts = [self.blanks * i // parts for i in range(parts + 1)]
        return tuple(f"{a + 1} to {b} blanks" for a, b in zip(cuts, cuts[1:], strict=False))

    @property
    def length(self) -> int:
        return 2 * self.side**2 + 2

    @property
    def words(self) -> str:
        return " ".join([*map(str, range(1, self.side + 1)), BLANK, "="])

    def most(self, group: str) -> float:
        """A fifth of all grids: of side 4 there are but 288."""
        return {4: 288, 6: 28_200_960}.get(self.side, float("inf")) // (5 * len(self.groups))

    def draw(self, rng: random.Random, group: str) -> Question:
        grid = solved(rng, self.side)
        low, _, high, _ = group.split()
        hidden = set(rng.sample(range(self.side**2), rng.randint(int(low), int(high))))
        clues = " ".join(BLANK if i in hidden else str(digit) for i, digit in enumerate(grid))
        answer = " ".join(map(str, grid))
        return Question(f"{clues} =", answer, answer)

    def is_right(self, question: Question, text: str) -> bool:
        clues, cells = question.prompt.split()[:-1], text.split()
        kept = len(cells) == len(clues) and all(c in (BLANK, cell) for c, cell in zip(clues, cells, strict=True))
        return kept and obeys([int(cell) if cell.isdecimal() else 0 for cell in cells], self.side)


def units(side: int) -> list[list[int]]:
    """Cells of each row, column and box."""
    height, width = BOXES[side]
    out: dict[tuple[str, int], list[int]] = {}
    for cell in range(side**2):
        row, column = divmod(cell, side)
        box = row // height * (side // width) + column // width
        for unit in (("row", row), ("column", column), ("box", box)):
            out.setdefault(unit, []).append(cell)
    return list(out.values())


def obeys(cells: list[int], side: int) -> bool:
    digits = set(range(1, side + 1))
    return all({cells[i] for i in unit} == digits for unit in units(side))


def solved(rng: random.Random, side: int) -> list[int]:
    """A full grid by backtracking, digits tried in random order: every grid can come."""
    height, width = BOXES[side]
    rows, columns, boxes = [0] * side, [0] * side, [0] * side
    grid = [0] * side**2

    def fill(cell: int) -> bool:
        if cell == len(grid):
            return True
        row, column = divmod(cell, side)
        box = row // height * (side // width) + column // width
        for digit in rng.sample(range(side), side):
            bit = 1 << digit
            if (rows[row] | columns[column] | boxes[box]) & bit:
                continue
            rows[row], columns[column], boxes[box] = rows[row] | bit, columns[column] | bit, boxes[box] | bit
            grid[cell] = digit + 1
            if fill(cell + 1):
                return True
            rows[row], columns[column], boxes[box] = rows[row] ^ bit, columns[column] ^ bit, boxes[box] ^ bit
        return False

    fill(0)
    return grid
