"""Task files: read into lm-eval's own fields; whatever is wrong with one is a line that names the file and the place."""

from __future__ import annotations

import io
import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

import pytest

from redraft.errors import UserError
from redraft.evaluation.lm_eval import task_data, tasks

pytest.importorskip("lm_eval")

ASKED = "Please choose the correct answer to the question: {}\n\n{}\n\nAnswer format: answer1/answer2"
FOUR = "Answer1: a b Answer2: c Answer3: d Answer4: e"


def squeezed(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress((value if isinstance(value, str) else json.dumps(value)).encode()))
    return path


def asked(question: str = "Why?", options: str = FOUR, answer: str = "answer2") -> dict[str, str]:
    return {"instruction": ASKED.format(question, options), "answer": answer}


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# Reading


def test_options_are_parsed_out_of_instructions(tmp_path: Path) -> None:
    (doc,) = task_data.science(squeezed(tmp_path / "x.json.xz", [asked()]))
    assert doc["question"] == doc["question_stem"] == "Why?" and doc["answerKey"] == "B"
    assert doc["choices"] == {"text": ["a b", "c", "d", "e"], "label": ["A", "B", "C", "D"]}
    (doc,) = task_data.social_iqa(
        squeezed(tmp_path / "x.json.xz", [asked("Tom ran. Why?", "Answer1: a Answer2: b Answer3: c")])
    )
    assert f"{doc['context']} {doc['question']}" == "Tom ran. Why?" and doc["label"] == "2"


def test_hellaswag_s_unfinished_sentence_is_told_from_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "h.txt"
    path.write_text("Sport: A man runs. the man\n2\na.\nb.\nc.\nd.\nHome: How to bake. Mix well.\n0\na.\nb.\nc.\nd.\n")
    first, second = task_data.hellaswag(path)
    assert (first["activity_label"], first["ctx_a"], first["ctx_b"]) == ("Sport", "A man runs.", "the man")
    assert (second["ctx_a"], second["ctx_b"], second["label"]) == ("How to bake. Mix well.", "", "0")


def test_wikitext_is_cut_into_pages_at_titles_alone(tmp_path: Path) -> None:
    text = " \n = One = \n \n text \n = = Part = = \n more \n \n = Two = \n \n last \n"
    pages = [doc["page"] for doc in task_data.wikitext(squeezed(tmp_path / "w.txt.xz", text))]
    assert len(pages) == 2 and pages[0].startswith(" = One = ") and " = = Part = = " in pages[0]


# What is wrong


def archive(path: Path, line: str) -> Path:
    with tarfile.open(path, "w:xz") as file:
        member = tarfile.TarInfo("blimp/agreement.jsonl")
        member.size = len(line)
        file.addfile(member, io.BytesIO(line.encode()))
    return path


def test_malformed_files_are_told_by_place(tmp_path: Path) -> None:
    science, pairs = tmp_path / "choice.json.xz", tmp_path / "b.tar.xz"
    cases: list[tuple[Any, Path, str]] = [
        (task_data.science, squeezed(science, "not json"), "is not JSON"),
        (task_data.science, squeezed(tmp_path / "2.json.xz", {"a": 1}), "must hold a list"),
        (
            task_data.science,
            squeezed(tmp_path / "3.json.xz", [asked(), {"answer": "answer1"}]),
            "record 2 .*'instruction'",
        ),
        (task_data.science, squeezed(tmp_path / "4.json.xz", [asked(answer="answer5")]), "record 1 .*'answer5'"),
        (
            task_data.science,
            squeezed(tmp_path / "5.json.xz", [{"instruction": "Hm?", "answer": "answer1"}]),
            "record 1",
        ),
        (task_data.boolq, squeezed(tmp_path / "6.json.xz", [asked()]), "record 1 .* true or false"),
        (task_data.winogrande, squeezed(tmp_path / "7.json.xz", [asked()]), "record 1 .* two options"),
        (
            task_data.lambada,
            squeezed(tmp_path / "8.jsonl.xz", '{"text": "a b"}\n{"txt": "a"}'),
            "line 2 .* no field 'text'",
        ),
        (task_data.lambada, squeezed(tmp_path / "9.jsonl.xz", '{"text": " "}'), "line 1 .* no text"),
        (task_data.blimp, archive(pairs, '{"sentence_good": "It is."}'), "line 1 of agreement .*'sentence_bad'"),
        (task_data.blimp, archive(tmp_path / "c.tar.xz", "{"), "line 1 of agreement .* not JSON"),
        (task_data.wikitext, tmp_path / "none.txt.xz", "no such task file"),
    ]
    for read, path, expected in cases:
        with pytest.raises(UserError, match=expected) as error:
            read(path)
        assert path.name in one_line(error)


