"""-log p(continuation | context) for every family, as multiple-choice tasks and perplexities need it.

A request is a row of ids of which the continuation is scored and the context is given: never noised, never paid for. AR is
exact; the rest are an estimator's mean over draws, with its Monte Carlo error.

Noise is a function of (seed, question, draw, place) and of nothing else. The answers of one question therefore meet the same
times and the same corruption, which cancels from their differences, and no score depends on batch size, padding, order or
ranks. Requests are batched by length; padding is seen by nobody (network/padding.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redraft.errors import UserError, unknown
from redraft.evaluation.likelihood.estimators import ChainRule, Estimator, build, own_bound
from redraft.families.ar import AR
from redraft.families.base import Family
from redraft.families.mdlm import MDLM
from redraft.hub.model import Model
from redraft.network.padding import Padded
from redraft.network.wrapped import Wrapped
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.sampling.guided import KINDS, guided, without_prompt
from redraft.text.tokenizers.tokenizer import Tokenizer
from redraft.types import Batch, Network

DRAWS = 32
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Request:
    """Ids, and the text of the question that its noise is drawn for. `cut`: ids lost from the context's left end."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    question: str
    cut: int = 0


@dataclass(frozen=True)
class Nats:
    """-log p(continuation | context), and one Monte Carlo standard error of it: 0 where exact, inf of a single draw."""

    nats: float
    error: float


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance. `weight` 0: off, at no cost. `kind`: as in sampling/guided.py."""

    weight: float = 0.0
    kind: str = "unsupervised"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of guidance", self.kind, KINDS)
        if not self.weight >= 0:
            raise UserError(f"guidance must have a weight of at least 0, got {self.weight}")


def default_estimator(family: Family) -> Estimator:
    """The one that is fixed in advance for the family: exact for AR, by the number of hidden tokens for MDLM (LLaDA,
    arXiv:2502.09992, eq. 6), and else the family's own bound."""
    if isinstance(family, AR | MDLM):
        return build("chain_rule" if isinstance(family, AR) else "mask_count", {}, family)
    return own_bound(family)


def pair(
    tokenizer: Tokenizer, context: str, continuation: str, where: str = "a request"
) -> tuple[list[int], list[int]]:
    """The ids of both, encoded in one piece and cut where the context ends: lm-eval's rule. Spaces at the context's end go to
    the continuation. A token that lies across the cut would belong to neither: both are then encoded apart.

    Raises `UserError` for a continuation of no text.
    """
    kept = context.rstrip()
    context, continuation = kept, context[len(kept) :] + continuation
    whole, given = tokenizer.encode(context + continuation).tolist(), tokenizer.encode(context).tolist()
    if whole[: len(given)] == given and len(whole) > len(given):
        return given, whole[len(given) :]
    rest = tokenizer.encode_after(continuation).tolist() if given else whole
    if not rest:
        raise UserError(f"{where} has an empty continuation, which cannot be scored: every answer of a task needs text")
    return given, rest


def fitted(
    context: list[int], continuation: list[int], question: str, window: int, truncate: bool, where: str = "a request"
) -> Request:
    """A request of at most `window` ids: what is too long loses the left end of its context, if that is allowed.

    Raises `UserError` where it is not, and for a continuation that does not fit by itself.
    """
    over = len(context) + len(continuation) - window
    if len(continuation) > window:
        raise UserError(
            f"{where} has a continuation of {len(continuation)} tokens, and the model reads {window}: a part of it would "
            f"be another request"
        )
    if over > 0 and not truncate:
        raise UserError(
            f"{where} has {len(context)} tokens of context and {len(continuation)} of continuation, and the model reads "
            f"{window}: --truncate cuts contexts on the left, and counts them"
        )
    cut = max(0, over)
    return Request(tuple(context[cut:]), tuple(continuation), question, cut)


