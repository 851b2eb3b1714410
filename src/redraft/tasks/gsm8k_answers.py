"""GSM8K's answers (Cobbe et al. 2021, arXiv:2110.14168): what a text's final answer is, whether it is right, and whether its
equations hold. No torch.

    <<16-3-4=9>> <<9*2=18>> #### 18

The answer is what follows the last `####`, to the end of its line. It is compared as a number where both are numbers: commas,
currency, units, a final dot, signs, fractions and percents do not matter to it; else as words. SMDM's rule, without sympy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from redraft.errors import UserError
from redraft.files import whereabouts
from redraft.text.sources.formats import read_records

MARK = "####"
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?")
_EQUATION = re.compile(r"<<([^<>=]*)=([^<>=]*)>>")


def final_answer(text: str) -> str | None:
    """What follows the last mark, to the end of its line; None where there is no mark, or nothing after it."""
    _, mark, after = text.rpartition(MARK)
    answer = after.strip().splitlines()[0].strip() if mark and after.strip() else ""
    return answer or None


def number(answer: str) -> Fraction | None:
    """The number that an answer states; None where it states none, or several."""
    plain = answer.replace("\u2212", "-").replace("$", "").replace("\u20ac", "").replace("\u00a3", "")
    plain = re.sub(r"([-+])\s+(?=[\d.])", r"\1", plain)
    found = _NUMBER.findall(plain)
    if len(found) != 1:
        return None
    top, _, bottom = re.sub(r"[\s,]", "", found[0]).partition("/")
    return None if bottom and not int(bottom) else Fraction(top) / Fraction(bottom or 1)


def same_answer(said: str | None, right: str) -> bool:
    """Whether an answer that was given is the right one."""
    if said is None:
        return False
    theirs, ours = number(said), number(right)
    if theirs is None or ours is None:
        return _words(said) == _words(right)
    return theirs == ours


def _words(answer: str) -> str:
    return " ".join(answer.lower().rstrip(".").split())


def is_right(text: str, answer: str) -> bool:
    """Whether a generated text ends in the right answer (`answer` as the data have it, with or without the mark)."""
    return same_answer(final_answer(text), final_answer(answer) or answer)


class Equations(NamedTuple):
    """Of a text's <<...=...>>: how many there are, and how many hold (within half a unit of the last digit said)."""

    said: int
    hold: int


def equations(text: str) -> Equations:
    found = _EQUATION.findall(text)
    return Equations(len(found), sum(_holds(left, right) for left, right in found))


def _holds(left: str, right: str) -> bool:
    value, said = _value(left), number(right)
    if value is None or said is None:
        return False
    digits = len(right.partition(".")[2]) if "." in right else 0
    return abs(value - said) <= Fraction(1, 2 * 10**digits) * (digits > 0)


def _value(text: str) -> Fraction | None:
    """The value of + - * / and brackets over numbers; None for anything else, and for a division by zero."""
    tokens = re.findall(r"\d+(?:\.\d+)?|\.\d+|[-+*/()]", text.replace(",", ""))
    if "".join(tokens) != re.sub(r"[\s,]", "", text) or not tokens:
        return None
    try:
        value = _sum(tokens)
    except (IndexError, ValueError, ZeroDivisionError):
        return None
    return None if tokens else value


def _sum(tokens: list[str]) -> Fraction:
    value = _product(tokens)
    while tokens and tokens[0] in "+-":
        value = value + _product(tokens) if tokens.pop(0) == "+" else value - _product(tokens)
    return value


def _product(tokens: list[str]) -> Fraction:
    value = _factor(tokens)
    while tokens and tokens[0] in "*/":
        value = value * _factor(tokens) if tokens.pop(0) == "*" else value / _factor(tokens)
    return value


def _factor(tokens: list[str]) -> Fraction:
    first = tokens.pop(0)
    if first == "-":
        return -_factor(tokens)
    if first != "(":
        return Fraction(first)
    value = _sum(tokens)
    if tokens.pop(0) != ")":
        raise ValueError("unbalanced")
    return value


class Problem(NamedTuple):
    question: str
    steps: str
    answer: str

    @property
    def trace(self) -> str:
        """A line of the trace format (text/examples/prompts.py)."""
        return f"{self.question}||{f'{self.steps} ' if self.steps else ''}{MARK} {self.answer}"


def problems(path: Path) -> Iterator[Problem]:
    """Of a file of traces, or of GSM8K's own .jsonl ("question", "answer"), of which the equations are taken.

    `UserError` names the line of a record that is neither.
    """
    if not path.is_file():
        raise UserError(f"no such file: {path}{whereabouts(path)}")
    for at, row in read_records(path):
        yield (
            _of_trace(row, f"line {at} of {path}") if isinstance(row, str) else _of_record(row, f"line {at} of {path}")
        )


def _of_trace(line: str, where: str) -> Problem:
    if line.count("||") != 1 or line.count(MARK) != 1:
        raise UserError(f"{where} is no trace: write question||steps {MARK} answer, with one '||' and one '{MARK}'")
    question, rest = line.split("||")
    steps, answer = rest.split(MARK)
    return Problem(_one_line(question), _one_line(steps), answer.strip())


def _of_record(row: Any, where: str) -> Problem:
    question, answer = row.get("question"), row.get("answer")
    if not (isinstance(question, str) and isinstance(answer, str) and final_answer(answer)):
        raise UserError(f"{where} is no problem: give 'question', and 'answer' that ends in '{MARK} number'")
    steps = " ".join(f"<<{left}={right}>>" for left, right in _EQUATION.findall(answer))
    return Problem(_one_line(question.replace("||", " ")), steps, final_answer(answer) or "")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def as_prompt(problem: Problem) -> str:
    """The prompt that the trace format makes of a question: what a model is asked."""
    return f"Question: {problem.question}\n"


def completion(problem: Problem) -> str:
    """What should follow the prompt."""
    return f"Answer: {f'{problem.steps} ' if problem.steps else ''}{MARK} {problem.answer}"


def prompts_line(prompt: str, answer: str) -> str:
    return json.dumps({"prompt": prompt, "completion": answer}, ensure_ascii=False) + "\n"
