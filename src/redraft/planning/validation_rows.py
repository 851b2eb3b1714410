"""The number of validation rows of a run, found before its text is tokenised, by reading no more than needed. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.config import DataConfig, SourceConfig
from redraft.errors import UserError
from redraft.text.examples.examples import Recipe, foreseen_examples
from redraft.text.examples.prompts import detected
from redraft.text.shards.mixture import phases_of
from redraft.text.shards.prepare import FRACTION, at_hand
from redraft.text.sources.corpus import VALIDATION, assigned, open_source
from redraft.text.tokenizers.tokenizer import Tokenizer, load_tokenizer

MOST_TOKENS = 1 << 22  # counted of a source; a longer validation text has at least so many
HUB = "hf:"


@dataclass(frozen=True)
class Foreseen:
    """`rows` that will be scored, None where nobody has counted: `why` then says it. `why` with rows: what will be refused.
    `unit`: of what they are."""

    rows: int | None
    unit: str
    why: str = ""

    @property
    def sentence(self) -> str:
        if self.rows is None:
            return f"Validation: not counted ({self.why})."
        return f"Validation: {self.rows} {self.unit}{f'; {self.why}' if self.why else ''}."


def foreseen(data: DataConfig, limit: int) -> Foreseen:
    """At most `limit` rows or examples of the validation split of the data, as they are on this machine now."""
    try:
        form = detected(data.source) if data.format == "auto" else data.format
        tokenizer = load_tokenizer(data.tokenizer)
        if form == "text":
            return _rows(data, tokenizer, limit)
        recipe = Recipe(form, data.template, data.length, data.eos, data.overlong)
        found = foreseen_examples(data.source, data.validation, tokenizer, recipe, limit)
    except UserError as error:
        return Foreseen(None, "", str(error))
    why = "" if found else "training will be refused: give more examples, or name a validation source (data.validation)"
    return Foreseen(found, "examples", why)


def _rows(data: DataConfig, tokenizer: Tokenizer, limit: int) -> Foreseen:
    """Of a mixture, its last phase is scored: the source that has least of what it owes says how many rows there are."""
    unit, mixture = f"rows of {data.length} tokens", phases_of(data)[-1].mixture
    total, rows = sum(one.weight for one in mixture), limit
    for one in mixture:
        if one.source.startswith(HUB) or str(one.validation).startswith(HUB):
            return Foreseen(None, unit, f"{one.source} is not fetched for a plan")
        tokens = validation_tokens(one, tokenizer, min(MOST_TOKENS, limit * data.length))
        if tokens < data.length:
            short = f"the validation text of {one.source} holds {tokens} tokens, fewer than one row"
            mend = "give more text, name a longer validation source (data.validation), or use shorter rows (--length)"
            return Foreseen(0, unit, f"{short}: training will be refused; {mend}")
        if tokens < min(MOST_TOKENS, limit * data.length):
            rows = min(rows, int(tokens // data.length * total / one.weight))
    least = MOST_TOKENS // data.length
    return Foreseen(rows, unit) if rows <= least or rows < limit else Foreseen(least, f"{unit} at least")


def validation_tokens(one: SourceConfig, tokenizer: Tokenizer, enough: int) -> int:
    """Tokens of a source's validation split, ends of documents included; no more than `enough` are counted."""
    corpus = at_hand(one.source, tokenizer, validation=one.validation)
    if corpus is not None:
        return min(enough, corpus.split(VALIDATION).count)
    if one.validation is not None:
        texts = (document.text for document in open_source(one.validation).documents())
    else:
        divided = assigned(open_source(one.source), None, FRACTION)
        texts = (document.text for document in divided if document.split == VALIDATION)
    total = 0
    for text in texts:
        total += len(tokenizer.encode(text)) + 1
        if total >= enough:
            return enough
    return total