@dataclass(frozen=True)
class Scorer:
    """How requests are scored. `batch`: rows a pass. Errors: an estimator that does not fit, standard guidance of a model that
    was never trained without prompts."""

    model: Model
    estimator: Estimator
    draws: int = DRAWS
    guidance: Guidance = Guidance()
    seed: int = 0
    batch: int = 32

    def __post_init__(self) -> None:
        for name in ("draws", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.guidance.weight and self.guidance.kind == "standard" and not self._trained_without_prompts():
            raise UserError(
                "standard guidance is for a model trained with data.cfg_dropout above 0, and this one never met a dropped "
                "prompt: use unsupervised guidance"
            )

    @property
    def random(self) -> bool:
        """Whether draws differ. (A drawn blank prompt, Duo's, comes with a drawn corruption.)"""
        return self.estimator.random(self.model.family)

    @property
    def rows(self) -> int:
        """Draws of a request."""
        return self.draws if self.random else 1

    def settings(self) -> dict[str, Any]:
        """All that defines a number, apart from the model."""
        return {
            "estimator": self.estimator.record(),
            "default_estimator": self.estimator == default_estimator(self.model.family),
            "draws": self.rows,
            "guidance": asdict(self.guidance),
            "seed": self.seed,
        }

    @torch.no_grad()
    def score(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Nats]:
        """The same request is scored once."""
        found: dict[Request, Nats] = {}
        for some, nats in self.scored(list(dict.fromkeys(requests))):
            found |= zip(some, nats, strict=True)
            if progress is not None:
                progress(len(found), len(set(requests)))
        return [found[request] for request in requests]

    def scored(self, requests: Sequence[Request]) -> Iterator[tuple[list[Request], list[Nats]]]:
        """Batch by batch, the longest first. A request's draws may lie in several passes."""
        at_once = max(1, self.batch // self.rows)
        ordered = sorted(requests, key=_size, reverse=True)
        for start in range(0, len(ordered), at_once):
            some = ordered[start : start + at_once]
            draws = torch.cat([self.nats(part) for part in self.passes(some)]).view(len(some), self.rows)
            errors = draws.std(1) / self.rows**0.5 if self.rows > 1 else draws.new_full((len(some),), torch.inf)
            errors = errors if self.random else torch.zeros_like(errors)
            yield some, [Nats(*both) for both in zip(draws.mean(1).tolist(), errors.tolist(), strict=True)]

    def passes(self, requests: Sequence[Request]) -> Iterator[Batch]:
        """Row by row, draw r of a question of number q is sample q R + r."""
        whole = batch_of([self.led(request) for request in requests], self.rows, self.seed)
        for at in torch.arange(len(whole.tokens)).split(self.batch):
            assert whole.lengths is not None
            longest = int(whole.lengths[at].max())
            parts = (whole.tokens[at, :longest], whole.scored[at, :longest], whole.index[at], whole.lengths[at])
            yield Batch(*(part.to(self.model.device) for part in parts))

    def led(self, request: Request) -> Request:
        """The request with the end of a document for its context, where it has none and nothing would precede its text."""
        if request.context or self.model.family.begins:
            return request
        return replace(request, context=(self.model.tokenizer.eos,))

    def nats(self, batch: Batch) -> Tensor:
        """One draw a row, float64 [B]."""
        key = Key.of(self.seed).fold_in("request")
        network = self.network(batch)
        return self.estimator.nats(network, self.model.family, batch, draws=self.rows, key=key).cpu()

    def network(self, batch: Batch) -> Network:
        """The network that sees no padding, guided."""
        assert batch.lengths is not None
        prompt = ~batch.scored & (
            torch.arange(batch.scored.shape[1], device=batch.scored.device) < batch.lengths[:, None]
        )
        noise = counter_rng.field(Key.of(self.seed).fold_in("blank"), batch.index, batch.tokens.shape[1])
        blank = without_prompt(self.model.family, batch.tokens, noise, self.guidance.kind)
        weight = self.guidance.weight if prompt.any() else 0.0  # without a prompt both passes are equal
        network = guided(self.model.network, self.model.family, weight, prompt, blank)
        return Padded(network, batch.lengths)

    def mismatches(self, requests: Sequence[Request]) -> list[int]:
        """How many tokens of each continuation are not the likeliest given those before them, guided as the scores are."""
        batch = next(replace(self, draws=1, batch=len(requests)).passes(requests))
        chain = Argmax(self.network(batch))
        key = Key.of(self.seed)
        wrong = ChainRule("left_to_right").nats(chain, self.model.family, batch, draws=1, key=key)
        return [round(number) for number in wrong.tolist()]

    def _trained_without_prompts(self) -> bool:
        data = self.model.record.get("data", {})
        return bool(data.get("cfg_dropout") or data.get("drop"))  # its name in version 0.1.0


@dataclass(frozen=True)
class Argmax(Wrapped):
    """A network that charges 1 for each target that is not the likeliest id, and 0 for the others: so the chain rule counts
    where greedy decoding would leave the text."""

    network: Network

    def nats(self, rows: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        wrong = (self.network.head(rows).argmax(-1) != targets).to(rows.dtype)
        return wrong if weights is None else wrong * weights.to(wrong.dtype)


def batch_of(requests: Sequence[Request], rows: int, seed: int) -> Batch:
    """`rows` draws of each request, padded at the end; on the CPU."""
    lengths = torch.tensor([_size(request) for request in requests])
    tokens = torch.zeros(len(requests), int(lengths.max()), dtype=torch.int64)
    for row, request in enumerate(requests):
        tokens[row, : lengths[row]] = torch.tensor(request.context + request.continuation)
    place = torch.arange(tokens.shape[1])
    starts = torch.tensor([len(request.context) for request in requests])
    scored = (place >= starts[:, None]) & (place < lengths[:, None])
    first = torch.tensor([number_of(request.question) for request in requests]) * rows
    index = (first[:, None] + torch.arange(rows)).flatten()
    return Batch(
        tokens.repeat_interleave(rows, 0), scored.repeat_interleave(rows, 0), index, lengths.repeat_interleave(rows)
    )


def number_of(question: str) -> int:
    """Its sample number before draws are counted, below 2^40."""
    return int.from_bytes(hashlib.blake2b(question.encode(), digest_size=5).digest(), "little")


def _size(request: Request) -> int:
    return len(request.context) + len(request.continuation)
