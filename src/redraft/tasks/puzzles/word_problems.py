"""Word problems from templates, with the chain of steps that solves them, after TinyGSM (arXiv:2312.09241) and iGSM
(arXiv:2407.20311).

Every person has as many things as a sentence says: a number, or a number more, fewer or times those of another. Sentences
come in any order, some about people that the question does not need; the answer is the chain of needed steps, then the number.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from redraft.errors import UserError
from redraft.tasks.puzzles.puzzle import Puzzle, Question

PEOPLE = ["Ann", "Bob", "Cy", "Dee", "Eli", "Fay", "Gus", "Hal", "Ida", "Jo", "Kit", "Lou"]
THINGS = ["pens", "cups", "nuts", "keys", "hats", "figs"]
HIGHEST = 99


@dataclass(frozen=True)
class WordProblems(Puzzle):
    """Chains of 1 to `chain` steps, and `idle` sentences that the answer does not need."""

    chain: int = 4
    idle: int = 1
    name: str = "wordproblems"

    def __post_init__(self) -> None:
        if self.chain + self.idle > len(PEOPLE):
            raise UserError(f"--chain and --idle ask for {self.chain + self.idle} people; there are {len(PEOPLE)}")

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(f"{n} step{'s' * (n > 1)}" for n in range(1, self.chain + 1))

    @property
    def length(self) -> int:
        """Of a sentence 9 words, of the question 7, of a step 7, of the answer 2, and the end."""
        return 9 * (self.chain + self.idle) + 7 + 7 * self.chain + 2 + 1

    @property
    def words(self) -> str:
        numbers = map(str, range(HIGHEST + 1))
        return " ".join(
            [*PEOPLE, *THINGS, *numbers, "has more fewer times as many than . ? how does have : + - x = ; so"]
        )

    def draw(self, rng: random.Random, group: str) -> Question:
        steps, thing = int(group.split(maxsplit=1)[0]), rng.choice(THINGS)
        people = rng.sample(PEOPLE, steps + self.idle)
        have = [rng.randint(2, 20)]
        told = [f"{people[0]} has {have[0]} {thing} ."]
        worked = [f"{people[0]} : {have[0]} ;"]
        for i in range(1, len(people)):
            # A needed person depends on the one before; one that is not needed on anybody.
            other = i - 1 if i < steps else rng.randrange(i)
            sign, number, value = _relation(rng, have[other])
            have.append(value)
            told.append(f"{people[i]} has {_SAID[sign].format(number, thing)} {people[other]} .")
            worked.append(f"{people[i]} : {have[other]} {sign} {number} = {value} ;")
        rng.shuffle(told)
        asked = people[steps - 1]
        prompt = f"{' '.join(told)} how many {thing} does {asked} have ?"
        return Question(prompt, f"{' '.join(worked[:steps])} so {have[steps - 1]}", prompt)

    def is_right(self, question: Question, text: str) -> bool:
        """The number after the chain; how it was reached does not count."""
        return text.split()[-1:] == question.answer.split()[-1:] and "so" in text.split()[-2:-1]


_SAID = {"+": "{} more {} than", "-": "{} fewer {} than", "x": "{} times as many {} as"}


def _relation(rng: random.Random, value: int) -> tuple[str, int, int]:
    """A sign, a number and what `value` becomes, from 1 to 99."""
    while True:
        sign, number = rng.choice("+-x"), rng.randint(2, 9)
        found = {"+": value + number, "-": value - number, "x": value * number}[sign]
        if 1 <= found <= HIGHEST:
            return sign, number, found
