"""The protocol of a puzzle: questions drawn from a seed, a vocabulary of whole words, a checker. No torch."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol

MOST_TRIES = 200  # draws in vain, for each question asked for, before a group counts as exhausted


@dataclass(frozen=True)
class Question:
    """`prompt` and `answer`: words with single spaces between them. `key`: questions of one key are never both learned from
    and asked (the same sum, the same Sudoku grid)."""

    prompt: str
    answer: str
    key: str


class Puzzle(Protocol):
    """One kind of question. `groups` are told apart in the results: by length, operation, number of steps."""

    @property
    def name(self) -> str: ...

    @property
    def groups(self) -> tuple[str, ...]: ...

    @property
    def length(self) -> int:
        """Tokens of the longest question with its answer and one end of text."""

    @property
    def words(self) -> str:
        """The vocabulary, with spaces between the words."""

    def draw(self, rng: random.Random, group: str) -> Question: ...

    def is_right(self, question: Question, text: str) -> bool:
        """Whether `text` answers it: any right answer counts where there are several."""
        return text.split() == question.answer.split()

    def most(self, group: str) -> float:
        """Of the different questions of a group, how many may be kept for the tests; infinity where they do not run out."""
        return float("inf")


@dataclass(frozen=True)
class Drawn:
    """Questions to learn from, and to ask by group."""

    train: list[Question]
    tests: dict[str, list[Question]]


def drawn(puzzle: Puzzle, seed: int, examples: int, asked: int) -> Drawn:
    """`asked` different questions of each group (fewer where a group has not so many), and `examples` of any group, of which
    none shares its key with a question that is asked."""
    rng = random.Random(f"{puzzle.name} {seed}")
    tests = {group: _different(puzzle, rng, group, min(asked, puzzle.most(group))) for group in puzzle.groups}
    held_out = {question.key for questions in tests.values() for question in questions}
    train: list[Question] = []
    while len(train) < examples:
        question = puzzle.draw(rng, rng.choice(puzzle.groups))
        if question.key not in held_out:
            train.append(question)
    return Drawn(train, tests)


def _different(puzzle: Puzzle, rng: random.Random, group: str, count: float) -> list[Question]:
    found: dict[str, Question] = {}
    tries = 0
    while len(found) < count and tries < MOST_TRIES * count:
        question = puzzle.draw(rng, group)
        found.setdefault(question.key, question)
        tries += 1
    return list(found.values())
