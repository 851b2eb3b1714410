"""Prompts and completions: read is what was written, only completions are paid for, and what is wrong names its line."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redraft.errors import UserError
from redraft.text.examples.chat import END, TEMPLATES
from redraft.text.examples.examples import Examples, PromptCorpus, Recipe, Shuffled, encoded, prepare_prompts
from redraft.text.examples.prompts import Part, detected, read_prompts
from redraft.text.tokenizers.tokenizer import Bytes, Tokenizer

BYTES = Bytes()
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "Bye."},
]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return str(path)


def pairs(folder: Path, n: int = 40, name: str = "pairs.jsonl") -> str:
    return write(
        folder / name, [{"prompt": f"{i} and one is", "completion": f" {i + 1}" + "!" * (i % 5)} for i in range(n)]
    )


def prepared(source: str, folder: Path, form: str = "prompts", **over: Any) -> PromptCorpus:
    recipe = Recipe(form, over.pop("style", None), over.pop("length", 64), **over.pop("recipe", {}))
    return prepare_prompts(source, BYTES, recipe, cache=folder / "cache", **over)


def texts(examples: Examples) -> list[tuple[str, str]]:
    """Each example's prompt and completion, decoded; `$` is the end of text."""
    rows = examples.spread()
    assert rows.lengths is not None
    out = []
    for tokens, scored, length in zip(rows.tokens, rows.scored, rows.lengths, strict=True):
        assert not scored[length:].any() and not tokens[length:].any()
        marked = ["$" if t == BYTES.eos else chr(t) for t in tokens[:length]]
        out.append(tuple("".join(c for c, s in zip(marked, scored) if s == paid) for paid in (False, True)))
    return out


def test_completions_are_paid_for_and_prompts_given(tmp_path: Path) -> None:
    corpus = prepared(pairs(tmp_path), tmp_path)
    every = texts(corpus.split("train")) + texts(corpus.split("validation"))
    assert sorted(every) == sorted((f"{i} and one is", f" {i + 1}{'!' * (i % 5)}$") for i in range(40))
    assert corpus.split("validation").count >= 1


@pytest.mark.parametrize(("eos", "tail"), [("one", "$"), ("none", ""), ("fill", "$" * 5)])
def test_ends_of_text_by_option(eos: Any, tail: str) -> None:
    ids, paid = encoded((Part("ab", False), Part("cde", True)), BYTES, eos, 10)
    assert "".join("$" if i == BYTES.eos else chr(i) for i in ids) == "abcde" + tail
    assert paid.tolist() == [False, False] + [True] * (len(ids) - 2)


def test_spelled_out_end_of_text_is_not_doubled(tmp_path: Path) -> None:
    """As T0's completions have it; nor is one that a template has written."""
    source = write(tmp_path / "t0.jsonl", [{"prompt": "a", "completion": "b<|endoftext|>"}] * 3)
    assert set(texts(prepared(source, tmp_path).split("train"))) == {("a", "b$")}
    ids, _ = encoded((Part("a", False), Part(f"b{END}", True)), BYTES, "one", 10)
    assert ids.tolist() == [97, 98, BYTES.eos]


def test_long_examples_are_skipped_or_cut_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "p" * 3, "completion": "c" * n} for n in (2, 2, 4, 9)] + [
        {"prompt": "p" * 30, "completion": "c"}
    ]
    held_out = pairs(tmp_path, 2, "valid.jsonl")
    source = write(tmp_path / "long.jsonl", rows)
    cut = {"recipe": {"overlong": "truncate"}, "length": 8, "validation": held_out}
    with pytest.raises(
        UserError, match=r"all 2 examples of .*valid.jsonl for validation are longer than data.length 8"
    ):
        prepared(source, tmp_path, length=8, validation=held_out)
    with pytest.raises(UserError, match="all 2 examples of"):
        prepared(source, tmp_path, **cut)
    held_out = write(tmp_path / "short.jsonl", [{"prompt": "", "completion": "x"}])
    train = prepared(source, tmp_path, length=8, validation=held_out).split("train")
    assert (train.count, train.skipped, train.truncated) == (3, 2, 0)
    train = prepared(source, tmp_path, **{**cut, "validation": held_out}).split("train")
    assert (train.count, train.skipped, train.truncated) == (4, 1, 1)
    assert texts(train)[-1] == ("ppp", "ccccc")
    assert train.bytes == 2 + 2 + 4 + 5


