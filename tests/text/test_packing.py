"""Laws of packing: an epoch is a permutation, and a batch is a function of the seed and the step alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.errors import UserError
from redraft.text.shards.packing import Blocks, ordered_windows, permuted
from redraft.text.shards.tokens import Tokens

GOLDEN = [[7, 8, 2, 6, 9, 3, 0, 4, 5, 1], [1, 7, 6, 0, 9, 3, 8, 2, 5, 4]]


def epoch_of(size: int, epoch: int, seed: int) -> list[int]:
    numbers = np.arange(size)
    return permuted(numbers, np.full(size, epoch), size, seed).tolist()


@settings(max_examples=80, deadline=None)
@given(size=st.integers(1, 3000), epoch=st.integers(0, 2**40), seed=st.integers(-(2**70), 2**70))
def test_an_epoch_is_a_permutation(size: int, epoch: int, seed: int) -> None:
    assert sorted(epoch_of(size, epoch, seed)) == list(range(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 16, 17, 31, 64, 65, 997, 4096, 4097, 65537, 1_000_003])
def test_an_epoch_is_a_permutation_at_the_edges(size: int) -> None:
    seen = np.zeros(size, bool)
    seen[epoch_of(size, 1, 0)] = True
    assert seen.all()


def test_epochs_and_seeds_differ() -> None:
    orders = [epoch_of(50, epoch, seed) for epoch in range(20) for seed in range(20)]
    assert len({tuple(order) for order in orders}) == len(orders)


@pytest.mark.parametrize("size", [2, 3, 5, 8, 20])
def test_a_window_comes_at_every_place_equally_often(size: int) -> None:
    epochs = 20_000
    places = permuted(np.zeros(epochs, np.int64), np.arange(epochs), size, 7)
    counts = np.bincount(places, minlength=size)
    # multinomial: 5 standard deviations of each count
    assert (abs(counts - epochs / size) < 5 * (epochs / size * (1 - 1 / size)) ** 0.5).all()


def test_the_order_never_changes_between_versions() -> None:
    assert epoch_of(10, 0, 0) == GOLDEN[0]
    assert epoch_of(10, 1, 1) == GOLDEN[1]


def test_every_window_is_visited_once_per_epoch(numbers: Tokens) -> None:
    blocks = Blocks(numbers, 10, seed=3)
    assert blocks.blocks == 10
    for epoch in range(3):
        tokens = blocks.sample(np.arange(10) + 10 * epoch)
        assert sorted(tokens[:, 0].tolist()) == list(range(0, 100, 10))
        assert (np.diff(tokens, axis=1) == 1).all()


def test_a_batch_is_a_function_of_seed_and_step(numbers: Tokens) -> None:
    one, again = Blocks(numbers, 5, seed=1), Blocks(numbers, 5, seed=1)
    one.batch(0, 8)
    tokens, index = one.batch(7, 8)
    fresh, _ = again.batch(7, 8)
    assert index.tolist() == list(range(56, 64))
    assert np.array_equal(tokens, fresh)
    assert not np.array_equal(tokens, Blocks(numbers, 5, seed=2).batch(7, 8)[0])


def test_batches_of_any_size_go_through_the_same_samples(numbers: Tokens) -> None:
    blocks = Blocks(numbers, 7, seed=0)
    small = np.concatenate([blocks.batch(step, 3)[0] for step in range(8)])
    large = np.concatenate([blocks.batch(step, 12)[0] for step in range(2)])
    assert np.array_equal(small, large)


def test_ordered_windows_are_spread_and_in_order(numbers: Tokens) -> None:
    assert ordered_windows(numbers, 10)[:, 0].tolist() == list(range(0, 100, 10))
    assert ordered_windows(numbers, 10, limit=4)[:, 0].tolist() == [0, 20, 50, 70]
    assert ordered_windows(numbers, 10, limit=99).shape == (10, 10)


def test_a_split_shorter_than_a_window_is_refused_with_both_numbers(stream: Callable[[list[int]], Tokens]) -> None:
    short = stream([9])
    for make in (lambda: Blocks(short, 10, 0), lambda: ordered_windows(short, 10)):
        with pytest.raises(UserError, match="holds 9 tokens, fewer than a window of 10"):
            make()
    with pytest.raises(UserError, match="a window of 0 tokens"):
        Blocks(short, 0, 0)
