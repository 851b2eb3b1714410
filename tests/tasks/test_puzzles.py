"""Puzzles: no question that is asked was learned from, right answers are right, wrong ones wrong, rows are long enough."""

from __future__ import annotations

import random
from itertools import permutations

import pytest

from redraft.tasks.puzzles.arithmetic import Arithmetic
from redraft.tasks.puzzles.graphs import StarGraphs
from redraft.tasks.puzzles.lists import Lists
from redraft.tasks.puzzles.puzzle import Puzzle, Question, drawn
from redraft.tasks.puzzles.rank_correlation import rank_correlations
from redraft.tasks.puzzles.sudoku import Sudoku, obeys, solved
from redraft.tasks.puzzles.word_problems import WordProblems

PUZZLES: list[Puzzle] = [
    Arithmetic(), Arithmetic(operation="*", order="lowest_first"), StarGraphs(), StarGraphs(3, 2, 9), Sudoku(), Sudoku(6, 20),
    Lists(), Lists(2, 3, ("shuffle",)), WordProblems(), WordProblems(1, 0),
]  # fmt: skip
each = pytest.mark.parametrize("puzzle", PUZZLES, ids=lambda puzzle: f"{puzzle.name}-{puzzle.length}")


@each
def test_nothing_that_is_asked_was_learned(puzzle: Puzzle) -> None:
    found = drawn(puzzle, 0, examples=40 if puzzle.name == "sudoku" else 300, asked=3)
    asked = {question.key for questions in found.tests.values() for question in questions}
    assert tuple(found.tests) == puzzle.groups and all(found.tests.values())
    assert not asked & {question.key for question in found.train}


@each
def test_a_seed_is_one_set_of_questions(puzzle: Puzzle) -> None:
    assert drawn(puzzle, 3, 10, 2) == drawn(puzzle, 3, 10, 2) != drawn(puzzle, 4, 10, 2)


@each
def test_its_own_answer_is_right_and_a_changed_one_is_wrong(puzzle: Puzzle) -> None:
    rng = random.Random(0)
    for group in puzzle.groups:
        question = puzzle.draw(rng, group)
        assert puzzle.is_right(question, question.answer)
        words = question.answer.split()
        for wrong in ("", " ".join(words[:-1]), " ".join([*words, words[0]]), " ".join([*words[:-1], "="])):
            assert not puzzle.is_right(question, wrong)


@each
def test_rows_hold_every_question_in_known_words(puzzle: Puzzle) -> None:
    rng = random.Random(0)
    known = set(puzzle.words.split())
    for group in puzzle.groups:
        for _ in range(50):
            question = puzzle.draw(rng, group)
            words = f"{question.prompt} {question.answer}".split()
            assert len(words) < puzzle.length and set(words) <= known


def test_a_group_of_few_questions_keeps_most_of_them_to_learn() -> None:
    assert {group: len(some) for group, some in drawn(Arithmetic(2), 0, 10, 100).tests.items()} == {
        "1 digit": 10,
        "2 digits": 100,
    }


@pytest.mark.parametrize(("operation", "order", "answer"), [
    ("+", "highest_first", "1 0 4"), ("+", "lowest_first", "4 0 1"), ("*", "highest_first", "4 9 5"),
])  # fmt: skip
def test_digits_are_written_in_their_order(operation: str, order: str, answer: str) -> None:
    class Fixed(random.Random):
        def randrange(self, *_: int) -> int:  # type: ignore[override]
            return next(values)

        def shuffle(self, _: object) -> None:
            pass

    values = iter((99, 5))
    assert Arithmetic(2, operation, order).draw(Fixed(), "2 digits").answer == answer


def test_one_path_alone_leads_to_the_goal() -> None:
    question = StarGraphs(3, 2, 9).draw(random.Random(1), "")
    listed, asked = question.prompt.removesuffix(" =").split(" / ")
    follows: dict[str, list[str]] = {}
    for edge in listed.split(" | "):
        a, b = edge.split()
        follows.setdefault(a, []).append(b)
    start, goal = asked.split()
    ends = [[start, first, last] for first in follows[start] for last in follows[first]]
    assert len(ends) == 3
    assert [path for path in ends if path[-1] == goal] == [question.answer.split()]


def test_every_small_grid_can_come() -> None:
    rng = random.Random(0)
    found = {tuple(solved(rng, 4)) for _ in range(4000)}
    assert len(found) == 288 and all(obeys(list(grid), 4) for grid in found)


