"""Text enters through one door: one reading of UTF-8, of its mark, of the ends of lines and of halves of surrogate pairs."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import redraft
from redraft.cli import Parser, split_flags
from redraft.config import read_toml
from redraft.errors import UserError
from redraft.evaluation.generation.mt_bench import questions
from redraft.files import clean, decoded, lines, read_json, read_text
from redraft.scaling.records import json_lines, load_points
from redraft.text.examples.chat import template
from redraft.text.tokenizers.tokenizer import Bytes, load_tokenizer

MARKS = (
    "\u2028",
    "\u2029",
    "\x85",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1d",
    "\x1e",
)  # where str.splitlines cuts, and no line ends


def tokenizer_json() -> str:
    """A byte-level tokenizer without a merge."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    level, engine = pre_tokenizers.ByteLevel(add_prefix_space=False), Tokenizer(models.BPE())
    engine.pre_tokenizer, engine.decoder = level, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=257, special_tokens=["<eos>"], initial_alphabet=level.alphabet())
    engine.train_from_iterator([], trainer)
    return str(engine.to_str())


ROW = {"family": "ar", "params": 1e6, "tokens": 1e8, "loss": 3.0, "flops": 6e14}


@given(st.lists(st.text(st.characters(exclude_characters="\r\n"))))
def test_lines_end_at_newlines_alone(some: list[str]) -> None:
    for end in ("\n", "\r\n"):
        assert lines("".join(f"{line}{end}" for line in some)) == some
    assert lines("a\nb") == ["a", "b"]


@given(st.text(st.characters()))
def test_text_is_its_own_clean_form_and_halves_of_pairs_are_marked(text: str) -> None:
    assert clean(text) == text or re.search("[\ud800-\udfff]", text)
    assert clean(clean(text)) == clean(text) and len(clean(text)) == len(text)
    clean(text).encode()


@pytest.mark.parametrize("mark", MARKS)
def test_a_line_of_json_may_hold_other_separators(mark: str, tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text(json.dumps({**ROW, "name": f"a{mark}b"}, ensure_ascii=False) + "\n", "utf-8")
    assert [row["name"] for _, row in json_lines(tmp_path / "runs.jsonl")] == [f"a{mark}b"]
    asked = {"question_id": 1, "category": "x", "turns": [f"one{mark}two"]}
    (tmp_path / "q.jsonl").write_text(json.dumps(asked, ensure_ascii=False) + "\n", "utf-8")
    assert questions(tmp_path / "q.jsonl")[0]["turns"] == [f"one{mark}two"]


def losses(path: Path) -> list[tuple[str, float]]:
    return [(point.family, point.loss) for point in load_points(path)]


ROOMS: dict[str, tuple[str, Any]] = {
    "table.json": (json.dumps([ROW]), losses),
    "runs.jsonl": (json.dumps(ROW), losses),
    "runs.csv": ("family,params,tokens,loss,flops\nar,1e6,1e8,3.0,6e14\n", losses),
    "q.jsonl": (json.dumps({"question_id": 1, "category": "x", "turns": ["a"]}), questions),
    "recipe.toml": ("seed = 3\n", read_toml),
    "record.json": ("{}", read_json),
    "chat.jinja": ("{% for m in messages %}{{ m.content }}{% endfor %}", lambda path: bool(template(str(path)))),
    "tokenizer.json": ("", lambda path: load_tokenizer(path).encode("ab").tolist()),
}


@pytest.mark.parametrize("name", ROOMS)
def test_a_byte_order_mark_is_no_part_of_any_text(name: str, tmp_path: Path) -> None:
    text, read = ROOMS[name]
    text = text or tokenizer_json()
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / name).write_text(text, "utf-8")
    (tmp_path / name).write_bytes(BOM_UTF8 + text.encode())
    assert read(tmp_path / name) == read(tmp_path / "plain" / name)


@pytest.mark.parametrize("name", [name for name in ROOMS if name != "tokenizer.json"])
def test_bytes_that_are_no_text_are_one_line_that_names_file_and_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"first\ncaf\xe9\n")
    with pytest.raises(UserError, match=f"{name} is not UTF-8 text .*in line 2"):
        ROOMS[name][1](tmp_path / name)


def test_one_place_reads_text() -> None:
    """`str.splitlines` and a bare `read_text` are for what redraft or Python wrote itself."""
    source = Path(redraft.__file__).parent
    found = {
        str(path.relative_to(source))
        for path in source.rglob("*.py")
        if "transformers_code" not in path.parts and re.search(r"\.read_text\(|open\(encoding", path.read_text())
    }
    own = {"evaluation/generation/memory.py", "hub/export/export.py", "hub/remote.py", "planning/study.py"}
    own |= {"report/page.py", "report/report.py", "text/shards/shards.py", "training/journal.py", "commands/list.py"}
    own |= {"scaling/published/laws.py"}
    assert found <= own


def test_encode_reads_half_a_pair_as_its_clean_form(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer_json())
    for tokenizer in (Bytes(), load_tokenizer(tmp_path / "tokenizer.json")):
        assert tokenizer.encode("a \ud83d b").tolist() == tokenizer.encode("a ? b").tolist()


def test_a_value_that_begins_with_dashes_reaches_its_flag() -> None:
    parser = Parser()
    parser.add_argument("model")
    parser.add_argument("--prompt")
    parser.add_argument("--json", action="store_true")
    for value in ("-- is it?", "--what", "-x", "-5"):
        own, others = split_flags(["m", "--prompt", value, "--json"], parser._option_string_actions)
        assert others == [] and parser.parse_args(own).prompt == value
    own, others = split_flags(["m", "--prompt", "--train.lr", "1"], parser._option_string_actions)
    assert others == ["--train.lr", "1"]


def test_decoded_and_read_text_agree(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"a\r\nb")
    assert read_text(tmp_path / "t") == decoded(b"a\r\nb", "t") == "a\r\nb"
    with pytest.raises(UserError, match="no such file"):
        read_text(tmp_path / "absent")
