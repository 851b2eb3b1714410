"""List operations where writing several tokens at once is known to fail, after ParallelBench (arXiv:2510.04767).

copy, reverse and sort have one right answer, every token of which can be worked out alone: parallel steps need not hurt. For
shuffle any other order of the items is right, so tokens depend on each other: drawn at the same time, items repeat.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from redraft.errors import UserError, unknown
from redraft.tasks.puzzles.puzzle import Puzzle, Question

OPERATIONS = ("copy", "reverse", "sort", "shuffle")


@dataclass(frozen=True)
class Lists(Puzzle):
    """`items` different numbers below `numbers`; `operations` are the groups."""

    items: int = 8
    numbers: int = 20
    operations: tuple[str, ...] = OPERATIONS
    name: str = "lists"

    def __post_init__(self) -> None:
        if not 2 <= self.items <= self.numbers:
            raise UserError(f"--items must be from 2 to {self.numbers} (--numbers), got {self.items}")
        for operation in self.operations:
            if operation not in OPERATIONS:
                raise unknown("operation", operation, OPERATIONS)

    @property
    def groups(self) -> tuple[str, ...]:
        return self.operations

    @property
    def length(self) -> int:
        return 2 * self.items + 3

    @property
    def words(self) -> str:
        return " ".join([*map(str, range(self.numbers)), *OPERATIONS, "="])

    def draw(self, rng: random.Random, group: str) -> Question:
        items = rng.sample(range(self.numbers), self.items)
        prompt = " ".join([group, *map(str, items), "="])
        return Question(prompt, " ".join(map(str, _done(rng, group, items))), prompt)

    def is_right(self, question: Question, text: str) -> bool:
        operation, *items = question.prompt.split()[:-1]
        if operation == "shuffle":
            words = text.split()
            return sorted(words) == sorted(items) and words != items
        return super().is_right(question, text)


def _done(rng: random.Random, operation: str, items: list[int]) -> list[int]:
    if operation == "reverse":
        return items[::-1]
    if operation == "sort":
        return sorted(items)
    out = list(items)
    while operation == "shuffle" and out == items:
        rng.shuffle(out)
    return out
