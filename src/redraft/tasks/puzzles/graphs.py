"""Star graphs: paths leave one node; which of them leads to the goal? Bachmann and Nagarajan, "The pitfalls of next-token
prediction" (arXiv:2403.06963).

The prompt lists the edges in any order, then start and goal; the answer is the path. Left to right, the first step is the
whole difficulty: all later ones follow edges. A next-token model, trained on the answer's own prefixes, learns to follow
edges and guesses the first step, right once in as many times as there are paths. Backwards from the goal every step is easy.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from redraft.errors import UserError
from redraft.tasks.puzzles.puzzle import Puzzle, Question


@dataclass(frozen=True)
class StarGraphs(Puzzle):
    """`paths` paths of `edges` edges from one node; nodes are numbers below `nodes`, drawn anew for each graph."""

    paths: int = 2
    edges: int = 4
    nodes: int = 20
    name: str = "graphs"

    def __post_init__(self) -> None:
        if self.nodes <= self.paths * self.edges:
            raise UserError(
                f"{self.paths} paths of {self.edges} edges need --nodes {self.paths * self.edges + 1} or more"
            )

    @property
    def groups(self) -> tuple[str, ...]:
        return (f"{self.paths} paths of {self.edges}",)

    @property
    def length(self) -> int:
        return 3 * self.paths * self.edges + 4 + self.edges + 1 + 1

    @property
    def words(self) -> str:
        return " ".join([*map(str, range(self.nodes)), "/", "|", "="])

    def draw(self, rng: random.Random, group: str) -> Question:
        names = rng.sample(range(self.nodes), 1 + self.paths * self.edges)
        start, rest = names[0], names[1:]
        paths = [[start, *rest[i :: self.paths]] for i in range(self.paths)]
        joined = [edge for path in paths for edge in zip(path, path[1:], strict=False)]
        rng.shuffle(joined)
        path = rng.choice(paths)
        listed = " | ".join(f"{a} {b}" for a, b in joined)
        prompt = f"{listed} / {start} {path[-1]} ="
        return Question(prompt, " ".join(map(str, path)), prompt)
