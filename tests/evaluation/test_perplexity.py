"""Zero-shot perplexity: what is scored under each convention, counted by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.cli import main
from redraft.errors import UserError
from redraft.evaluation.likelihood.nelbo import Bound
from redraft.evaluation.likelihood.perplexity import Convention, windows
from redraft.runs.claim import open_run
from redraft.runs.compare import compare, read_result
from redraft.runs.run import carry_out
from redraft.text.sources.detokenize import RULES, detokenizer
from redraft.text.tokenizers.tokenizer import Bytes
from tests.small_runs import corpus, tiny

TEXTS = ["abcdefg", "hij", "", "klmnopqrstuvw"]
CONVENTIONS = [
    Convention(5), Convention(5, "documents"), Convention(5, stride=2), Convention(5, "documents", stride=3),
    Convention(5, framed=True), Convention(5, "documents", framed=True),
]  # fmt: skip


def paid(texts: list[str], how: Convention) -> list[int]:
    rows = windows(texts, Bytes(), how).rows
    return [int(t) for tokens, scored in zip(rows.tokens, rows.scored, strict=True) for t in tokens[scored]]


@pytest.mark.parametrize("how", CONVENTIONS, ids=str)
@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text("ab c", max_size=30), min_size=1, max_size=5))
def test_every_token_is_paid_for_once_whatever_the_windows(how: Convention, texts: list[str]) -> None:
    if not any(texts):
        with pytest.raises(UserError, match="no text to score"):
            windows(texts, Bytes(), how)
        return
    ends = [256] if how.wrap == "stream" else []
    expected = [token for text in texts if text for token in [*text.encode(), *ends]]
    found = paid(texts, how)
    if how.framed:
        found = [t for row in windows(texts, Bytes(), how).rows.tokens for t in row.tolist()]
        assert [t for t in found if t not in (256, 0)] == [t for t in expected if t != 256]
    else:
        assert found == expected


def test_a_stride_gives_every_later_token_the_longest_context_it_can() -> None:
    """Windows of 5 by 2: tokens 5 and 6 are read after 0..4's last three; no window holds more than 5."""
    scored = windows(["abcdefgh"], Bytes(), Convention(5, "documents", stride=2))
    assert scored.rows.lengths is None or scored.rows.lengths.tolist() == [5, 5, 5]
    assert ["".join(map(chr, row)) for row in scored.rows.tokens] == ["abcde", "cdefg", "defgh"]
    assert scored.rows.scored.tolist() == [[True] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]]


def test_bytes_and_words_are_those_of_the_text_as_it_came() -> None:
    text = " well @-@ known , \n"
    scored = windows([text], Bytes(), Convention(64, "documents", detokenize="wikitext"))
    assert (scored.bytes, scored.words) == (len(text), 4)
    assert scored.tokens == len("well-known,\n")
    sizes = scored.per_text(Bound(0.5, 0.0, 0.1, True, 1, 1))
    assert sizes["bits_per_byte"] == pytest.approx(0.5 * scored.tokens / math.log(2) / len(text))
    assert sizes["bits_per_byte_se"] == pytest.approx(0.1 * scored.tokens / math.log(2) / len(text))
    assert sizes["word_perplexity"] == pytest.approx(math.exp(0.5 * scored.tokens / 4))


def test_a_limit_spreads_evenly_and_counts_its_share_of_the_bytes() -> None:
    scored = windows(["ab" * 50], Bytes(), Convention(10, "documents"), limit=5)
    assert (len(scored.rows.tokens), scored.tokens, scored.bytes, scored.share) == (5, 50, 50, 0.5)


def test_framed_windows_begin_and_end_with_the_end_of_document() -> None:
    rows = windows(TEXTS, Bytes(), Convention(6, framed=True)).rows
    lengths = rows.lengths if rows.lengths is not None else np.full(len(rows.tokens), 6)
    for row, length in zip(rows.tokens, lengths, strict=True):
        assert row[0] == row[length - 1] == 256


@pytest.mark.parametrize(
    ("rules", "given", "expected"),
    [
        ("wikitext", " He 's 4 @,@ 000 m ( well @-@ known ) . \n", "He's 4,000 m (well-known).\n"),
        ("wikitext", ' the play " Herons " was performed ; he \'d gone \n', 'the play "Herons" was performed; he\'d gone\n'),
        ("wikitext", " = = Career = = \n", "= = Career = =\n"),
        ("ptb", "mr. x does n't own $ N of it 's stock .", "mr. x doesn't own $N of it's stock."),
        ("lm1b", 'He said , " I wo n\'t pay $ 5 " .', 'He said, "I won\'t pay $5".'),
        ("lambada", "``no,'' she said. ‘yes’", "\"no,\" she said. 'yes'"),
    ],
)  # fmt: skip
def test_detokenizers_write_as_people_do(rules: str, given: str, expected: str) -> None:
    assert detokenizer(rules)(given) == expected


def test_what_does_not_fit_is_named() -> None:
    for arguments, said in [
        ({"length": 8, "wrap": "pages"}, "wrap"),
        ({"length": 8, "stride": 9}, "stride of 9"),
        ({"length": 8, "framed": True, "stride": 4}, "framed"),
        ({"length": 8, "detokenize": "wiki"}, "wikitext"),
    ]:
        with pytest.raises(UserError, match=said):
            Convention(**arguments)
    assert set(RULES) == {"wikitext", "ptb", "lm1b", "lambada"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """An AR and a Duo run of four steps on the same text."""
    folder = tmp_path_factory.mktemp("runs")
    source = corpus(folder / "prose")
    found = [folder / name for name in ("ar", "duo")]
    for run in found:
        for _ in carry_out(open_run(tiny(source, family=run.name, budget={"steps": 4}), run), run):
            pass
    return found


def test_results_of_real_evaluations_are_what_compare_reads(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way: a text of one's own under two conventions, prompts, the records, and what may be compared of them."""
    text, prompts = tmp_path / "text.txt", tmp_path / "prompts.jsonl"
    text.write_text("the cat sat on the mat and that was that. " * 5)
    prompts.write_text("".join(json.dumps({"prompt": "a", "completion": f"b{n}"}) + "\n" for n in range(6)))
    for run in runs:
        for name, flags in (
            ("t", [text]),
            ("d", [text, "--wrap", "documents", "--stride", "5"]),
            ("p", [prompts]),
            ("s", [text, "--length", "4"]),
        ):
            main(["eval", str(run), "--data", *map(str, flags), "--out", str(tmp_path / f"{run.name}-{name}.json")])
    capsys.readouterr()
    sizes = {f.stem: json.loads(f.read_text()) for f in tmp_path.glob("*-?.json")}
    assert sizes["ar-t"]["tokens"] == len(text.read_bytes()) + 1 and sizes["ar-d"]["tokens"] == len(text.read_bytes())
    assert sizes["ar-p"]["share"] == 1 and sizes["ar-p"]["convention"]["wrap"] == "prompts"
    assert sizes["ar-s"]["convention"]["length"] == 4 and sizes["ar-s"]["tokens"] == sizes["ar-t"]["tokens"]
    with pytest.raises(SystemExit):
        main(["eval", str(runs[0]), "--data", str(prompts), "--length", "4"])
    assert "--length is for text" in capsys.readouterr().err
    for other, refused in (("duo-t", ""), ("duo-d", "convention"), ("duo-p", "text"), ("duo-s", "convention")):
        line = compare(*(read_result(tmp_path / f"{name}.json") for name in ("ar-t", other))).lines[0]
        assert line.refused.partition(":")[0] == refused
    assert not any(line.refused for line in compare(*map(read_result, runs)).lines)
