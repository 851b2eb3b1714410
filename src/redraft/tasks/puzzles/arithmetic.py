"""Long arithmetic as text: `4 7 + 8 5 = 1 3 2`, asked up to the sign of equality. By length, so that one sees
where it breaks.

Left to right, the first digit of a sum hangs on all its carries; a model that may write in any order can begin at the end.
With digits written lowest first (`order` lowest_first) the natural order is left to right.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from redraft.errors import UserError, unknown
from redraft.tasks.puzzles.puzzle import Puzzle, Question

ORDERS, OPERATIONS = ("highest_first", "lowest_first"), ("+", "*")


@dataclass(frozen=True)
class Arithmetic(Puzzle):
    """Sums or products of numbers of 1 to `digits` digits, a token a digit."""

    digits: int = 4
    operation: str = "+"
    order: str = "highest_first"
    name: str = "arithmetic"

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise unknown("order of digits", self.order, ORDERS)
        if self.digits < 1:
            raise UserError(f"--digits must be at least 1, got {self.digits}")
        if self.operation not in OPERATIONS:
            raise unknown("operation", self.operation, OPERATIONS)

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(f"{n} digit{'s' * (n > 1)}" for n in range(1, self.digits + 1))

    @property
    def length(self) -> int:
        return 4 * self.digits + 4 if self.operation == "*" else 3 * self.digits + 4

    @property
    def words(self) -> str:
        return "0 1 2 3 4 5 6 7 8 9 + * ="

    def most(self, group: str) -> float:
        """A tenth of a length's pairs: of one digit there are but a hundred."""
        return 10 ** (2 * _digits(group)) // 10

    def draw(self, rng: random.Random, group: str) -> Question:
        """Two numbers, the longer of as many digits as the group says."""
        n = _digits(group)
        pair = [rng.randrange(10 ** (n - 1) if n > 1 else 0, 10**n), rng.randrange(0, 10**n)]
        rng.shuffle(pair)
        a, b = pair
        value = a + b if self.operation == "+" else a * b
        prompt = f"{self._written(a)} {self.operation} {self._written(b)} ="
        return Question(prompt, self._written(value), prompt)

    def _written(self, value: int) -> str:
        return " ".join(str(value) if self.order == "highest_first" else reversed(str(value)))


def _digits(group: str) -> int:
    return int(group.split(maxsplit=1)[0])
