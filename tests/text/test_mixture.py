"""Laws of mixtures: a sample's place is a function of its number, and weights are honoured after every sample."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redraft.config import DataConfig, validated
from redraft.errors import UserError
from redraft.text.shards.mixture import Mixed, Shares, held_out_rows, phases_of, prepare_text, samples_of
from redraft.text.shards.packing import Blocks
from redraft.text.shards.tokens import Tokens
from redraft.text.tokenizers.tokenizer import Bytes

WEIGHTS = [[1.0], [0.7, 0.3], [1, 1, 1], [0.55, 0.3, 0.1, 0.05], [3, 1e-3], [0.1] * 10]


@pytest.fixture
def letters(tmp_path: Path) -> dict[str, str]:
    """Files of one letter each: a token says which source it is from."""
    out = {}
    for letter, size in (("a", 40), ("b", 30), ("c", 20)):
        path = tmp_path / f"{letter}.jsonl"
        path.write_text("".join(json.dumps({"text": letter * 99}) + "\n" for _ in range(size)))
        out[letter] = str(path)
    return out


def data(**given: Any) -> DataConfig:
    return validated(DataConfig, {"format": "text", "length": 10, **given})


@pytest.mark.parametrize("weights", WEIGHTS)
def test_after_any_number_of_samples_each_source_has_its_share(weights: list[float]) -> None:
    """Each source rounds what those before it left, once: at most half a sample a source, with k sources k / 2."""
    exact = [Fraction(str(w)) for w in weights]
    place = Shares.of(weights).places(np.arange(5000))
    for source, weight in enumerate(exact):
        share = float(weight / sum(exact))
        had = np.cumsum(place.source == source)
        assert np.abs(had - share * np.arange(1, 5001)).max() <= len(weights) / 2


@pytest.mark.parametrize("weights", WEIGHTS)
def test_each_source_gives_its_own_samples_once_and_in_order(weights: list[float]) -> None:
    shares = Shares.of(weights)
    place = shares.places(np.arange(3000))
    counts = shares.counts(3000)
    for source, count in enumerate(counts):
        assert place.number[place.source == source].tolist() == list(range(count))
    assert sum(counts) == 3000


def test_weights_are_the_ratios_they_write() -> None:
    assert Shares.of([0.7, 0.2, 0.1]).parts == (7, 2, 1)
    assert Shares.of([2, 2]).parts == (1, 1)
    period = sum(Shares.of([0.7, 0.2, 0.1]).parts)
    assert Shares.of([0.7, 0.2, 0.1]).counts(period * 1000) == [7000, 2000, 1000]


def test_a_trillion_tokens_on_no_number_leaves_64_bits() -> None:
    """Sample 2 ** 38 - 1 of rows of 2048 is token 5.6e14; its place is the one that whole numbers give."""
    shares, last = Shares.of([0.123457, 0.876543]), 2**38 - 1
    place = shares.places(np.array([last]))
    small, total = min(shares.parts), sum(shares.parts)
    before = (last * small + total // 2) // total
    mine = ((last + 1) * small + total // 2) // total > before
    assert (int(place.source[0]), int(place.number[0])) == ((0, before) if mine else (1, last - before))


def mixed(numbers: Tokens, weights: list[list[float]], ends: list[int]) -> Mixed:
    return Mixed([Blocks(numbers, 10, seed) for seed in range(len(weights[0]))], weights, ends)


def test_any_part_of_the_order_is_the_order(numbers: Tokens) -> None:
    """Ranks and resumed runs ask for parts: places do not depend on what is asked for with them."""
    mix = mixed(numbers, [[0.6, 0.4, 0], [0, 0.5, 0.5]], [37])
    whole = mix.places(np.arange(200))
    for part in (np.arange(30, 50), np.arange(3, 200, 7), np.array([199, 0, 37, 36])):
        found = mix.places(part)
        assert found.source.tolist() == whole.source[part].tolist()
        assert found.number.tolist() == whole.number[part].tolist()


def test_a_phase_has_its_own_weights_and_its_sources_go_on_where_they_stood(numbers: Tokens) -> None:
    mix = mixed(numbers, [[0.75, 0.25, 0], [0, 0.5, 0.5]], [40])
    place = mix.places(np.arange(100))
    first, then = place.source[:40], place.source[40:]
    assert np.bincount(first, minlength=3).tolist() == [30, 10, 0]
    assert np.bincount(then, minlength=3).tolist() == [0, 30, 30]
    for source in range(3):
        number = place.number[place.source == source]
        assert number.tolist() == list(range(len(number)))


def test_rows_of_a_mixture_are_those_of_its_sources(numbers: Tokens) -> None:
    mix = mixed(numbers, [[0.5, 0.5]], [])
    rows, place = mix.rows(np.arange(24)), mix.places(np.arange(24))
    for row, source, number in zip(rows.tokens, place.source, place.number):
        assert row.tolist() == mix.blocks[source].sample(np.array([number]))[0].tolist()
    assert rows.scored.all() and rows.index.tolist() == list(range(24))


def test_a_configured_mixture_reads_its_sources_by_weight(letters: dict[str, str], tmp_path: Path) -> None:
    mixture = [{"source": letters["a"], "weight": 0.75}, {"source": letters["b"], "weight": 0.25}]
    settings = data(mixture=mixture)
    corpus = prepare_text(settings, Bytes(), tmp_path / "cache")
    rows = samples_of(corpus, settings, 256, seed=0, samples=80).rows(np.arange(80))
    held = held_out_rows(corpus, settings, 256, limit=8)
    for found, n in ((rows, 80), (held, 8)):
        letter = np.where(found.tokens == ord("a"), 1, 0).max(1)
        assert letter.sum() == 0.75 * n
    assert corpus.split("train").count == sum(part.split("train").count for part in corpus.parts)


def test_phases_follow_one_another_at_their_share_of_the_samples(letters: dict[str, str], tmp_path: Path) -> None:
    phases = [
        {"until": 0.6, "mixture": [{"source": letters["a"]}, {"source": letters["b"]}]},
        {"until": 1.0, "mixture": [{"source": letters["c"]}]},
    ]
    settings = data(phases=phases)
    corpus = prepare_text(settings, Bytes(), tmp_path / "cache")
    rows = samples_of(corpus, settings, 256, seed=0, samples=50).rows(np.arange(50))
    from_c = (rows.tokens == ord("c")).any(1)
    assert not from_c[:30].any() and from_c[30:].all()
    held = held_out_rows(corpus, settings, 256, limit=6)
    assert set(np.unique(held.tokens)) <= {ord("c"), 256}  # what the run ends on
    with pytest.raises(UserError, match="leaves a phase without one"):
        samples_of(corpus, settings, 256, seed=0, samples=1)


def test_one_source_is_what_it_was_without_mixtures(letters: dict[str, str], tmp_path: Path) -> None:
    settings = data(source=letters["a"])
    corpus = prepare_text(settings, Bytes(), tmp_path / "cache")
    samples = samples_of(corpus, settings, 256, seed=5, samples=10)
    assert isinstance(samples, Blocks)
    assert np.array_equal(samples.sample(np.arange(9)), Blocks(corpus.split("train"), 10, 5).sample(np.arange(9)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mixture": [{"source": "a"}], "phases": [{"mixture": [{"source": "a"}]}]}, "either mixture or phases"),
        ({"mixture": [{"source": "a"}], "source": "b"}, "data.source beside a mixture"),
        ({"mixture": [{"source": "a", "weight": 0}]}, "weight"),
        ({"phases": [{"until": 0.5, "mixture": [{"source": "a"}]}]}, "the last be 1"),
        ({"mixture": [{"source": "a"}], "format": "chat"}, "takes one source"),
        ({"intra_document_mask": True, "format": "chat"}, "rows of their own"),
    ],
)
def test_what_cannot_be_mixed_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validated(DataConfig, given)


def test_a_source_alone_is_a_mixture_of_one() -> None:
    (phase,) = phases_of(data(source="x", validation="y"))
    assert [(one.source, one.validation) for one in phase.mixture] == [("x", "y")]


def test_tokens_know_their_document(letters: dict[str, str], tmp_path: Path) -> None:
    """Counted from 0 in each row; the end of a document belongs to it."""
    settings = data(source=letters["a"], intra_document_mask=True, length=250)
    corpus = prepare_text(settings, Bytes(), tmp_path / "cache")
    rows = samples_of(corpus, settings, 256, seed=0, samples=4).rows(np.arange(4))
    assert rows.documents is not None
    for tokens, documents in zip(rows.tokens, rows.documents):
        ends = np.flatnonzero(tokens == 256)
        expected = [int((ends < place).sum()) for place in range(250)]
        assert documents.tolist() == expected
