"""What samples cost: FLOPs are those of the ledger for what really went through, whatever the batch."""

from __future__ import annotations

import pytest
import torch

from redraft.evaluation.generation.speed import generate
from redraft.families.base import build
from redraft.hub.model import Model
from redraft.network.flops import forward_flops
from redraft.text.tokenizers.tokenizer import load_tokenizer
from tests.laws.test_sampling import small_network

V, L = 257, 12


def model(family: str) -> Model:
    return Model(build(family, {}, V), small_network(V), load_tokenizer("bytes"), L, {})


def test_left_to_right_pays_one_token_a_pass_and_the_keys_that_it_keeps() -> None:
    made = generate(model("ar"), 2, 3, L, steps=L)
    each = forward_flops(model("ar").denoiser().network.shape, 1)  # type: ignore[attr-defined]
    row = sum(each["blocks"] + keys * each["attention"] + each["head"] for keys in range(1, L + 1))
    assert made.forwards == L and made.tokens_per_forward == 1
    assert made.flops == pytest.approx(2 * 3 * row)
    assert made.flops_per_token == pytest.approx(row / L)


def test_diffusion_pays_every_token_at_every_pass_and_the_modulation() -> None:
    """Duo predicts at all positions: blocks, all keys and the head for L tokens a pass, adaLN once a row."""
    made = generate(model("duo"), 1, 4, L, steps=5)
    each = forward_flops(model("duo").network.shape, 1)
    trunk = L * (each["blocks"] + L * each["attention"]) + each["modulation"]
    assert made.forwards == 5 and made.tokens_per_forward == pytest.approx(L / 5)
    assert 4 * 5 * trunk < made.flops <= 4 * 5 * (trunk + L * each["head"])


def test_a_sample_does_not_depend_on_the_batches_that_follow() -> None:
    one, more = generate(model("mdlm"), 1, 4, L, 4), generate(model("mdlm"), 3, 4, L, 4)
    assert torch.equal(one.tokens, more.tokens[:4])
    assert not torch.equal(more.tokens[:4], more.tokens[4:8])  # and every batch has its own randomness
    assert len(more.seconds) == 3 and min(more.seconds) <= more.latency(0.5) <= more.latency(0.95) <= max(more.seconds)


def test_memory_is_told_where_the_system_tells_it() -> None:
    peak = generate(model("mdlm"), 1, 2, L, 2).peak_bytes
    assert peak is None or peak > 1e6
