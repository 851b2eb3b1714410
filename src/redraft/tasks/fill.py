"""Infilling by a model, many texts at once, each family by its own sampler at temperature 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.hub.model import Model
from redraft.sampling.base import mask_refusal
from redraft.text.tokenizers.tokenizer import Tokenizer
from redraft.types import Canvas, last


@dataclass(frozen=True)
class Hole:
    """Ids before and after a hole. `size` None: the hole runs to the end of the canvas, and nothing comes after."""

    before: tuple[int, ...]
    after: tuple[int, ...] = ()
    size: int | None = None


def hole(tokenizer: Tokenizer, before: str, after: str = "", answer: str | None = None) -> Hole:
    """`answer` says how many tokens are hidden (infilling); without one, the text goes on as long as the canvas does."""
    given = tuple(tokenizer.encode(before).tolist())
    follows = tuple(tokenizer.encode_after(after).tolist()) if after else ()
    return Hole(given, follows, None if answer is None else len(tokenizer.encode_after(answer)))


def canvas(holes: Sequence[Hole], length: int, eos: int) -> Canvas:
    """[n, length]: what is given is fixed; after an infilled text come ends of text."""
    tokens = torch.full((len(holes), length), eos)
    fixed = torch.zeros_like(tokens, dtype=torch.bool)
    for row, (mine, given) in enumerate(zip(holes, fixed, strict=True)):
        begin = len(mine.before)
        end = length if mine.size is None else begin + mine.size
        if begin >= length or end + len(mine.after) > length:
            raise UserError(
                f"a text of {max(begin + 1, end + len(mine.after))} tokens is too long for rows of {length}"
            )
        tokens[row, :begin] = torch.tensor(mine.before)
        tokens[row, end : end + len(mine.after)] = torch.tensor(mine.after, dtype=torch.int64)
        given[:begin] = given[end:] = True
    return Canvas(tokens, fixed)


def filled(
    model: Model, holes: Sequence[Hole], length: int, steps: int, batch: int = 256, temperature: float = 0.0
) -> list[str]:
    """What the model writes into each hole, up to its first end of text."""
    # SMDM's greedy sampling (`greddy`) is `low_confidence`. Families that it cannot serve use their default sampler.
    sampler = "low_confidence" if temperature == 0 and mask_refusal(model.family) is None else ""
    texts = []
    for start in range(0, len(holes), batch):
        some = holes[start : start + batch]
        frames = model.frames(
            canvas(some, length, model.tokenizer.eos), model.denoiser(temperature), sampler, steps, start
        )
        texts += [_text(model, row, mine) for row, mine in zip(last(frames).tokens, some, strict=True)]
    return texts


def _text(model: Model, row: Tensor, mine: Hole) -> str:
    begin = len(mine.before)
    return model.text(row[begin : len(row) if mine.size is None else begin + mine.size])
