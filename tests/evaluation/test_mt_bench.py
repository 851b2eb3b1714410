"""MT-bench answers in FastChat's format, and a judge that is a small server here."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from redraft.cli import dispatch
from redraft.errors import UserError
from redraft.evaluation.generation import mt_bench
from redraft.evaluation.generation.mt_bench import How, answer, judged, questions
from tests.evaluation.test_speed import model

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Say a.", "Say b."]},
    {"question_id": 82, "category": "math", "turns": ["1+1?"]},
]
SHORT = How(template="plain", length=500, steps=3)


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    path = tmp_path / "question.jsonl"
    path.write_text("\n".join(json.dumps(q) for q in QUESTIONS) + "\n")
    return path


@pytest.fixture
def judge() -> Iterator[tuple[str, list[Any]]]:
    """An endpoint that rates every answer 7, but gives question 82 no rating."""
    seen = list[Any]()

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, body, self.headers["Authorization"]))
            said = "No idea." if "1+1?" in body["messages"][0]["content"] else "Fair. Rating: [[7]]"
            reply = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *words: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", seen
    server.shutdown()


@pytest.mark.parametrize("family", ["ar", "mdlm", "duo"])
def test_answers_have_the_fields_that_fastchat_reads(asked: Path, family: str) -> None:
    lines = [answer(model(family), "mine", question, SHORT) for question in questions(asked)]
    assert [set(line) for line in lines] == [{"question_id", "answer_id", "model_id", "choices", "tstamp"}] * 2
    assert [len(line["choices"][0]["turns"]) for line in lines] == [2, 1]
    again = answer(model(family), "mine", QUESTIONS[0], SHORT)
    assert again["choices"] == lines[0]["choices"] and again["answer_id"] == lines[0]["answer_id"]


def test_a_second_turn_reads_the_first_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = list[str]()
    monkeypatch.setattr(mt_bench, "_written", lambda m, prompt, *rest: prompts.append(prompt) or f"A{len(prompts)}")
    answer(model("ar"), "mine", QUESTIONS[0], SHORT)
    assert prompts == ["User: Say a.\nAssistant:", "User: Say a.\nAssistant: A1\nUser: Say b.\nAssistant:"]


def test_a_judge_behind_a_url_is_asked_once_a_turn(judge: tuple[str, list[Any]]) -> None:
    url, seen = judge
    given = [answer(model("ar"), "mine", question, SHORT) for question in QUESTIONS]
    verdicts = [v for q, a in zip(QUESTIONS, given, strict=True) for v in judged(url, "some-judge", "secret", q, a)]
    assert [(v["question_id"], v["turn"], v["score"]) for v in verdicts] == [(81, 1, 7.0), (81, 2, 7.0), (82, 1, -1)]
    assert {path for path, _, _ in seen} == {"/v1/chat/completions"}
    assert all(key == "Bearer secret" and body["model"] == "some-judge" for _, body, key in seen)


def test_an_absent_judge_is_one_line() -> None:
    with pytest.raises(UserError, match=r"the judge at .* did not answer"):
        list(judged("http://127.0.0.1:9/v1", "j", "", QUESTIONS[1], answer(model("ar"), "m", QUESTIONS[1], SHORT)))


@pytest.mark.parametrize(
    ("text", "said"),
    [('{"turns": ["a"]}', "question_id"), ('{"question_id": 1}', "turns"), ("{", "no JSON"), ("", "no question")],
)
def test_a_question_that_is_none_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        questions(path)


def test_a_prompt_longer_than_the_canvas_is_refused() -> None:
    with pytest.raises(UserError, match=r"the prompt of question 82 needs \d+ tokens, the canvas holds 8"):
        answer(model("ar"), "m", QUESTIONS[1], How(template="plain", length=8))


def test_a_second_turn_without_room_is_left_empty() -> None:
    line = answer(model("ar"), "m", QUESTIONS[0], How(template="plain", length=24, steps=3))
    assert line["choices"][0]["turns"][1] == ""


def test_an_interrupted_file_goes_on_after_its_last_answer(
    asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("redraft.evaluation.compute.load", lambda path, device, precision: model("mdlm"))
    monkeypatch.setattr("redraft.commands.device_flags.model", lambda options: None)
    into = tmp_path / "answers" / "mine.jsonl"
    first = answer(model("mdlm"), "mine", QUESTIONS[0], SHORT) | {"tstamp": 1.0}
    into.parent.mkdir()
    into.with_name("mine.jsonl.partial").write_text(json.dumps(first) + "\n" + '{"question_id": 82, "ans')
    dispatch(f"answer run --questions {asked} --into {into} --template plain --length 500 --steps 3 --json".split())
    lines = [json.loads(line) for line in into.read_text().splitlines()]
    assert [line["question_id"] for line in lines] == [81, 82] and lines[0]["tstamp"] == 1.0
    with pytest.raises(UserError, match="is there already"):
        dispatch(f"answer run --questions {asked} --into {into}".split())
