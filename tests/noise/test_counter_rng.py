"""Counter randomness: uniform, independent between keys and counters, the same anywhere; and the draws made of it."""

from __future__ import annotations

import math

import pytest
import torch

from redraft.noise.counter_rng import Key, bits, categorical, field, times, uniform


def chi_square(counts: torch.Tensor, p: torch.Tensor) -> float:
    """Normal score of Pearson's statistic (Wilson-Hilferty): beyond 5 happens once in millions of tries."""
    keep = p > 0
    expected = counts.sum() * p[keep]
    statistic, k = float(((counts[keep] - expected) ** 2 / expected).sum()), int(keep.sum()) - 1
    return ((statistic / k) ** (1 / 3) - (1 - 2 / (9 * k))) / math.sqrt(2 / (9 * k))


def test_uniforms_are_uniform_in_every_byte() -> None:
    """2^18 draws over index and position; each of the 53 bits' seven bytes by chi-square."""
    raw = bits(Key.of(0), torch.arange(512)[:, None], torch.arange(512))
    for shift in range(11, 59, 8):
        byte = (raw >> shift) & 255
        assert chi_square(torch.bincount(byte.flatten(), minlength=256).double(), torch.full((256,), 1 / 256)) < 5
    u = uniform(Key.of(0), torch.arange(512)[:, None], torch.arange(512))
    assert u.dtype == torch.float64 and float(u.min()) >= 0 and float(u.max()) < 1
    assert float((u * 2**53).frac().abs().max()) == 0  # 53 bits, and no more


@pytest.mark.parametrize(("one", "other"), [("a", "b"), ("corrupt", "move"), ("time", "tim")])
def test_keys_and_neighbours_are_independent(one: str, other: str) -> None:
    """Correlation of 2^16 pairs is below 5 / sqrt(n): between purposes, positions, samples and seeds."""
    index, n = torch.arange(256), 256 * 256
    a, b = field(Key.of(0), index, 256)(one), field(Key.of(0), index, 256)(other)
    later = field(Key.of(1), index, 256)(one)
    for x, y in ((a, b), (a, later), (a[:, 1:], a[:, :-1]), (a[1:], a[:-1]), (a, a.T)):
        r = torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1] if x is not y else torch.tensor(0.0)
        if x.shape == y.shape and not torch.equal(x, y.T):
            assert abs(float(r)) < 5 / math.sqrt(n)


def test_draws_of_a_sample_do_not_depend_on_its_company() -> None:
    whole = field(Key.of(7), torch.arange(100), 30)("x")
    assert torch.equal(field(Key.of(7), torch.tensor([93, 5]), 30)("x"), whole[[93, 5]])
    assert torch.equal(field(Key.of(7), torch.arange(100), 10)("x"), whole[:, :10])


def test_golden_values_stay() -> None:
    """A change of these changes every run that was ever made."""
    u = uniform(Key.of(0).fold_in("corruption", 3), torch.tensor([0, 1, 12345]), torch.tensor([0, 7, 2047]))
    assert u.tolist() == GOLDEN


@pytest.mark.parametrize("start", [0, 1, 17, 10**6, 2**20 - 3, 10**12])
@pytest.mark.parametrize("n", [8, 64, 500])
def test_times_of_any_run_of_samples_are_evenly_spread(start: int, n: int) -> None:
    """Star discrepancy of n consecutive points of the golden-ratio sequence is below (2 + log n) / n: far below 1/sqrt(n)."""
    t = times(Key.of(3), torch.arange(start, start + n)).sort().values
    assert (t > 0).all() and (t <= 1).all()
    ranks = torch.arange(1, n + 1) / n
    star = torch.maximum((ranks - t).abs().max(), (t - ranks + 1 / n).abs().max())
    limit = 2 * (2 + math.log(n)) / n  # twice: a run may cross the period of 2^20 samples
    assert float(star) < limit


def test_categorical_inverts_the_cumulative_distribution() -> None:
    """Even uniforms give every id its mass to one part in n; an impossible id is never drawn, at either end."""
    n, p = 10_000, torch.tensor([0.0, 0.2, 0.0, 0.5, 0.3, 0.0], dtype=torch.float64)
    u = torch.cat([(torch.arange(n) + 0.5) / n, torch.tensor([0.0, 1 - 2.0**-53])]).double()
    drawn = categorical(p.log().expand(len(u), -1), u)
    assert (torch.bincount(drawn[:n], minlength=6) / n - p).abs().max() < 1 / n + 1e-12
    assert int(drawn[-2]) == 1 and int(drawn[-1]) == 4


def test_categorical_keeps_the_tail_that_float32_gumbels_lose() -> None:
    """Mass 2^-40 sits on one of 32 000 ids. Uniforms that fall on it find it; float32 noise could not."""
    p = torch.full((32_000,), (1 - 2.0**-40) / 31_999, dtype=torch.float64)
    p[31_999] = 2.0**-40
    u = torch.tensor([1 - 2.0**-41, 1 - 2.0**-39], dtype=torch.float64)
    assert categorical(p.log().expand(2, -1), u).tolist() == [31_999, 31_998]


GOLDEN = [0.49614644833079447, 0.26837668695241335, 0.8719739788945562]


def test_tail_of_a_large_vocabulary_has_its_share() -> None:
    """10^8 draws from 32,000 ids by Zipf's law, the rarest 4e-7 likely: chi-square over all and over the rarer half.

    The same draws cut to the 24 bits of a float32 uniform fail it, so the test can.
    """
    vocab, chunk, chunks = 32_000, 1_000_000, 100
    p = torch.arange(1, vocab + 1, dtype=torch.float64) ** -1.3
    p = p[torch.randperm(vocab, generator=torch.Generator().manual_seed(0))] / p.sum()
    counts, coarse = torch.zeros(2, vocab, dtype=torch.float64)
    for number in range(chunks):
        u = uniform(Key.of(1), torch.arange(number * chunk, (number + 1) * chunk))[None]
        counts += torch.bincount(categorical(p.log()[None], u)[0], minlength=vocab)
        coarse += torch.bincount(categorical(p.log()[None], (u * 2**24).floor() / 2**24)[0], minlength=vocab)
    tail = p < p.median()
    assert chi_square(counts, p) < 5 and chi_square(counts[tail], p[tail] / p[tail].sum()) < 5
    assert chi_square(coarse[tail], p[tail] / p[tail].sum()) > 5
