"""Holes in texts: what is given stays, and what is written is cut out again."""

from __future__ import annotations

import pytest
import torch

from redraft.errors import UserError
from redraft.tasks.fill import Hole, canvas, hole
from redraft.tasks.shift import matched
from redraft.tasks.word_tokenizer import word_level
from redraft.text.tokenizers.tokenizer import Bytes, HuggingFace


def test_a_hole_is_all_that_is_free() -> None:
    made = canvas([Hole((5, 6), (7,), 2), Hole((5,))], length=7, eos=1)
    assert made.tokens.tolist() == [[5, 6, 1, 1, 7, 1, 1], [5, 1, 1, 1, 1, 1, 1]]
    assert made.fixed.int().tolist() == [[1, 1, 0, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0, 0]]


def test_a_text_too_long_is_refused() -> None:
    with pytest.raises(UserError, match="too long for rows of 4"):
        canvas([Hole((1, 2, 3), (4,), 1)], length=4, eos=0)
    with pytest.raises(UserError, match="too long for rows of 3"):
        canvas([Hole((1, 2, 3))], length=3, eos=0)


@pytest.mark.parametrize("tokenizer", [Bytes(), HuggingFace(word_level(["we saw Balo Mervin there"]))])
def test_the_parts_of_a_text_are_its_tokens(tokenizer: Bytes | HuggingFace) -> None:
    made = hole(tokenizer, "we saw", " there", " Balo Mervin")
    whole = tokenizer.encode("we saw Balo Mervin there").tolist()
    assert made.size is not None
    assert [*made.before, *whole[len(made.before) : len(made.before) + made.size], *made.after] == whole


def planted(family: str, seed: int, shifted: float) -> list[dict[str, object]]:
    """newer = 0.5 + 0.8 older + shifted: straight, so that what is linear between points is exact."""
    older = {"ar": (2.0, 1.8, 1.5), "mdlm": (2.4, 1.9, 1.7)}[family]
    return [{"family": family, "seed": seed, "older": x, "newer": 0.5 + 0.8 * x + shifted} for x in older]


def test_families_are_compared_at_equal_loss() -> None:
    runs = [row for seed in (0, 1) for f, s in (("ar", 0.0), ("mdlm", -0.03)) for row in planted(f, seed, s)]
    found = matched(runs, "ar", "mdlm")
    assert found is not None
    assert found["difference"] == pytest.approx(-0.03)
    assert (found["from"], found["to"]) == pytest.approx((1.7, 2.0))
    raw = [sum(r["newer"] - r["older"] for r in runs if r["family"] == f) / 6 for f in ("ar", "mdlm")]  # type: ignore[operator, misc]
    assert raw[1] - raw[0] < -0.05, "the raw gap flatters the worse family, which is why it is not what is compared"


def test_families_whose_losses_never_meet_are_not_compared() -> None:
    apart = [{**row, "older": row["older"] + 5} for row in planted("mdlm", 0, 0.0)]  # type: ignore[operator]
    assert matched([*planted("ar", 0, 0.0), *apart], "ar", "mdlm") is None


def test_a_word_is_a_token() -> None:
    tokenizer = HuggingFace(word_level(["Ostrel's weaver is Balo Mervin"]))
    ids = tokenizer.encode("Balo Mervin is Ostrel's weaver")
    assert len(ids) == 5 and tokenizer.decode(ids) == "Balo Mervin is Ostrel's weaver"
    assert tokenizer.eos not in ids.tolist() and torch.as_tensor(ids).max() < tokenizer.size
