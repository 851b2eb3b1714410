"""A frontier on hardware that is not here: a call takes what its weights take to read or its tokens to multiply."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from redraft.frontier.served import served, served_sentence
from redraft.network.flops import forward_flops, parameters
from redraft.network.sizes import Shape, from_size
from redraft.planning.serving_cost import BYTES, HARDWARE, Hardware

LENGTH, STEPS = 128, 16
SMALL = from_size("20k", "dit", 257, 8)
H100 = HARDWARE["h100"]


def row(nfe: float, tokens_per_call: float, batch: int = 1, shape: Shape = SMALL) -> dict[str, Any]:
    """A measured setting of a text of LENGTH tokens in `nfe` calls over so many tokens each."""
    flops = nfe * tokens_per_call / LENGTH * sum(forward_flops(shape, LENGTH).values())
    return {"family": "mdlm", "nfe": nfe, "batch": batch, "length": LENGTH, "flops_per_token": flops, "quality": 3.0}


def read(shape: Shape, batch: int, tokens: float) -> float:
    """Bytes of the weights, and of keys and values of half the tokens that are not read again."""
    groups = parameters(shape)
    cache = batch * (LENGTH - tokens) / 2 * 2 * shape.depth * shape.width
    return BYTES * (sum(groups.values()) - groups["embedding"] + cache)


@pytest.mark.parametrize("size", ["25M", "170M"])
def test_a_call_takes_the_longer_of_reading_and_multiplying(size: str) -> None:
    large = from_size(size, "dit", 257, 8)
    each = sum(forward_flops(large, LENGTH).values())
    for batch in (1, 16, 256):
        for nfe, tokens in ((LENGTH, 1.0), (STEPS, LENGTH)):
            found = served(row(nfe, tokens, batch), SMALL, size, H100)
            call = max(read(large, batch, tokens) / H100.bandwidth, batch * tokens * each / H100.rate)
            assert found["seconds_per_call"] == pytest.approx(call)
            assert found["tokens_per_second"] == pytest.approx(batch * LENGTH / (nfe * call))
            assert found["quality"] == 3.0 and found["flops_per_token"] == pytest.approx(nfe * tokens * each / LENGTH)


def test_where_reading_decides_speed_goes_with_the_calls_alone() -> None:
    """Without the time to multiply a family in a fourth of the calls is four times as fast, however many tokens each reads."""
    reads = Hardware("reads", 1e30, H100.bandwidth)
    few, many = (served(row(nfe, tokens), SMALL, "170M", reads) for nfe, tokens in ((32, LENGTH), (128, LENGTH)))
    assert few["tokens_per_second"] == pytest.approx(4 * many["tokens_per_second"])
    # alone the cache of a short text is little beside the weights
    cached = served(row(LENGTH, 1.0), SMALL, "170M", reads)
    assert few["tokens_per_second"] == pytest.approx(4 * cached["tokens_per_second"], rel=0.02)


def test_where_multiplying_decides_speed_goes_with_the_tokens_alone() -> None:
    multiplies = replace(H100, bandwidth=1e30)
    few, many = (served(row(nfe, tokens), SMALL, "170M", multiplies) for nfe, tokens in ((32, LENGTH), (LENGTH, 1.0)))
    assert many["tokens_per_second"] == pytest.approx(32 * few["tokens_per_second"])


def test_what_is_computed_is_not_called_measured() -> None:
    told = served_sentence([served(row(STEPS, LENGTH), SMALL, "170M", H100)], H100)
    assert "by the serving model, not measured" in told and "40% of its peak" in told and "Carried over" in told
