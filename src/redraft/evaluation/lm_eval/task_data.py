"""Public evaluation sets from local files, in the fields that lm-eval's own tasks expect.

A file that is malformed is told by its name, its line or record, and the field: no document is ever left out silently.
"""

from __future__ import annotations

import bz2
import json
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from redraft.errors import UserError
from redraft.files import decoded, lines, whereabouts
from redraft.text.sources.formats import read_records

Docs = list[dict[str, Any]]
LABELS = "ABCDEFGH"
_QUESTION = re.compile(r"to the question: (.*?)\n+(Answer1: .*)\n+Answer format:", re.S)
_OPTION = re.compile(r"\s*Answer\d: ")
_BLANK = re.compile(r"given sentence: (.*?)\n+Option1: (.*?) Option2: (.*?) Answer format:", re.S)
_TRUE_FALSE = re.compile(r"true or false, question: (.*?)\n+Answer format:", re.S)
_TITLE = re.compile(r" = [^=].*[^=] = ")
_LAST_SENTENCE = re.compile(r"(.*[.!?][\"')]*) ([a-z][^.!?]*)", re.S)


class Row(NamedTuple):
    """A record, and where it is: for people."""

    where: str
    fields: dict[str, Any]

    def text(self, name: str) -> str:
        """A field that must hold some text."""
        value = self.fields.get(name)
        if not isinstance(value, str) or not value.strip():
            have = ", ".join(sorted(self.fields)) or "none"
            what = f"no text in its field {name!r}" if name in self.fields else f"no field {name!r}"
            raise UserError(f"{self.where} has {what} (its fields: {have})")
        return value


def hellaswag(path: Path) -> Docs:
    """Six lines a question: the context, the label, four endings. Here `ctx_b` is the unfinished last sentence."""
    lines, docs = _lines(path), Docs()
    for at in range(0, len(lines), 6):
        block, where = lines[at : at + 6], f"line {at + 1} of {path}"
        label, colon, context = block[0].partition(": ")
        if len(block) < 6 or block[1] not in "0123" or not colon or not all(map(str.strip, block)):
            raise UserError(f"{where}: a question is six lines: 'topic: context', the label 0 to 3, and four endings")
        cut = _LAST_SENTENCE.fullmatch(context)
        before, after = cut.groups() if cut else (context, "")
        docs.append({"activity_label": label, "ctx_a": before, "ctx_b": after, "endings": block[2:], "label": block[1]})
    return docs


def piqa(path: Path) -> Docs:
    """Its labels are a line each in `valid-labels.lst` beside it."""
    labels = path.with_name("valid-labels.lst")
    rows, given = list(_rows(path)), _lines(labels)
    if len(rows) != len(given) or set(given) - {"0", "1"}:
        raise UserError(
            f"{labels} must hold a 0 or 1 for each of the {len(rows)} questions of {path}: {len(given)} lines"
        )
    return [
        {**{name: row.text(name) for name in ("goal", "sol1", "sol2")}, "label": int(label)}
        for row, label in zip(rows, given, strict=True)
    ]


def science(path: Path) -> Docs:
    """ARC and OpenBookQA, from their instruction form: the options are parsed out of it."""
    docs = Docs()
    for row in _rows(path):
        question, options, answer = _options(row)
        labels = list(LABELS[: len(options)])
        choices = {"text": options, "label": labels}
        docs.append({"question": question, "question_stem": question, "choices": choices, "answerKey": labels[answer]})
    return docs


def social_iqa(path: Path) -> Docs:
    """The context and the question are one text there; the prompt puts a space between them, as where it is cut here."""
    docs = Docs()
    for row in _rows(path):
        text, options, answer = _options(row)
        if len(options) != 3:
            raise UserError(f"{row.where} has {len(options)} options, expected 3")
        context, _, question = text.partition(" ")
        named = dict(zip(("answerA", "answerB", "answerC"), options, strict=True))
        docs.append({"context": context, "question": question, **named, "label": str(answer + 1)})
    return docs


