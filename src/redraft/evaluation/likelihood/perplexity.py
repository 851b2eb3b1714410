"""Zero-shot perplexity, with every convention named: windows, stride, BOS and EOS, detokenisation, what is divided by.

`wrap`      stream: documents end in the end-of-document id and are cut into windows where they come.
            documents: each document has windows of its own, and nothing is paid for its end.
`stride`    scored tokens per window; those before them are context, read but not scored. The length of a window: no
            overlap, and the first tokens of each are scored with nothing before them.
`framed`    each window begins and ends with the end-of-document id, and pays for both, as the loaders of MDLM and Duo
            have it.
`detokenize` rules applied before encoding (text/sources/detokenize.py).

The rest of a text that fills no window is scored too, in a shorter one: nothing is dropped. Before the first token of a
window AR reads its BOS, a spare id that is never text. A model that reads nothing there (`Family.begins`) is given the
first token of a text, and windows overlap by one, so that it pays for all others. Bytes and words are counted in the text
as it came.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redraft.errors import UserError, unknown
from redraft.evaluation.likelihood.nelbo import Bound, exponential
from redraft.files import clean
from redraft.text.examples.examples import Examples, PromptCorpus
from redraft.text.shards.packing import Rows, given_first
from redraft.text.shards.tokens import Tokens
from redraft.text.sources.detokenize import detokenizer
from redraft.text.tokenizers.tokenizer import MOST_LOST, Tokenizer

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
    """Windows to score, and what they hold of the text: tokens paid for, bytes and words as it came (None: not known), and the
    share of its tokens that they are. `sha256`: of the whole text, whatever the tokenizer."""

    rows: Rows
    tokens: int
    bytes: float | None
    words: float | None
    share: float
    sha256: str
    convention: Mapping[str, Any]
    lost: float = 0.0  # share of the bytes that do not come back from the tokens

    def given_first(self) -> Scored:
        """First tokens of rows given and not paid for; what they are of the text goes by the count of tokens."""
        rows = given_first(self.rows)
        tokens = int(rows.scored.sum())
        less = tokens / self.tokens
        size, words = (None if part is None else part * less for part in (self.bytes, self.words))
        return replace(self, rows=rows, tokens=tokens, bytes=size, words=words, share=self.share * less)

    def per_text(self, result: Bound) -> dict[str, float | None]:
        """The same nats by byte and by word: these compare across tokenizers, and are withheld (None) where more than
        `MOST_LOST` of the text is lost to this one. An error that is not known is None."""
        size, words = (self.bytes, self.words) if self.lost <= MOST_LOST else (None, None)
        bits = 1 / math.log(2) / size * self.tokens if size else None
        error = result.sampling_error
        return {
            "ppl": result.perplexity,
            "bits_per_byte": None if bits is None else result.nats * bits,
            "bits_per_byte_se": None if bits is None or error is None else error * bits,
            "word_perplexity": exponential(result.nats * self.tokens / words) if words else None,
        }


def windows(
    texts: Iterable[str], tokenizer: Tokenizer, how: Convention, limit: int | None = None, begins: bool = True
) -> Scored:
    """Cut texts into windows. `limit`: at most so many, spread evenly; bytes and words are then counted by their share of
    the tokens. `UserError` for texts that hold nothing."""
    written, documents, size, words = detokenizer(how.detokenize), list[Ids](), 0, 0
    digest, lost = hashlib.sha256(), 0
    for text in map(clean, texts):
        digest.update(len(text).to_bytes(8, "little") + text.encode())
        ids = tokenizer.encode(plain := written(text))
        lost, size, words = lost + tokenizer.lost(plain, ids), size + len(text.encode()), words + len(text.split())
        if len(ids):
            documents.append(np.append(ids, tokenizer.eos) if how.wrap == "stream" else ids)
    if not documents:
        raise UserError("there is no text to score: the source is empty")
    pieces = [np.concatenate(documents)] if how.wrap == "stream" else documents
    cut = [window for piece in pieces for window in _cut(piece, tokenizer.eos, how, int(not begins))]
    total = sum(len(ids) - seen for ids, seen in cut)
    if limit is not None and limit < len(cut):
        cut = [cut[i * len(cut) // limit] for i in range(limit)]
    kept = sum(len(ids) - seen for ids, seen in cut)
    if not kept:
        raise UserError("there is no text to score: its one token is the first, before which the model reads nothing")
    share, named = kept / total, how.named if begins else how.named | {"first_token": "given"}
    return Scored(_rows(cut), kept, size * share, words * share, share, digest.hexdigest(), named, lost / size)


def of_split(split: Tokens | Examples, rows: Rows, source: Sequence[str | None], length: int, form: str) -> Scored:
    """The validation split of a run as it was scored when training ended. The text is known by the name of its source."""
    paid = int(rows.scored.sum())
    whole = split.count if isinstance(split, Tokens) else int(split.paid.sum())
    per_token, name = split.bytes_per_token, json.dumps(["validation", *source])
    convention = {"length": length, "wrap": "stream" if form == "text" else form, "stride": length, "validation": True}
    sha = hashlib.sha256(name.encode()).hexdigest()
    return Scored(
        rows, paid, paid * per_token if per_token else None, None, paid / whole, sha, convention, split.lost_share
    )


def of_examples(corpus: PromptCorpus, length: int, form: str, limit: int | None) -> Scored:
    """Examples of a file of prompts, completions paid for, all of it: what would be its training split too."""
    parts = [corpus.split(name) for name in ("train", "validation") if corpus.split(name).count]
    share = None if limit is None else limit / sum(part.count for part in parts)
    kept = [part.spread(None if share is None else max(1, round(share * part.count))) for part in parts]
    paid = [int(rows.scored.sum()) for rows in kept]
    size = sum(n * part.bytes_per_token for n, part in zip(paid, parts, strict=True))
    whole = sum(int(part.paid.sum()) for part in parts)
    lost = sum(part.lost for part in parts) / sum(part.bytes for part in parts)
    convention = {"length": length, "wrap": form, "stride": length, "framed": False, "detokenize": "none"}
    return Scored(_joined(kept), sum(paid), size, None, sum(paid) / whole, corpus.sha256, convention, lost)


def _joined(kept: Sequence[Rows]) -> Rows:
    longest = max(rows.tokens.shape[1] for rows in kept)
    padded = [
        [np.pad(part, ((0, 0), (0, longest - part.shape[1]))) for part in (rows.tokens, rows.scored)] for rows in kept
    ]
    tokens, scored = (np.concatenate(parts) for parts in zip(*padded, strict=True))
    lengths = np.concatenate([r.lengths if r.lengths is not None else np.full(len(r.tokens), longest) for r in kept])
    return Rows(tokens, scored, np.arange(len(tokens)), lengths)


def _cut(ids: Ids, eos: int, how: Convention, lead: int) -> Iterator[tuple[Ids, int]]:
    """Windows of one text, each with how many of its first tokens are context: at least `lead`."""
    if how.framed:
        for start in range(0, len(ids), how.length - 2):
            yield np.concatenate([[eos], ids[start : start + how.length - 2], [eos]]), lead
        return
    yield ids[: how.length], lead
    stride = min(how.stride or how.length, how.length - lead)
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
