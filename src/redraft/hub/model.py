"""`Model`: load, score, log_p, sample. What `import redraft` offers."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from redraft.accelerator import accelerated
from redraft.errors import UserError
from redraft.families.base import Family, build
from redraft.files import clean
from redraft.hub.config import located
from redraft.hub.folder import load_model
from redraft.network.device import pick_device, pick_dtype
from redraft.network.flops import parameters
from redraft.network.fuse_adaln import fuse_adaln
from redraft.network.transformer import Transformer
from redraft.noise.counter_rng import Key
from redraft.registry import SAMPLERS, find
from redraft.sampling.base import Denoiser, Sampler
from redraft.sampling.base import build as build_sampler
from redraft.text.tokenizers.tokenizer import MOST_LOST, Tokenizer
from redraft.types import Batch, Canvas, last

MARK = "░"  # a token that is not written yet


@dataclass(frozen=True)
class Score:
    """One text: `nats` is -log p(text) (exact for AR) or a draw of its bound, with the Monte Carlo standard error."""

    nats: float
    standard_error: float
    tokens: int
    bytes: int
    exact: bool
    lost: int = 0  # of the bytes, those that do not come back from the tokens

    @property
    def bits_per_byte(self) -> float | None:
        """None where more than `MOST_LOST` of the bytes are lost, which cost nothing."""
        return self.nats / (math.log(2) * self.bytes) if self.lost <= MOST_LOST * self.bytes else None


@dataclass(frozen=True)
class Model:
    """A trained network with its family and tokenizer. `length`: tokens in a row when it was trained.

    >>> model = load("runs/first", device="cpu")
    >>> model.family.name, model.tokenizer.name, model.length
    ('mdlm', 'bytes', 16)
    """

    family: Family
    network: Transformer
    tokenizer: Tokenizer
    length: int
    record: dict[str, Any]
    _kept: dict[bool, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def parameters(self) -> dict[str, int]:
        """Parameter counts by group."""
        return parameters(self.network.shape)

    @property
    def device(self) -> torch.device:
        return self.network.embedding.device

    @torch.no_grad()
    def log_p(self, tokens: Tensor, t: Tensor | float | None = None, order: Tensor | None = None) -> Tensor:
        """[B, L] ids -> normalised log p(x0 | tokens) [B, L, V], in the positions of `tokens`.

        `t` [B] or a number: the time, for a family with a clock. `order` [B, L]: permutations, for Eso-LM. For AR, row l
        is the token after position l. Ids run to V, the spare id ([MASK]) included where the family has one.

        >>> model = load("runs/first", device="cpu")
        >>> hidden = torch.full((1, 8), model.family.vocab)  # a row of [MASK]
        >>> model.log_p(hidden).shape
        torch.Size([1, 8, 257])
        """
        tokens = torch.as_tensor(tokens, device=self.device)
        self._check_ids(tokens)
        self._check_positions(tokens.shape[1])
        tokens = self._one_mask(tokens)
        if t is not None:
            t = torch.as_tensor(t, dtype=torch.float64, device=self.device).reshape(-1).expand(len(tokens))
            if not bool(((t >= 0) & (t <= 1)).all()):
                raise UserError(f"t must be in [0, 1] (0 is text, 1 is noise), got {t.min():g} to {t.max():g}")
        if order is not None:
            order = _permutation(torch.as_tensor(order, device=self.device), tokens)
        return self.family.log_p(self.network, tokens, t, order)

    def score(self, texts: str | Sequence[str], draws: int = 32, seed: int = 0) -> list[Score]:
        """-log p of each text in nats, or its bound over `draws` noise draws; the same noise for every family and text.

        A text longer than the training length is scored in windows, each on its own. Of an AR model that reads nothing
        before a text (family.bos none) the first token of each window is given: `tokens` are those that are scored.

        >>> (score,) = load("runs/first", device="cpu").score("the cat", draws=8)
        >>> score.tokens, score.bytes, score.exact
        (7, 7, False)
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        for text in texts:
            _check_text(text)
        return [self._score(text, draws, seed) for text in texts]

    @torch.no_grad()
    def _score(self, text: str, draws: int, seed: int) -> Score:
        text = clean(text)
        ids = torch.as_tensor(self.tokenizer.encode(text), dtype=torch.int64, device=self.device)
        if not len(ids):
            raise UserError("cannot score an empty text")
        draws, lost = 1 if self.family.exact else draws, self.tokenizer.lost(text, ids.cpu().numpy())
        total = torch.zeros(draws, dtype=torch.float64)
        for number, window in enumerate(ids.split(self.length)):
            rows = window.expand(draws, -1)
            batch = Batch(rows, torch.ones_like(rows, dtype=torch.bool), torch.arange(draws, device=self.device))
            key = Key.of(seed).fold_in("score", number)
            total += self.family.nelbo(self.network, batch, key=key).nats.double().sum(1).cpu()
        scored = len(ids) if self.family.begins else len(ids) - math.ceil(len(ids) / self.length)
        if not scored:
            raise UserError("cannot score a text of one token: this model reads nothing before it (family.bos none)")
        error = 0.0 if self.family.exact else float(total.std() / math.sqrt(draws)) if draws > 1 else math.inf
        return Score(float(total.mean()), error, scored, len(text.encode()), self.family.exact, lost)

    @overload
    def sample(
        self,
        prompt: str = "",
        n: int = 4,
        length: int | None = None,
        steps: int = 64,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        *,
        sampler: str = "",
        options: Mapping[str, Any] | None = None,
        suffix: str = "",
        stream: Literal[False] = False,
        compiled: bool = False,
    ) -> list[str]: ...

    @overload
    def sample(
        self,
        prompt: str = "",
        n: int = 4,
        length: int | None = None,
        steps: int = 64,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        *,
        sampler: str = "",
        options: Mapping[str, Any] | None = None,
        suffix: str = "",
        stream: Literal[True],
        compiled: bool = False,
    ) -> Iterator[Canvas]: ...

    def sample(
        self,
        prompt: str = "",
        n: int = 4,
        length: int | None = None,
        steps: int = 64,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        *,
        sampler: str = "",
        options: Mapping[str, Any] | None = None,
        suffix: str = "",
        stream: bool = False,
        compiled: bool = False,
    ) -> list[str] | Iterator[Canvas]:
        """`n` texts on canvases of `length` tokens, prompt and suffix included; `stream=True` yields every canvas instead.
        Without a `length`, canvases are as long as the rows of training (`Model.length`), as on the command line.

        A text ends at its first end-of-document after the prompt. `steps` is what the sampler makes of it: left to right
        takes one a token. `show` makes text of a canvas that is not finished. `sampler` by name, else the family's own;
        `options` are its further settings. `compiled`: see `denoiser`. A length beyond that of training is warned of.

        >>> model = load("runs/first", device="cpu")
        >>> texts = model.sample("the ", n=2, length=16, steps=8, seed=1)
        >>> [text.startswith("the ") for text in texts]
        [True, True]
        >>> for canvas in model.sample("the ", n=1, length=16, steps=8, stream=True):
        ...     shown = model.show(canvas)[0]  # the text so far, with a mark for every token that is not written yet
        >>> shown.startswith("the ") and MARK not in shown
        True
        """
        canvas = self.canvas(prompt, n, length, suffix)
        if told := self.beyond(canvas.tokens.shape[1]):
            warnings.warn(told, stacklevel=2)
        frames = self.frames(canvas, self.denoiser(temperature, top_p, compiled), sampler, steps, seed, options)
        if stream:
            return frames
        return [self.text(row, len(self.tokenizer.encode(prompt))) for row in last(frames).tokens]

    def canvas(self, prompt: str = "", n: int = 1, length: int | None = None, suffix: str = "") -> Canvas:
        """An unwritten canvas [n, length], id V, with the prompt fixed at its beginning and the suffix at its end; as long as
        a row of training if `length` is left out."""
        length = self.length if length is None else length
        _check_text(prompt)
        _check_text(suffix)
        self._check_positions(length)
        before, after = (torch.as_tensor(self.tokenizer.encode(part), dtype=torch.int64) for part in (prompt, suffix))
        if n < 1 or length <= len(before) + len(after):
            raise UserError(
                f"n must be at least 1 and length more than prompt and suffix: got n={n}, length={length}, "
                f"prompt and suffix of {len(before) + len(after)} tokens"
            )
        unwritten = torch.full((length - len(before) - len(after),), self.family.vocab)
        row = torch.cat([before, unwritten, after])
        fixed = torch.arange(length)
        fixed = (fixed < len(before)) | (fixed >= length - len(after))
        return Canvas(row.expand(n, -1).to(self.device), fixed.expand(n, -1).to(self.device))

    def denoiser(self, temperature: float = 1.0, top_p: float = 1.0, compiled: bool = False) -> Denoiser:
        """`compiled`: by torch.compile, as CUDA graphs on a GPU. Its first calls take a minute, and rounding is another."""
        return Denoiser(self.for_sampling(compiled), self.family, temperature, top_p, static=compiled)

    def for_sampling(self, compiled: bool = False) -> Transformer:
        """What samplers run: where no clock is read, a network with its modulations folded into the weights. It is made once,
        and again only when the weights have changed, for a graph remembers where its weights are."""
        state = [(p.data_ptr(), None if p.is_inference() else p._version) for p in self.network.parameters()]
        if self._kept.get(compiled, (None,))[0] != state:
            network = self.network if self.family.clocked else fuse_adaln(self.network)
            if compiled:
                network = copy(network)
                network.compile_trunk(graphs=accelerated(self.device))
            self._kept[compiled] = state, network
        return self._kept[compiled][1]

    def frames(
        self,
        canvas: Canvas,
        denoiser: Denoiser,
        sampler: str,
        steps: int,
        seed: int,
        options: Mapping[str, Any] | None = None,
    ) -> Iterator[Canvas]:
        """Every canvas from unwritten to finished."""
        chosen = self.sampler(sampler, steps, options)
        # A generator suspends between frames: gradients are switched off inside it, not around it.
        return torch.no_grad()(chosen.__call__)(denoiser, canvas, sampling_key(seed))

    def sampler(self, name: str = "", steps: int = 64, options: Mapping[str, Any] | None = None) -> Sampler:
        """The sampler of that name, or the family's own, with `steps` if it takes any; `UserError` if they do not fit."""
        name = name or self.family.sampler
        settings = {"steps": steps} if "steps" in find("sampler", SAMPLERS, name).options else {}
        return build_sampler(name, {**settings, **(options or {})}, self.family)

    def text(self, row: Tensor, prompt: int = 0) -> str:
        """The text of one row of a canvas, up to its first end-of-document after `prompt` tokens."""
        ids = row.tolist()
        end = next((i for i in range(prompt, len(ids)) if ids[i] == self.tokenizer.eos), len(ids))
        return self.tokenizer.decode(ids[:end])

    def show(self, canvas: Canvas, mark: str = MARK) -> list[str]:
        """The text of each row of a canvas on its way, with `mark` for every token that is not written yet.

        A uniform-state model (duo) has a token at every place from the start, any of which may still change: it marks none.
        """
        return [self._shown(*row, mark) for row in zip(canvas.tokens.tolist(), canvas.fixed.tolist(), strict=True)]

    def _shown(self, ids: list[int], fixed: list[bool], mark: str) -> str:
        """Up to the first end-of-document after what is fixed at the beginning, as `text` has it. What follows a gap is
        decoded after a letter: many tokenizers leave out the space before a first word."""
        given = next((i for i, still in enumerate(fixed) if not still), len(ids))
        end = next((i for i in range(given, len(ids)) if ids[i] == self.tokenizer.eos), len(ids))
        parts = list[str]()
        for gap, group in itertools.groupby(ids[:end], lambda i: i >= self.family.vocab):
            run, lead = list(group), self.tokenizer.encode("a").tolist() if parts else []
            text = self.tokenizer.decode([*lead, *run])[len(self.tokenizer.decode(lead)) :]
            parts.append(mark * len(run) if gap else text)
        return "".join(parts)

    def beyond(self, length: int) -> str | None:
        """A remark on a canvas that is longer than the rows that the model was trained on; None where it is not."""
        if length <= self.length:
            return None
        return (
            f"{length} tokens are more than the {self.length} of a row in training: what comes after those was never "
            f"learned (a length of {self.length} or less)"
        )

    def _check_positions(self, length: int) -> None:
        """`UserError` where a network of learned positions has none for so many tokens."""
        context = self.network.shape.context
        if context and length > context:
            raise UserError(f"{length} tokens are more than the {context} positions that this network has learned")

    def _one_mask(self, tokens: Tensor) -> Tensor:
        """A converted model may have its [MASK] among the text ids (`convert.layouts.vocabulary`): that one is id V too."""
        mask = self.record.get("converted", {}).get("mask")
        if mask is None or self.family.spare != "mask":
            return tokens
        return tokens.masked_fill(tokens == mask, self.family.vocab)

    def _check_ids(self, tokens: Tensor) -> None:
        vocab = self.family.vocab
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise UserError(f"tokens must be [B, L] ids, got {tokens.dtype} of shape {tuple(tokens.shape)}")
        if len(tokens) and (int(tokens.min()) < 0 or int(tokens.max()) > vocab):
            raise UserError(f"token ids must be in 0..{vocab}, got {int(tokens.min())}..{int(tokens.max())}")


def sampling_key(seed: int) -> Key:
    """What all randomness of `sample` is keyed by, beside sample number and position."""
    return Key.of(seed).fold_in("sample")


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise UserError(f"a text is a str, got {type(text).__name__}: {text!r:.40}")


def load(path: str | Path, device: str = "auto", precision: str = "float32") -> Model:
    """The model in a run directory, in an exported folder, or of the name `owner/name` on the hub (from the local cache where
    there is no network). `device`: auto (an accelerator where there is one), cpu, or one by name.
    `precision`: in which its matrices multiply, float32 or bfloat16."""
    place, dtype = pick_device(device), pick_dtype(precision)
    config, network, tokenizer = load_model(located(path), place)
    network.compute = dtype
    family = build(config.family, config.options, config.shape.vocab)
    if family.clocked or network.time is None:  # others are folded first, from float32
        network.narrow()
    return Model(family, network, tokenizer, config.length, config.record)


def _permutation(order: Tensor, tokens: Tensor) -> Tensor:
    order = order.expand_as(tokens) if order.ndim == 1 else order
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    if order.shape != tokens.shape or not torch.equal(order.sort(1).values, places):
        raise UserError(f"order must be a permutation of 0..{tokens.shape[1] - 1} for each row of tokens")
    return order