BAD = {
    "empty completion": ({"prompt": "a", "completion": " \n"}, "has an empty completion"),
    "no completion": ({"prompt": "a"}, "has no field 'completion'"),
    "not text": ({"prompt": 3, "completion": "b"}, "holds a int in its field 'prompt'"),
    "not JSON": ("{oops", "is not JSON"),
    "a list": ("[1]", "is a JSON list"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_names_file_and_line(name: str, tmp_path: Path) -> None:
    row, message = BAD[name]
    source = write(tmp_path / "bad.jsonl", [{"prompt": "a", "completion": "b"}, row])
    with pytest.raises(UserError, match=message) as caught:
        list(read_prompts(source, "prompts", None))
    assert f"line 2 of {source}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["no bars #### 3", "q||steps 3", "q||a||b #### 3", "q||s #### 3 #### 4", "q||s #### "])
def test_malformed_traces_name_their_line(line: str, tmp_path: Path) -> None:
    source = write(tmp_path / "bad.txt", ["q||<<1+1=2>> #### 2", line])
    with pytest.raises(UserError, match=rf"line 2 of {source}"):
        list(read_prompts(source, "traces", None))


def test_traces_whole_and_staged(tmp_path: Path) -> None:
    source = write(tmp_path / "traces.txt", ["How many?||<<1+1=2>> <<2*2=4>> #### 4", "q||s #### 1"])
    (whole,) = next(iter(read_prompts(source, "traces", None))).examples
    assert whole == (("Question: How many?\n", False), ("Answer: <<1+1=2>> <<2*2=4>> #### 4", True))
    first, second = next(iter(read_prompts(source, "traces", "staged"))).examples
    assert first == (("Question: How many?\n", False), ("Answer: <<1+1=2>> <<2*2=4>>", True))
    assert second == (("Question: How many?\nAnswer: <<1+1=2>> <<2*2=4>>\n", False), ("#### 4", True))


@pytest.mark.parametrize("style", TEMPLATES)
def test_every_turn_of_the_assistant_is_paid_for_and_no_other(style: str, tmp_path: Path) -> None:
    source = write(tmp_path / "chat.jsonl", [{"messages": [*TURNS, {"role": "user", "content": "Never answered"}]}])
    (parts,) = next(iter(read_prompts(source, "chat", style))).examples
    given, said = ("".join(p.text for p in parts if p.paid is paid) for paid in (False, True))
    assert all(word in given for word in ("Be brief.", "Hello?", "And?")) and "Never" not in given + said
    assert "Hi." in said and "Bye." in said and "Hello" not in said and "And" not in said
    assert parts[-1].paid


def test_vicuna_is_smdms_prompt(tmp_path: Path) -> None:
    source = write(tmp_path / "chat.jsonl", [{"messages": TURNS[1:3]}])
    (parts,) = next(iter(read_prompts(source, "chat", "vicuna"))).examples
    assert "".join(p.text for p in parts) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
        f"and polite answers to the user's questions. USER: Hello? ASSISTANT: Hi.{END}"
    )
    assert parts[1] == (f" Hi.{END}", True)


def test_a_users_own_template(tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text(
        "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
    )
    source = write(tmp_path / "chat.jsonl", [{"messages": TURNS[1:3]}])
    (parts,) = next(iter(read_prompts(source, "chat", str(own)))).examples
    assert parts == (("[u]Hello?[a]", False), ("Hi.", True))
    own.write_text("{{ messages | length }}{% if add_generation_prompt %} then{% endif %}")
    other = tmp_path / "other.jinja"
    other.write_text(own.read_text())
    with pytest.raises(UserError, match=r"line 1 of .*: the template does not write turn 2 after the turns before it"):
        list(read_prompts(source, "chat", str(other)))
    with pytest.raises(UserError, match="Did you mean 'vicuna'"):
        list(read_prompts(source, "chat", "vicunna"))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hello", "must be a list of turns"),
        ([{"role": "user", "content": "a"}], "has no turn of the role 'assistant'"),
        ([{"role": "robot", "content": "a"}], "has the role 'robot'"),
        ([{"role": "assistant", "content": " "}], "turn 1 says nothing"),
        ([{"role": "assistant"}], "turn 1 must be an object"),
    ],
)
def test_broken_conversations_name_their_line(messages: Any, message: str, tmp_path: Path) -> None:
    source = write(tmp_path / "chat.jsonl", [{"messages": TURNS}, {"messages": messages}])
    with pytest.raises(UserError, match=message) as caught:
        list(read_prompts(source, "chat", None))
    assert f"line 2 of {source}" in str(caught.value)


