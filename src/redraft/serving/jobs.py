"""What a client asked for: a job of one text or several, with what is to be read of each; and why one is not taken."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from redraft.serving.engine import Asked
from redraft.serving.writing import Frame, Writing

KEPT = 256  # frames that wait for a client who reads slowly: older ones are dropped


class Full(Exception):
    """More waits than may."""


class Closed(Exception):
    """Nothing new is taken: the server ends."""


@dataclass(eq=False)
class Text:
    """One row of a request. `finish` is called in the thread of the model on the finished text (for its log-probabilities)."""

    asked: Asked
    writing: Writing
    finish: Callable[[Writing], Any] | None = None
    found: Any = None  # what `finish` returned
    over: bool = False
    seen: int = 0  # frames of the row that were looked at
    began: float = 0.0
    frames: deque[Frame] = field(default_factory=lambda: deque(maxlen=KEPT))


class Job:
    """The texts of one request. `tell` is called from the thread of the model when there is something new to read."""

    def __init__(
        self, model: str, texts: list[Text], tell: Callable[[], None], live: bool = False, frames: bool = False
    ):
        self.model, self.texts, self.tell, self.live, self.frames = model, texts, tell, live, frames
        self.error: BaseException | None = None
        self.cancelled, self.seconds = False, 0.0

    @property
    def over(self) -> bool:
        return self.error is not None or all(text.over for text in self.texts)
