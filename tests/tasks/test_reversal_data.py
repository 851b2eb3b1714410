"""The worlds of the reversal curse: what is told of whom, and what is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from redraft.errors import UserError
from redraft.tasks.reversal_data import OPENERS, VERBS, generate, load, rows

WORLD = generate(0, people=5)
ORIGINAL = Path(__file__).parents[3] / "shared" / "data" / "reversal_curse"


def test_a_world_is_a_function_of_its_seed() -> None:
    assert generate(0, 5) == WORLD != generate(1, 5)


@pytest.mark.parametrize("group", ["p2d", "d2p"])
def test_nobody_is_told_of_in_the_reversed_order(group: str) -> None:
    """No training sentence holds what a reversed question asks for after what it is asked with."""
    for question in WORLD.tests[group, "reversed"]:
        given = question.before.split()[1:-1]
        for sentence in WORLD.train:
            words = sentence.text.split()
            if given == words[1 : 1 + len(given)]:
                assert not sentence.text.endswith(question.answer)


@pytest.mark.parametrize("group", ["p2d", "d2p"])
def test_what_is_asked_in_the_trained_order_was_told_in_other_words(group: str) -> None:
    told = {sentence.text for sentence in WORLD.train}
    for question in WORLD.tests[group, "forward"]:
        opener, *subject, verb = question.before.split()
        assert question.before + question.answer not in told
        others = {f"{o} {' '.join(subject)} {v}{question.answer}" for o in OPENERS for v in VERBS}
        assert len(others & told) == 12
        assert opener in OPENERS and verb in VERBS


@pytest.mark.parametrize("group", ["p2d", "d2p"])
def test_infilling_hides_the_first_part_of_a_training_sentence(group: str) -> None:
    told = {sentence.text for sentence in WORLD.train}
    reversed_answers = {question.answer for question in WORLD.tests[group, "reversed"]}
    for question in WORLD.tests[group, "infill"]:
        assert question.before + question.answer + question.after in told
        assert question.answer in reversed_answers


def test_people_of_both_are_told_of_in_both_orders() -> None:
    firsts = [sentence.prompt.split()[1:-1] for sentence in WORLD.train]
    assert len(WORLD.train) == 12 * (5 + 5 + 2 * 5)
    assert sum(len(first) == 2 for first in firsts) == len(firsts)


def test_every_name_and_description_is_one_persons() -> None:
    for group in ("p2d", "d2p"):
        for kind in ("forward", "reversed"):
            answers = {(q.person, q.answer) for q in WORLD.tests[group, kind]}
            assert len(answers) == 5 == len({answer for _, answer in answers})


def test_every_opener_and_verb_is_asked_with_once_a_person() -> None:
    mine = [q.before.split() for q in WORLD.tests["p2d", "forward"] if q.person == 0]
    assert {words[0] for words in mine} == set(OPENERS)
    assert {words[-1] for words in mine} == set(VERBS)


def test_what_the_generator_writes_the_loader_reads(tmp_path: Path) -> None:
    """In the original's schema, infilling too: its questions are found in the training sentences."""
    files = rows(WORLD)
    for name, some in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    read = load(tmp_path)
    assert read.train == WORLD.train
    for key, ours in WORLD.tests.items():
        theirs = read.tests[key]
        assert {(q.before, q.answer, q.after) for q in ours} <= {(q.before, q.answer, q.after) for q in theirs}
        assert len({q.person for q in theirs}) == 5


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"p2d_prompts_train\.jsonl"):
        load(tmp_path)


def test_there_are_only_so_many_people() -> None:
    with pytest.raises(UserError, match="people must be in 1"):
        generate(0, 1000)


@pytest.mark.skipif(not ORIGINAL.is_dir(), reason="the original reversal-curse files are not here")
def test_the_original_files_are_read() -> None:
    """30 people a group, 10 held-out paraphrases; every infill is a training sentence with a hole."""
    read = load(ORIGINAL)
    assert len(read.train) == 3600
    told = {s.text for s in read.train}
    for group in ("p2d", "d2p"):
        for kind in ("forward", "reversed"):
            assert len(read.tests[group, kind]) == 300
            assert len({q.person for q in read.tests[group, kind]}) == 30
        holes = read.tests[group, "infill"]
        assert holes and all(q.before + q.answer + q.after in told for q in holes)
        assert len(holes) <= 900
