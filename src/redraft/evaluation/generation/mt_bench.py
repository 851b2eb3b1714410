"""MT-bench answers in FastChat's format, and an LLM-as-a-judge by URL (Zheng et al. 2023, arXiv:2306.05685).

An answer file holds a line for each question: {"question_id", "answer_id", "model_id", "choices": [{"index", "turns"}],
"tstamp"}; a judgment file {"question_id", "model", "judge", "turn", "judgment", "score", "tstamp"}. FastChat reads both.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redraft.errors import UserError
from redraft.files import lines, read_text
from redraft.text.examples.chat import END, template

if TYPE_CHECKING:
    from redraft.hub.model import Model

JUDGE = (
    "Rate how well the assistant answers the user in the conversation below: how helpful, relevant, accurate, deep and "
    "detailed its {which} answer is. Explain in a few sentences, be impartial, and end with a rating from 1 to 10 in double "
    "square brackets, such as [[5]].\n\n{conversation}"
)
_RATING = re.compile(r"\[\[(\d+(?:\.\d+)?)\]\]")


@dataclass(frozen=True)
class How:
    """How answers are written: the canvas holds prompt and answer, `length` tokens in all. SMDM: T = 1, 1024, 128 steps."""

    template: str = "vicuna"
    length: int = 1024
    steps: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    sampler: str = ""
    turns: int = 2
    seed: int = 0


def questions(path: Path) -> list[dict[str, Any]]:
    """The questions of a FastChat file. `UserError` names the line that is none."""
    asked = enumerate(lines(read_text(path)), 1)
    found = [_question(line, f"{path}, line {number}") for number, line in asked if line.strip()]
    if not found:
        raise UserError(f"{path} holds no question")
    return found


def _question(line: str, where: str) -> dict[str, Any]:
    try:
        question = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is no JSON: {error}") from None
    turns = question.get("turns") if isinstance(question, dict) else None
    if not (turns and isinstance(turns, list) and all(isinstance(turn, str) and turn for turn in turns)):
        raise UserError(f'{where}: a question needs "turns", a list of what the user says')
    if "question_id" not in question:
        raise UserError(f'{where} has no "question_id"')
    return question


def answer(model: Model, name: str, question: Mapping[str, Any], how: How) -> dict[str, Any]:
    """One line of an answer file: each turn is answered after the turns before it. A later turn for which the canvas
    has no room left gets the empty answer (SMDM leaves all second turns empty); a first turn is refused by `UserError`."""
    said, messages = list[str](), list[dict[str, str]]()
    for number, turn in enumerate(question["turns"][: how.turns]):
        messages.append({"role": "user", "content": turn})
        prompt = template(how.template).render(
            messages=messages, add_generation_prompt=True, bos_token="", eos_token=END
        )
        said.append(_written(model, prompt.replace(END, ""), how, f"question {question['question_id']}", number))
        messages.append({"role": "assistant", "content": said[-1]})
    settings = json.dumps([name, question["question_id"], vars(how)], sort_keys=True)
    return {
        "question_id": question["question_id"],
        "answer_id": hashlib.sha256(settings.encode()).hexdigest()[:22],
        "model_id": name,
        "choices": [{"index": 0, "turns": said}],
        "tstamp": time.time(),
    }


def _written(model: Model, prompt: str, how: How, what: str, turn: int) -> str:
    used = len(model.tokenizer.encode(prompt))
    if used >= how.length and turn:
        return ""
    if used >= how.length:
        raise UserError(f"the prompt of {what} needs {used} tokens, the canvas holds {how.length}: raise --length")
    seed = int.from_bytes(hashlib.sha256(f"{how.seed} {what} {turn}".encode()).digest()[:4], "big")
    texts = model.sample(prompt, 1, how.length, how.steps, how.temperature, how.top_p, seed, sampler=how.sampler)
    assert isinstance(texts, list)
    return texts[0][len(model.tokenizer.decode(model.tokenizer.encode(prompt))) :].strip()


def judged(
    url: str, judge: str, key: str, asked: Mapping[str, Any], given: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """A judgment for each turn, by an OpenAI-style chat endpoint at `url` (.../v1). The judge's own words are kept, and its
    rating, -1 where it gave none, as in FastChat."""
    turns: Sequence[str] = given["choices"][0]["turns"]
    for turn in range(len(turns)):
        talk = "\n\n".join(
            f"User: {q}\n\nAssistant: {a}" for q, a in zip(asked["turns"], turns[: turn + 1], strict=False)
        )
        text = _asked(url, judge, key, JUDGE.format(which=("first", "second")[min(turn, 1)], conversation=talk))
        rating = _RATING.search(text)
        yield {
            "question_id": given["question_id"],
            "model": given["model_id"],
            "judge": [judge, "single-v1" if turn == 0 else "single-v1-multi-turn"],
            "turn": turn + 1,
            "judgment": text,
            "score": float(rating[1]) if rating else -1,
            "tstamp": time.time(),
        }


def _asked(url: str, judge: str, key: str, prompt: str) -> str:
    body = {"model": judge, "temperature": 0, "messages": [{"role": "user", "content": prompt}]}
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=300) as reply:
            return str(json.load(reply)["choices"][0]["message"]["content"])
    except (urllib.error.URLError, OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"the judge at {url} did not answer: {error}") from None
