"""The Markov chain as a source: its likelihood is normalised, its draws follow it, and each is a function of seed and row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from redraft.errors import UserError
from redraft.tasks.known_entropy import MarkovChain, opened


def test_likelihood_of_the_chain_is_normalised() -> None:
    chain = MarkovChain()
    texts = torch.cartesian_prod(torch.arange(chain.vocab), torch.arange(chain.vocab))
    assert (-chain.nats(texts)).exp().sum() == pytest.approx(1.0, abs=1e-12)


def test_draws_of_the_chain_follow_its_likelihood() -> None:
    """Mean surprise of n draws within five standard errors of the entropy, which is enumerated."""
    chain, n = MarkovChain(), 4000
    texts = torch.cartesian_prod(torch.arange(chain.vocab), torch.arange(chain.vocab))
    nats = chain.nats(texts)
    entropy, square = ((-nats).exp() * nats).sum(), ((-nats).exp() * nats**2).sum()
    drawn = chain.nats(torch.cat(list(chain.sample(n, 2, 0))))
    assert abs(drawn.mean() - entropy) < 5 * ((square - entropy**2) / n).sqrt()


def test_a_row_of_the_chain_depends_on_seed_and_number_alone() -> None:
    chain = MarkovChain()
    many, few = (torch.cat(list(chain.sample(n, 8, 3))) for n in (300, 257))
    assert torch.equal(many[:257], few)
    assert not torch.equal(many, torch.cat(list(chain.sample(300, 8, 4))))


def test_a_source_that_is_not_there_names_those_that_would_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"llama2\.c's stories260K, or markov"):
        opened(tmp_path)
