"""Zero-shot perplexity with every convention named. Published figures differ most by what is decided here.

`wrap`      stream: documents end in the end-of-document id and are cut into windows where they come.
            documents: each document has windows of its own, and nothing is paid for its end.
`stride`    new tokens a window; what comes before them in it is context, read and not paid for. The length of a window: no
            overlap, and the first tokens of each are scored with nothing before them.
`framed`    each window begins and ends with the end-of-document id, and pays for both, as the loaders of MDLM and Duo
            have it.
`detokenize` rules applied before encoding (`text.detokenize`).

The rest of a text that fills no window is scored too, in a shorter one: nothing is dropped. Before the first token of a
window AR reads its BOS, a spare id that is never text. Bytes and words are counted in the text as it came.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redraft.errors import UserError, unknown
from redraft.evaluation.likelihood import Bound
from redraft.text.detokenize import detokenizer
from redraft.text.packing import Rows
from redraft.text.tokenizer import Tokenizer

Ids = NDArray[np.int64]
WRAPS = ("stream", "documents")


@dataclass(frozen=True)
class Convention:
    """How a text becomes windows of `length` tokens (see above). `stride` 0 means `length`."""

    length: int
    wrap: str = "stream"
    stride: int = 0
    framed: bool = False
    detokenize: str = "none"

    def __post_init__(self) -> None:
        if self.wrap not in WRAPS:
            raise unknown("wrap", self.wrap, WRAPS)
        detokenizer(self.detokenize)
        if not 0 <= self.stride <= self.length:
            raise UserError(f"a stride of {self.stride} does not fit windows of {self.length} tokens: give 1 to that")
        if self.framed and (self.stride or self.length < 3):
            raise UserError("framed windows hold at least 3 tokens and do not overlap: leave the stride out")

    @property
    def named(self) -> dict[str, Any]:
        """For a result: what must be equal before two perplexities are compared."""
        return {**asdict(self), "stride": self.stride or self.length}


@dataclass(frozen=True)
class Scored:
    """Windows to score, and the sizes of what they hold of the text: tokens paid for, bytes and words as it came."""

    rows: Rows
    tokens: int
    bytes: int
    words: int

    def per_text(self, result: Bound) -> dict[str, float]:
        """The same nats by token, byte and word. Perplexities by word compare across tokenizers, as bits/byte do."""
        nats = result.nats * self.tokens
        return {
            "perplexity": math.exp(result.nats),
            "bits_per_byte": nats / math.log(2) / self.bytes,
            "bits_per_byte_se": result.sampling_error * self.tokens / math.log(2) / self.bytes,
            "word_perplexity": math.exp(nats / self.words),
        }


def windows(texts: Iterable[str], tokenizer: Tokenizer, how: Convention, limit: int | None = None) -> Scored:
    """Cut texts into windows. `limit`: at most so many, spread evenly; bytes and words are then counted by their share of
    the tokens. `UserError` for texts that hold nothing."""
    written, documents, size, words = detokenizer(how.detokenize), list[Ids](), 0, 0
    for text in texts:
        ids = tokenizer.encode(written(text))
        if len(ids):
            documents.append(np.append(ids, tokenizer.eos) if how.wrap == "stream" else ids)
            size, words = size + len(text.encode()), words + len(text.split())
    if not documents:
        raise UserError("there is no text to score: the source is empty")
    pieces = [np.concatenate(documents)] if how.wrap == "stream" else documents
    cut = [window for piece in pieces for window in _cut(piece, tokenizer.eos, how)]
    total = sum(len(ids) - seen for ids, seen in cut)
    if limit is not None and limit < len(cut):
        cut = [cut[i * len(cut) // limit] for i in range(limit)]
    kept = sum(len(ids) - seen for ids, seen in cut)
    return Scored(_rows(cut), kept, round(size * kept / total), max(1, round(words * kept / total)))


def _cut(ids: Ids, eos: int, how: Convention) -> Iterator[tuple[Ids, int]]:
    """Windows of one text, each with how many of its first tokens are context."""
    if how.framed:
        for start in range(0, len(ids), how.length - 2):
            yield np.concatenate([[eos], ids[start : start + how.length - 2], [eos]]), 0
        return
    yield ids[: how.length], 0
    stride = how.stride or how.length
    for start in range(how.length, len(ids), stride):
        stop = min(start + stride, len(ids))
        first = max(0, stop - how.length)
        yield ids[first:stop], start - first


def _rows(cut: Sequence[tuple[Ids, int]]) -> Rows:
    lengths = np.array([len(ids) for ids, _ in cut], np.int64)
    shape = (len(cut), int(lengths.max()))
    tokens, scored = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
    for row, (ids, seen) in enumerate(cut):
        tokens[row, : len(ids)] = ids
        scored[row, seen : len(ids)] = True
    whole = bool((lengths == shape[1]).all())
    return Rows(tokens, scored, np.arange(len(cut)), None if whole else lengths)