def test_files_that_do_not_fit_each_other_are_told(tmp_path: Path) -> None:
    rows = squeezed(tmp_path / "valid.jsonl.xz", json.dumps({"goal": "g", "sol1": "a", "sol2": "b"}))
    (tmp_path / "valid-labels.lst").write_text("0\n1\n")
    with pytest.raises(UserError, match=r"each of the 1 questions .* 2 lines"):
        task_data.piqa(rows)
    broken = tmp_path / "h.txt"
    broken.write_text("Sport: A man runs.\n7\na\nb\nc\nd\n")
    with pytest.raises(UserError, match=r"line 1 .* six lines"):
        task_data.hellaswag(broken)
    damaged = tmp_path / "d.json.xz"
    damaged.write_bytes(b"no archive")
    with pytest.raises(UserError, match="damaged"):
        task_data.science(damaged)


def test_a_missing_folder_or_name_says_what_would_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDRAFT_DATA", raising=False)
    with pytest.raises(UserError, match="--data-dir, or set REDRAFT_DATA"):
        tasks.load(["piqa"])
    with pytest.raises(UserError, match=r"piqa/valid\.jsonl\.xz"):
        tasks.load(["piqa"], tmp_path)
    with pytest.raises(UserError, match=r"unknown task 'piqua'\. Did you mean 'piqa'"):
        tasks.load(["piqua"], tmp_path)


OWN = "task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {path}}}}}\ntest_split: test\n"


def test_a_malformed_task_file_of_one_s_own_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is scored: the second document lacks a field."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    data, file = tmp_path / "d.jsonl", tmp_path / "mine.yaml"
    data.write_text('{"q": "a", "c": ["x", "y"], "gold": 0}\n{"q": "b", "c": null, "gold": 1}\n')
    form = OWN.format(path=data) + 'output_type: multiple_choice\ndoc_to_text: "{{q}}"\ndoc_to_target: gold\n'
    for text in ("task: [", "a: 1", form + 'doc_to_choice: "{{choices}}"\n', form + "doc_to_choice: c\n"):
        file.write_text(text)
        with pytest.raises(UserError, match=r"mine\.yaml cannot be used") as error:
            tasks.load([str(file)])
        one_line(error)
    with pytest.raises(UserError, match="no such task file"):
        tasks.load([str(tmp_path / "none.yaml")])


# Continuations of any text


def prose(words: int = 4000) -> str:
    return " ".join(f"w{n}" for n in range(words))


def test_continuations_are_the_next_words_and_three_from_elsewhere() -> None:
    text = prose()
    docs = tasks.continuations([text], 100, 60, 20)
    assert docs == tasks.continuations([text], 100, 60, 20) and len(docs) == 100
    for doc in docs:
        right = doc["choices"][doc["gold"]]
        assert doc["context"] + right in text and len(doc["context"]) == 60
        assert [len(c) for c in doc["choices"]] == [20] * 4 and len(set(doc["choices"])) == 4
        assert all(c[0] == " " and c[1] != " " and c in text for c in doc["choices"])
    assert [sum(doc["gold"] == g for doc in docs) for g in range(4)] == [25] * 4


def test_questions_do_not_overlap() -> None:
    """Documents of a task are taken to be independent: each has text of its own."""
    text = prose()
    starts = [text.find(doc["context"]) for doc in tasks.continuations([text], 1000, 60, 20)]
    assert all(b - a >= 80 for a, b in zip(starts, starts[1:], strict=False))


def test_a_text_too_short_for_questions_is_an_error() -> None:
    with pytest.raises(UserError, match=r"has \d places for a question"):
        tasks.continuations(["a few words only " * 20], 100, 60, 20)


# The public sets, where they are


COUNTS = {
    "hellaswag": 10042, "piqa": 1838, "arc_easy": 2376, "arc_challenge": 1172, "openbookqa": 500, "social_iqa": 1954,
    "winogrande": 1267, "boolq": 3270, "lambada_openai": 5153, "wikitext": 62,
}  # fmt: skip
PROMPTS = {
    "hellaswag": ("Roof shingle removal: A man is sitting on a roof. He", " is using wrap to wrap a pair of skis."),
    "arc_easy": (
        "Question: Which statement best explains why photosynthesis is the foundation of most food webs?\nAnswer:",
        " Sunlight is the source of energy for nearly all ecosystems.",
    ),
    "social_iqa": (
        "Q: Tracy didn't go home that evening and resisted Riley's attacks. What does Tracy need to do before this?\nA:",
        " make a new plan",
    ),
    "winogrande": ("Sarah was a much better surgeon than Maria so Sarah", " always got the easier cases."),
    "boolq": ("Question: does ethanol take more energy make that produces?\nAnswer:", " no"),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_public_sets_ask_as_lm_eval_asks(name: str, data: Path) -> None:
    (task,) = tasks.load([name], data).items
    task.set_config("num_fewshot", 0)
    with tasks.quiet():
        task.build_all_requests(limit=1)
    assert task.instances[0].args == PROMPTS[name]


@pytest.mark.parametrize("name", [n for n in COUNTS if n not in ("hellaswag", "lambada_openai")])
def test_public_sets_are_whole(name: str, data: Path) -> None:
    local = tasks.PUBLIC[name]
    assert len(local.read(data / local.file)) == COUNTS[name]


def test_blimp_is_67_tasks_and_their_mean(data: Path) -> None:
    pairs = task_data.blimp(data / tasks.BLIMP)
    assert len(pairs) == 67 and {len(docs) for docs in pairs.values()} == {1000}
