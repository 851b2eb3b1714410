"""The public interface with the types that a user's checker sees: `mypy --strict examples/typed.py` passes."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

import redraft


def bits_per_byte(model: redraft.Model, texts: list[str]) -> list[float | None]:
    """Of each text; a bound for all families but AR."""
    return [score.bits_per_byte for score in model.score(texts, draws=8)]


def entropies(model: redraft.Model, text: str) -> Tensor:
    """[L] nats: how unsure the model is of each token, given all that its family shows it."""
    tokens = torch.as_tensor(model.tokenizer.encode(text), dtype=torch.int64)[None]
    log_p: Tensor = model.log_p(tokens)
    return -(log_p.exp() * log_p.nan_to_num(neginf=0.0)).sum(-1)[0]


def frames(model: redraft.Model, prompt: str) -> Iterator[str]:
    """What it looks like while it is written."""
    for canvas in model.sample(prompt, n=1, steps=8, length=64, stream=True):
        yield model.show(canvas)[0]


def main(folder: str) -> None:
    model = redraft.load(folder, device="cpu")
    print(bits_per_byte(model, ["Once upon a time"]), entropies(model, "Once upon a time").tolist())
    print(*frames(model, "Once"), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1])
