"""How many times a run reads its text: the epochs that a budget buys, told before it is spent. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.config import DataConfig
from redraft.display import quantity
from redraft.errors import UserError
from redraft.text.examples.prompts import detected
from redraft.text.shards.mixture import phases_of
from redraft.text.shards.prepare import at_hand
from redraft.text.tokenizers.tokenizer import load_tokenizer

MANY = 4.0  # epochs up to which repeated text is worth nearly as much as new (Muennighoff et al. 2023, arXiv:2305.16264, AR)


@dataclass(frozen=True)
class Repetition:
    """`tokens` there are to train on, and `epochs`, how often the budget reads them; None where nobody has counted: `why`."""

    tokens: int | None
    epochs: float | None
    why: str = ""

    @property
    def sentence(self) -> str:
        if self.tokens is None or self.epochs is None:
            return f"Repetition: not counted ({self.why})."
        there = f"{quantity(self.tokens)} tokens to train on"
        if self.epochs <= 1:
            return f"Repetition: none, {self.epochs:.3g} of {there}."
        beyond = "; beyond 4, repeated text taught AR less than new: see train.dropout, train.weight_decay"
        return f"Repetition: {there}, read {self.epochs:.3g} times{beyond if self.epochs > MANY else ''}."


def repetition(tokens: int, there: int) -> Repetition:
    """Of a budget of so many tokens, and so many there are."""
    return Repetition(there, tokens / there)


def repetition_foreseen(data: DataConfig, tokens: int) -> Repetition:
    """Before anything is tokenised: of a source of text whose tokens are kept on this machine."""
    try:
        form = detected(data.source) if data.format == "auto" else data.format
        sources = [one for phase in phases_of(data) for one in phase.mixture] if form == "text" else []
        if len(sources) != 1:
            return Repetition(None, None, "training tells it" if form != "text" else "of a mixture")
        corpus = at_hand(sources[0].source, load_tokenizer(data.tokenizer), validation=sources[0].validation)
    except UserError as error:
        return Repetition(None, None, str(error))
    if corpus is None:
        return Repetition(None, None, f"{sources[0].source} is not tokenised yet; training tells it")
    return repetition(tokens, corpus.split("train").count)
