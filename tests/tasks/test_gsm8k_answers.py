"""GSM8K's answers, against cases marked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from redraft.errors import UserError
from redraft.tasks.gsm8k_answers import Equations, equations, final_answer, is_right, problems

MARKED = [  # what a model wrote, the right answer, whether it is right
    ("<<16-3-4=9>> <<9*2=18>> #### 18", "18", True),
    ("#### 18.", "18", True),
    ("#### 18.0", "18", True),
    ("#### 1,234", "1234", True),
    ("#### $1,234.50", "1234.5", True),
    ("#### 42 apples", "42", True),
    ("#### -7", "-7", True),
    ("#### \u22127", "-7", True),
    ("#### - 7", "-7", True),
    ("#### -7", "7", False),
    ("#### 50%", "50", True),
    ("#### 1/2", "0.5", True),
    ("#### 0.333", "1/3", False),
    ("#### 10\nAnd so on: 11", "10", True),
    ("#### 9 #### 10", "10", True),
    ("#### 10 #### 9", "10", False),
    ("#### 10 or 11", "10", False),
    ("####", "10", False),
    ("####   \n", "10", False),
    ("The answer is 10.", "10", False),
    ("", "10", False),
    ("#### ten", "10", False),
    ("#### 1/0", "10", False),
    ("#### 070", "70", True),
    ("#### 18", "#### 18", True),
    ("####18", "18", True),
    ("#### \u20ac5", "5", True),
    ("#### x", "x", True),
]


@pytest.mark.parametrize(("text", "answer", "right"), MARKED)
def test_the_checker_agrees_with_the_hand(text: str, answer: str, right: bool) -> None:
    assert is_right(text, answer) is right


def test_no_mark_is_no_answer() -> None:
    assert final_answer("42") is None
    assert final_answer("#### 42 \nrest") == "42"


@pytest.mark.parametrize(
    ("text", "said", "hold"),
    [
        ("<<16-3-4=9>> <<9*2=18>>", 2, 2),
        ("<<2/2=1>> <<2+1=4>>", 2, 1),
        ("<<(1+2)*3=9>>", 1, 1),
        ("<<2+3*4=14>>", 1, 1),
        ("<<10-3-2=5>>", 1, 1),
        ("<<1,000*2=2,000>>", 1, 1),
        ("<<10/3=3.33>>", 1, 1),
        ("<<10/3=3>>", 1, 0),
        ("<<1/0=1>>", 1, 0),
        ("<<(1+2=3>>", 1, 0),
        ("<<two+2=4>>", 1, 0),
        ("<<=4>>", 1, 0),
        ("<<-3+5=2>>", 1, 1),
        ("no equation", 0, 0),
    ],
)
def test_equations_are_checked_exactly(text: str, said: int, hold: int) -> None:
    assert equations(text) == Equations(said, hold)


def test_traces_and_records_are_read_alike(tmp_path: Path) -> None:
    traces, records = tmp_path / "a.txt", tmp_path / "b.jsonl"
    traces.write_text("How many?||<<1+2=3>> <<3*2=6>> #### 6\n")
    records.write_text(
        '{"question": "How\\nmany?", "answer": "1 and 2 are <<1+2=3>>3.\\nTwice: <<3*2=6>>6\\n#### 6"}\n'
    )
    assert list(problems(traces)) == list(problems(records))
    assert next(problems(traces)).trace == "How many?||<<1+2=3>> <<3*2=6>> #### 6"


def test_a_line_that_is_no_trace_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("How many?||6\n")
    with pytest.raises(UserError, match="line 1 of"):
        list(problems(path))