def test_formats_are_told_apart_where_fields_say_it(tmp_path: Path) -> None:
    assert detected(pairs(tmp_path)) == "prompts"
    assert detected(write(tmp_path / "chat.jsonl", [{"messages": TURNS}])) == "chat"
    assert detected(write(tmp_path / "text.jsonl", [{"text": "a", "prompt": "b", "completion": "c"}])) == "text"
    assert detected(write(tmp_path / "lines.txt", ["q||s #### 1"])) == "text"
    assert detected("stdlib") == detected("hf:some/thing") == "text"


def test_a_second_run_reads_what_the_first_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pairs(tmp_path)
    first = prepared(source, tmp_path)
    monkeypatch.setattr(Bytes, "encode", None)
    again = prepared(source, tmp_path)
    assert again.sha256 == first.sha256 and texts(again.split("train")) == texts(first.split("train"))
    assert again.split("train").bytes == first.split("train").bytes


def test_a_damaged_cache_is_encoded_again(tmp_path: Path) -> None:
    source = pairs(tmp_path)
    first = prepared(source, tmp_path)
    (stored,) = (tmp_path / "cache").iterdir()
    stored.write_bytes(stored.read_bytes()[:200])
    assert prepared(source, tmp_path).sha256 == first.sha256


def test_the_same_file_cannot_validate(tmp_path: Path) -> None:
    source = pairs(tmp_path)
    with pytest.raises(UserError, match="is in both"):
        prepared(source, tmp_path, validation=source)


def test_every_epoch_holds_every_example_once(tmp_path: Path) -> None:
    examples = prepared(pairs(tmp_path), tmp_path).split("train")
    order, n = Shuffled(examples, seed=1), examples.count
    epochs = [texts_of(order, np.arange(e * n, (e + 1) * n)) for e in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]
    for samples in (0, 1, n - 1, n, 2 * n + 3):
        rows = order.rows(np.arange(samples)) if samples else None
        assert order.tokens_in(samples) == (0 if rows is None or rows.lengths is None else rows.lengths.sum())


def texts_of(order: Shuffled, index: Any) -> list[tuple[int, ...]]:
    rows = order.rows(index)
    assert rows.lengths is not None
    return [tuple(t[:n]) for t, n in zip(rows.tokens.tolist(), rows.lengths.tolist(), strict=True)]


def test_parts_put_no_space_between_them(tokenizer: Tokenizer) -> None:
    """Encoded apart, decoded together: what was written, for models that put a space before a first word too."""
    for parts in (("Question: two?\n", "Answer: 2"), ("known as", " the one"), ("a", "b"), ("x\n", "\ny")):
        ids, _ = encoded(tuple(Part(p, i > 0) for i, p in enumerate(parts)), tokenizer, "one", 99)
        assert tokenizer.decode(ids) == "".join(parts) and ids[-1] == tokenizer.eos
        alone = tokenizer.encode(parts[0])
        assert ids[: len(alone)].tolist() == alone.tolist()


def test_real_data_is_read(data: Path, tmp_path: Path) -> None:
    """GSM8K's traces and the reversal curse's prompts, every line of them."""
    folder = data / "gsm8k" / "equation_traces"
    lines = list(read_prompts(str(folder / "valid.txt.xz"), "traces", None))
    assert len(lines) == 500 and lines[0].examples[0][1].text.startswith("Answer: <<4-2=2>>")
    reversal = data / "reversal_curse" / "all_prompts_train.jsonl.xz"
    assert detected(str(reversal)) == "prompts"
    corpus = prepared(
        str(reversal), tmp_path, length=256, validation=str(reversal.with_name("validation_prompts.jsonl.xz"))
    )
    first = json.loads(lzma.decompress(reversal.read_bytes()).splitlines()[0])
    assert texts(corpus.split("train"))[0] == (first["prompt"], first["completion"] + "$")
    assert corpus.split("train").count + corpus.split("train").skipped == 3600
