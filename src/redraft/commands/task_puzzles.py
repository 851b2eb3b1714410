"""Flags of the puzzles of `redraft task`, and the puzzle that they describe. Loads no torch."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from redraft.numbers import whole

if TYPE_CHECKING:
    from redraft.tasks.puzzles.puzzle import Puzzle

# Of each puzzle: what it is, and the flags that only it takes.
PUZZLES = {
    "arithmetic": ("Sums or products, digit by digit.", "digits", "operation", "order"),
    "graphs": ("Star graphs: which path leads to the goal?", "paths", "edges", "nodes"),
    "sudoku": ("Small Sudoku.", "side", "blanks"),
    "lists": ("Lists to copy, reverse, sort and shuffle.", "items", "numbers", "operations"),
    "wordproblems": ("Word problems from templates, answered with their steps.", "chain", "idle"),
}


def puzzle_arguments(parser: ArgumentParser) -> None:
    puzzles = parser.add_argument_group("puzzles")
    puzzles.add_argument("--examples", type=whole(1, 10**7), default=20000, help="questions to learn from")
    puzzles.add_argument("--asked", type=whole(1, 10**6), default=100, help="questions to answer, of each group")
    puzzles.add_argument("--paths", type=whole(1, 100), default=2, help="graphs: paths that leave the start")
    puzzles.add_argument("--edges", type=whole(1, 100), default=4, help="graphs: edges of each path")
    puzzles.add_argument("--nodes", type=whole(2, 10000), default=20, help="graphs: numbers to name nodes by")
    puzzles.add_argument("--side", type=whole(1, 9), default=4, help="sudoku: of the grid: 4, 6 or 9")
    puzzles.add_argument("--blanks", type=whole(1, 81), default=10, help="sudoku: hidden cells, at most")
    puzzles.add_argument("--items", type=whole(2, 1000), default=8, help="lists: of a list")
    puzzles.add_argument("--numbers", type=whole(2, 10000), default=20, help="lists: different items there are")
    puzzles.add_argument("--operations", default="copy,reverse,sort,shuffle", help="lists: which, parted by commas")
    puzzles.add_argument("--chain", type=whole(1, 12), default=4, help="wordproblems: steps of the longest chain")
    puzzles.add_argument(
        "--idle", type=whole(0, 11), default=1, help="wordproblems: sentences that the answer does not need"
    )


def puzzle_of(options: Namespace) -> Puzzle:
    """The puzzle that the flags describe. Loads no torch."""
    if options.task == "graphs":
        from redraft.tasks.puzzles.graphs import StarGraphs

        return StarGraphs(options.paths, options.edges, options.nodes)
    if options.task == "sudoku":
        from redraft.tasks.puzzles.sudoku import Sudoku

        return Sudoku(options.side, options.blanks)
    if options.task == "lists":
        from redraft.tasks.puzzles.lists import Lists

        return Lists(options.items, options.numbers, tuple(options.operations.split(",")))
    if options.task == "wordproblems":
        from redraft.tasks.puzzles.word_problems import WordProblems

        return WordProblems(options.chain, options.idle)
    from redraft.tasks.puzzles.arithmetic import Arithmetic

    return Arithmetic(options.digits, options.operation, options.order)