def winogrande(path: Path) -> Docs:
    docs = Docs()
    for row in _rows(path):
        sentence, first, second = _parsed(row, _BLANK, "a sentence with two options")
        answer = row.text("answer").removeprefix("option")
        if "_" not in sentence or answer not in ("1", "2"):
            raise UserError(f"{row.where} needs a sentence with a blank '_' and the answer option1 or option2")
        docs.append({"sentence": sentence, "option1": first, "option2": second, "answer": answer})
    return docs


def boolq(path: Path) -> Docs:
    """Without its passages, which are not in the file."""
    docs = Docs()
    for row in _rows(path):
        (question,) = _parsed(row, _TRUE_FALSE, "a question of true or false")
        answer = row.text("answer")
        if answer not in ("true", "false"):
            raise UserError(f"{row.where} has the answer {answer!r}: it must be true or false")
        docs.append({"question": question.rstrip("?"), "label": int(answer == "true")})
    return docs


def lambada(path: Path) -> Docs:
    return [{"text": row.text("text")} for row in _rows(path)]


def blimp(path: Path) -> dict[str, Docs]:
    """The pairs of each of its files, by name."""
    try:
        with tarfile.open(path) as archive:
            members = sorted((m for m in archive if m.isfile() and m.name.endswith(".jsonl")), key=lambda m: m.name)
            found = {Path(m.name).stem: archive.extractfile(m).read().decode() for m in members}  # type: ignore[union-attr]
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as an archive of BLiMP: {error}") from None
    fields = ("sentence_good", "sentence_bad")
    return {
        name: [{f: row.text(f) for f in fields} for row in _json_lines(text, f"{name} of {path}")]
        for name, text in found.items()
    }


def wikitext(path: Path) -> Docs:
    """One document a page: a page begins at a title of one equals sign."""
    pages: list[list[str]] = [[]]
    for line in _opened(path).split("\n"):
        if _TITLE.fullmatch(line):
            pages.append([])
        pages[-1].append(line)
    return [{"page": page} for lines in pages if (page := "\n".join(lines)).strip()]


def _options(row: Row) -> tuple[str, list[str], int]:
    """Question, options, and which is right, from 0."""
    question, listed = _parsed(row, _QUESTION, "a question with options Answer1: ... Answer2: ...")
    options = [option.strip() for option in _OPTION.split(listed)[1:]]
    answer = row.text("answer").removeprefix("answer")
    if not (answer.isdigit() and 1 <= int(answer) <= len(options)) or not all(options):
        raise UserError(
            f"{row.where} has the answer {row.fields['answer']!r} and {len(options)} options: they do not fit"
        )
    return question, options, int(answer) - 1


def _parsed(row: Row, pattern: re.Pattern[str], what: str) -> tuple[str, ...]:
    found = pattern.search(row.text("instruction"))
    if not found:
        raise UserError(f"{row.where} holds no {what} in its field 'instruction'")
    return tuple(part.strip() for part in found.groups())


def _rows(path: Path) -> Iterator[Row]:
    """Objects of a JSON array, or of JSON lines."""
    if ".jsonl" in path.name:
        yield from (Row(f"line {n} of {_exists(path)}", dict(row)) for n, row in read_records(path))  # type: ignore[arg-type]
        return
    try:
        table = json.loads(_opened(path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(table, list):
        raise UserError(f"{path} must hold a list of records")
    for number, row in enumerate(table, start=1):
        if not isinstance(row, dict):
            raise UserError(f"record {number} of {path} is no object")
        yield Row(f"record {number} of {path}", row)


def _json_lines(text: str, where: str) -> Iterator[Row]:
    for number, line in enumerate(text.rstrip("\n").split("\n"), start=1):
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise UserError(f"line {number} of {where} is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise UserError(f"line {number} of {where} is no object")
        yield Row(f"line {number} of {where}", fields)


def _lines(path: Path) -> list[str]:
    return lines(_opened(path))


def _opened(path: Path) -> str:
    """The text of a file, plain, `.xz` or `.bz2`."""
    data = _exists(path).read_bytes()
    try:
        data = (
            lzma.decompress(data) if path.suffix == ".xz" else bz2.decompress(data) if path.suffix == ".bz2" else data
        )
        return decoded(data, path)
    except (lzma.LZMAError, OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: it is damaged or no text ({error})") from None


def _exists(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"no such task file: {path}{whereabouts(path)}")
    return path