def test_any_grid_that_keeps_the_clues_is_right() -> None:
    sudoku, grid = Sudoku(4, 16), solved(random.Random(0), 4)
    other = [{1: 2, 2: 1}.get(digit, digit) for digit in grid]
    blank = Question(" ".join(["_"] * 16 + ["="]), " ".join(map(str, grid)), "")
    assert sudoku.is_right(blank, " ".join(map(str, other)))
    clue = Question(" ".join([str(grid[0]), *["_"] * 15, "="]), blank.answer, "")
    assert sudoku.is_right(clue, " ".join(map(str, other))) == (grid[0] == other[0])


def test_any_other_order_is_a_shuffle() -> None:
    lists = Lists(3, 5, ("shuffle",))
    question = Question("shuffle 4 0 2 =", "0 2 4", "")
    right = [order for order in permutations("402") if lists.is_right(question, " ".join(order))]
    assert len(right) == 5 and not lists.is_right(question, "4 4 2")


def test_chains_are_worked_out_right() -> None:
    problems, rng = WordProblems(5, 2), random.Random(0)
    for _ in range(50):
        steps = problems.draw(rng, "5 steps").answer.partition(" so ")
        for step in steps[0].split(";")[1:-1]:
            a, sign, b, _, c = step.split(":")[1].split()
            assert {"+": int(a) + int(b), "-": int(a) - int(b), "x": int(a) * int(b)}[sign] == int(c)
        assert steps[0].split(";")[-2].split()[-1] == steps[2]


def _run(puzzle: str, seed: int, family: str, steps: int, loss: float, right: int) -> dict[str, object]:
    answers = [{"group": "g", "sampling_steps": 1, "asked": 10, "right": 0}]
    answers += [{"group": "g", "sampling_steps": 0, "asked": 10, "right": right}]
    return {"puzzle": puzzle, "seed": seed, "family": family, "steps": steps, "loss": loss, "answers": answers}


def test_ranks_within_a_family_and_across_are_told_apart() -> None:
    """Planted: more steps, lower loss and more right answers; the family of lower loss has fewer."""
    runs = [
        _run(puzzle, seed, family, steps, loss=bias - steps / 10, right=steps + (4 if family == "mdlm" else 0))
        for puzzle in "pq" for seed in (0, 1) for family, bias in (("ar", 1.0), ("mdlm", 2.0)) for steps in (1, 2, 3)
    ]  # fmt: skip
    found = {row["of"]: row for row in rank_correlations(runs)}
    assert {of: row["value"] for of, row in found.items()} == {"across families": -1, "within ar": 1, "within mdlm": 1}
    assert {of: row["pairs"] for of, row in found.items()} == {
        "across families": 12,
        "within ar": 12,
        "within mdlm": 12,
    }


def test_interval_of_ranks_covers_both_when_puzzles_disagree() -> None:
    runs = [
        _run(puzzle, 0, family, 1, loss=1.0 if family == "ar" else 2.0, right=5 if (family == "ar") == (puzzle in "pq") else 2)
        for puzzle in "pqrs" for family in ("ar", "mdlm")
    ]  # fmt: skip
    across = rank_correlations(runs)[0]
    assert across["value"] == 0 and across["low"] < -0.4 and across["high"] > 0.4


def test_each_two_of_three_families_have_a_rank_of_their_own() -> None:
    """One pair of families that disagrees stands out, and seeds of one puzzle are no puzzles more."""
    losses = {"ar": 1.0, "mdlm": 2.0, "duo": 3.0}
    right = {"ar": 9, "mdlm": 2, "duo": 5}
    runs = [_run(p, seed, f, 1, losses[f], right[f]) for p in "pq" for seed in (0, 1) for f in losses]
    found = {row["of"]: row for row in rank_correlations(runs)}
    values = {of: row["value"] for of, row in found.items() if " and " in of}
    assert values == {"ar and mdlm": 1, "ar and duo": 1, "mdlm and duo": -1}
    assert found["mdlm and duo"]["pairs"] == 4 and found["mdlm and duo"]["puzzles"] == 2


def test_ranks_of_runs_that_answer_alike_say_nothing() -> None:
    runs = [_run("p", 0, family, 1, 1.0, 5) for family in ("ar", "mdlm")]
    assert rank_correlations(runs)[0] == {
        "of": "across families", "value": None, "low": None, "high": None, "pairs": 0, "puzzles": 1,
    }  # fmt: skip
