"""What precedes a text of an AR model: the spare id, an id of the vocabulary, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.evaluation.likelihood.nelbo import bound
from redraft.evaluation.likelihood.perplexity import Convention, windows
from redraft.families.ar import AR
from redraft.hub.model import Model
from redraft.network.init import initialised
from redraft.network.sizes import Shape
from redraft.network.transformer import Transformer
from redraft.noise.counter_rng import Key
from redraft.sampling.base import Denoiser
from redraft.sampling.left_to_right import LeftToRight
from redraft.text.shards.packing import Rows
from redraft.text.tokenizers.tokenizer import Bytes
from redraft.types import Attention, Batch, Canvas, View, last
from tests.rounding import CLOSE, in_float64

V = 11
BOS = ["spare", 4, "none"]


@pytest.fixture(scope="module")
def network() -> Transformer:
    made = in_float64(initialised(Shape("llama", 2, 2, 16, 24, V, 0), 0))
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return made


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, V, (3, 7), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def by_hand(network: Transformer, bos: str | int, row: Tensor) -> list[Tensor]:
    """log p of each next token given all before it, one text of growing length at a time, without a family."""
    lead = {"spare": [V], "none": []}.get(str(bos), [bos])
    out = []
    for end in range(len(row)):
        seen = torch.tensor([*lead, *row[:end].tolist()])[None]
        if seen.numel():
            view = View(seen, torch.arange(seen.shape[1])[None], Attention.CAUSAL)
            out.append(network.head(network.trunk(view)[:, -1]).log_softmax(-1)[0])
    return out


@pytest.mark.parametrize("bos", BOS)
def test_nelbo_is_the_chain_rule_after_what_precedes(network: Transformer, tokens: Tensor, bos: str | int) -> None:
    family = AR(V, bos)
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.arange(3))
    with torch.no_grad():
        paid = family.nelbo(network, batch, key=Key.of(0))
    for row in range(3):
        found = by_hand(network, bos, tokens[row])
        free = len(tokens[row]) - len(found)
        assert free == (bos == "none")
        expected = [-log_p[token] for log_p, token in zip(found, tokens[row, free:], strict=True)]
        assert torch.allclose(paid.nats[row, free:], torch.stack(expected), **CLOSE)
        assert paid.scored[row].tolist() == [False] * free + [True] * len(found)
        assert not paid.nats[row, :free].any()


@pytest.mark.parametrize("bos", BOS)
def test_log_p_is_of_the_token_after_each(network: Transformer, tokens: Tensor, bos: str | int) -> None:
    with torch.no_grad():
        found = AR(V, bos).log_p(network, tokens[:1], None, None)[0]
    expected = by_hand(network, bos, torch.cat([tokens[0], tokens[0, :1]]))[-len(found) :]
    assert torch.allclose(found, torch.stack(expected), **CLOSE)


@pytest.mark.parametrize("bos", BOS)
def test_greedy_writing_with_a_cache_takes_the_likeliest_of_the_whole(network: Transformer, bos: str | int) -> None:
    family, prompt = AR(V, bos), [3, 5]
    canvas = Canvas(torch.tensor([[*prompt, *[V] * 6]]), torch.arange(8)[None] < 2)
    with torch.no_grad():
        written = last(LeftToRight()(Denoiser(network, family, temperature=0.0), canvas, Key.of(0))).tokens[0]
    row = torch.tensor(prompt)
    for _ in range(6):
        row = torch.cat([row, by_hand(network, bos, torch.cat([row, row[:1]]))[-1].argmax()[None]])
    assert written.tolist() == row.tolist()


def test_nothing_to_begin_with_needs_a_prompt(network: Transformer) -> None:
    canvas = Canvas(torch.full((1, 4), V), torch.zeros(1, 4, dtype=torch.bool))
    with pytest.raises(UserError, match="give a prompt"):
        last(LeftToRight()(Denoiser(network, AR(V, "none")), canvas, Key.of(0)))


@pytest.mark.parametrize("bos", ["first", V, -1, True])
def test_what_is_no_bos_is_refused(bos: str | int) -> None:
    with pytest.raises(UserError, match=r"family\.bos"):
        AR(V, bos)


def test_a_document_of_its_own_has_its_first_token_given(network: Transformer, tokens: Tensor) -> None:
    documents = torch.tensor([[0, 0, 1, 1, 1, 2, 2]]).expand(3, -1)
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.arange(3), documents=documents)
    paid = AR(V, "none").nelbo(network, batch, key=Key.of(0))
    assert paid.scored[0].tolist() == [False, True, False, True, True, False, True]


def test_windows_overlap_by_one_so_that_all_but_the_first_is_paid_once() -> None:
    text = "a text of some forty bytes, in windows"
    scored = windows([text], Bytes(), Convention(8), begins=False)
    total = len(text) + 1  # the end of the document
    assert scored.tokens == total - 1 == int(scored.rows.scored.sum())
    assert not scored.rows.scored[:, 0].any()


def test_the_mean_is_over_the_tokens_that_are_paid(network: Transformer, tokens: Tensor) -> None:
    found = bound(network, AR(V, "none"), tokens.numpy(), 1, 2)
    each = [[-p[t] for p, t in zip(by_hand(network, "none", row), row[1:], strict=True)] for row in tokens]
    assert found.nats == pytest.approx(float(torch.tensor(each).mean()), rel=1e-9)
    led = Rows(tokens.numpy(), torch.ones(3, 7, dtype=torch.bool).numpy(), torch.arange(3).numpy())
    assert bound(network, AR(V, "none"), led, 1, 2).nats == pytest.approx(found.nats, rel=1e-12)


def test_a_score_says_how_many_tokens_it_is_over(tmp_path: Path) -> None:
    made = initialised(Shape("llama", 1, 2, 8, 16, 257, 0), 0)
    model = Model(AR(257, "none"), made, Bytes(), 8, {})
    assert model.score("twelve bytes")[0].tokens == 10  # two windows
    with pytest.raises(UserError, match="one token"):
        model.score("a")
