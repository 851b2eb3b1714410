"""Answers in OpenAI's format: of a finished request whole, of one on its way in chunks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from redraft.hub.model import MARK, Model
from redraft.hub.recording import cells
from redraft.serving.http.asking import Asking
from redraft.serving.jobs import Text
from redraft.serving.writing import Frame, TokenLogP

MOST_KNOWN = 1 << 16  # texts of a few ids that are kept for the frames to come


@dataclass
class Reply:
    """Of one request. `chat`: messages instead of texts. `echo`: a text begins with its prompt."""

    model: Model
    name: str
    asking: Asking
    chat: bool
    echo: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: uuid4().hex)
    _known: dict[tuple[int, ...], str] = field(default_factory=dict)  # most of a frame was there in the one before

    def _decode(self, ids: Sequence[int]) -> str:
        key = tuple(ids)
        if (text := self._known.get(key)) is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            text = self._known[key] = self.model.tokenizer.decode(key)
        return text

    def whole(self) -> dict[str, Any]:
        """The answer to a request that is over."""
        choices = [self._choice(number, text) for number, text in enumerate(self.asking.texts)]
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": self.usage()}

    def chunk(self, number: int, delta: str, first: bool, over: bool, frame: Frame | None = None) -> dict[str, Any]:
        """What text `number` has grown by. The last chunk says why it ended; a frame is the whole canvas."""
        text = self.asking.texts[number]
        choice: dict[str, Any] = {"index": number, "logprobs": None, "finish_reason": None}
        if over:
            choice |= {"finish_reason": text.writing.reason, "logprobs": self._log_p(text)}
        if self.chat:
            choice["delta"] = ({"role": "assistant"} if first else {}) | ({"content": delta} if delta or first else {})
        else:
            choice["text"] = (text.writing.given if first and self.echo else "") + delta
        if frame is not None:
            choice["canvas"] = self._canvas(text, frame)
        return {**self._head("chat.completion.chunk" if self.chat else "text_completion"), "choices": [choice]}

    def last(self) -> dict[str, Any]:
        """The chunk of a stream that counts."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._head(kind), "choices": [], "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        """Tokens given, once for each prompt, and written, an end of document included."""
        written = sum(len(text.writing.ids) for text in self.asking.texts)
        given = self.asking.prompt_tokens
        return {"prompt_tokens": given, "completion_tokens": written, "total_tokens": given + written}

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.chat else "cmpl"
        head = {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.name}
        return {**head, "seed": self.asking.seed}

    def _choice(self, number: int, text: Text) -> dict[str, Any]:
        said = text.writing.text
        choice = {"index": number, "finish_reason": text.writing.reason, "logprobs": self._log_p(text)}
        if self.chat:
            return {**choice, "message": {"role": "assistant", "content": said}}
        return {**choice, "text": (text.writing.given if self.echo else "") + said}

    def _log_p(self, text: Text) -> dict[str, Any] | None:
        found: list[TokenLogP] | None = text.found
        if found is None:
            return None
        return chat_log_p(self.model, found) if self.chat else text_log_p(self.model, found)

    def _canvas(self, text: Text, frame: Frame) -> dict[str, Any]:
        """The canvas by tokens; those that are not written are null."""
        ids, vocab, fixed = frame.ids.tolist(), self.model.family.vocab, [False] * len(frame.ids)
        shown = cells(self._decode, ids, fixed, vocab, MARK)
        return {
            "frame": frame.number,
            "calls": frame.calls,
            "seconds": frame.seconds,
            "prompt_tokens": len(text.writing.before),
            "suffix_tokens": len(text.writing.after),
            "tokens": [id if id < vocab else None for id in ids],
            "texts": [cell.text if id < vocab else None for id, cell in zip(ids, shown, strict=True)],
        }


def text_log_p(model: Model, found: list[TokenLogP]) -> dict[str, Any]:
    """The `logprobs` of /v1/completions. Tokens that decode to the same text share a key of `top_logprobs`."""
    name = lambda id: model.tokenizer.decode([id])
    texts = [name(token.id) for token in found]
    starts = [sum(map(len, texts[:at])) for at in range(len(texts))]
    tops = [{name(id): p for id, p in reversed(token.top)} for token in found]
    return {"tokens": texts, "token_logprobs": [t.log_p for t in found], "top_logprobs": tops, "text_offset": starts}


def chat_log_p(model: Model, found: list[TokenLogP]) -> dict[str, Any]:
    """The `logprobs` of /v1/chat/completions."""

    def told(id: int, log_p: float | None) -> dict[str, Any]:
        text = model.tokenizer.decode([id])
        return {"token": text, "logprob": log_p, "bytes": list(text.encode())}

    return {"content": [{**told(t.id, t.log_p), "top_logprobs": [told(*one) for one in t.top]} for t in found]}
