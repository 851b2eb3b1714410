"""Fine-tuning records as text: parts of a prompt and a completion, of which some are scored.

prompts   an object a line: {"prompt": ..., "completion": ...}
chat      an object a line: {"messages": [{"role": ..., "content": ...}, ...]}, written out by a template (`chat`)
traces    a line each: question||steps #### answer, as GSM8K's equation traces (arXiv:2410.18514, section 5)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from redraft.errors import UserError, unknown
from redraft.files import clean
from redraft.text.examples.chat import END, template, turns
from redraft.text.sources.corpus import Files, HubDataset, open_source
from redraft.text.sources.formats import read_records
from redraft.text.tokenizers.tokenizer import END_OF_DOCUMENT

FORMATS = ("prompts", "chat", "traces")
TRACES = ("whole", "staged")
DEFAULT_TEMPLATE = {"prompts": "", "chat": "vicuna", "traces": "whole"}


class Part(NamedTuple):
    """`paid`: learned, and never given. The text may hold `chat.END` for the end of text."""

    text: str
    paid: bool


class Record(NamedTuple):
    """What one record of a file makes: examples, each of parts. `where` is for people."""

    where: str
    examples: tuple[tuple[Part, ...], ...]


def detected(spec: str) -> str:
    """The format of a source whose files say it: objects with `prompt` and `completion`, or with `messages`. All else is text,
    lines of traces too: a `.txt` file may be anything."""
    if spec == "stdlib" or spec.startswith("hf:"):
        return "text"
    try:
        source = open_source(spec)
    except UserError:
        return "text"  # packed tokens, or what the reader of text will complain about
    assert isinstance(source, Files)
    first = next(read_records(source.paths[0]), (0, ""))[1]
    if isinstance(first, str) or "text" in first or "content" in first:
        return "text"
    if "messages" in first:
        return "chat"
    return "prompts" if {"prompt", "completion"} <= first.keys() else "text"


def read_prompts(spec: str, form: str, style: str | None) -> Iterator[Record]:
    """The records of a source in their order. `style`: the template of a chat, or `whole` or `staged` for traces.

    Raises `UserError` naming the file and line of a record that is malformed, or of which nothing is to be learned.
    """
    style = DEFAULT_TEMPLATE[form] if style is None else style
    if form == "traces" and style not in TRACES:
        raise unknown("data.template for traces", style, TRACES)
    if form == "prompts" and style:
        raise UserError("data.template is for chat and traces: prompts are taken as they are, so leave it out.")
    compiled = template(style) if form == "chat" else None
    for where, row in _records(spec):
        if form == "traces":
            examples = _trace(row, style, where)
        elif form == "chat":
            said = turns(_field(row, "messages", where), compiled, where)
            examples = (tuple(Part(clean(text), paid) for text, paid in said),)
        else:
            examples = (_prompt(row, where),)
        yield Record(where, examples)


def _records(spec: str) -> Iterator[tuple[str, Any]]:
    source = open_source(spec)
    if isinstance(source, HubDataset):
        yield from ((f"row {n} of hf:{source.spec}", row) for n, row in enumerate(source.rows(), start=1))
    elif isinstance(source, Files):
        for path in source.paths:
            yield from ((f"line {n} of {path}", row) for n, row in read_records(path))
    else:
        raise UserError(f"{spec} holds no prompts: name files, a folder or hf:NAME.")


def _prompt(row: Any, where: str) -> tuple[Part, ...]:
    prompt, completion = (_field(row, name, where) for name in ("prompt", "completion"))
    for name, text in (("prompt", prompt), ("completion", completion)):
        if not isinstance(text, str):
            raise UserError(f"{where} holds a {type(text).__name__} in its field {name!r}: it must hold text.")
        if END in text:
            raise UserError(f"{where}: its {name} holds the characters that stand for the end of text.")
    return Part(clean(prompt), False), Part(_without_end(clean(completion), where), True)


def _trace(row: Any, style: str, where: str) -> tuple[tuple[Part, ...], ...]:
    """One example a line; `staged`: the steps given the question, then the answer given both, as in SMDM's code."""
    if not isinstance(row, str) or row.count("||") != 1 or row.count("####") != 1:
        raise UserError(f"{where} is no trace: write question||steps #### answer, with one '||' and one '####'.")
    question, rest = row.split("||")
    steps, answer = (part.strip() for part in rest.split("####"))
    if not (question.strip() and answer):
        missing = "answer" if question.strip() else "question"
        raise UserError(f"{where} has no {missing}: write question||steps #### answer.")
    asked = Part(f"Question: {question.strip()}\n", False)
    if style == "whole":
        return ((asked, Part(f"Answer: {f'{steps} ' if steps else ''}#### {answer}", True)),)
    given = Part(f"{asked.text}Answer: {steps}\n", False)
    return (asked, Part(f"Answer: {steps}", True)), (given, Part(f"#### {answer}", True))


def _field(row: Any, name: str, where: str) -> Any:
    if not isinstance(row, Mapping) or name not in row:
        have = ", ".join(sorted(row)) or "none" if isinstance(row, Mapping) else "it is a line of text"
        mend = "rename the one to read, or set data.format"
        raise UserError(f"{where} has no field {name!r} (its fields: {have}): {mend}.")
    return row[name]


def _without_end(completion: str, where: str) -> str:
    """A completion without an end of text that it spells out, which is `data.eos`'s to add."""
    for mark in END_OF_DOCUMENT:
        completion = completion.removesuffix(mark)
    if not completion.strip():
        raise UserError(f"{where} has an empty completion: there is nothing to learn from it, so take the line out.")
    return completion
