"""The vocabulary of a converted model: foreign ids keep their numbers, so text and tokenizer need no translation.

Ours has V text ids and one spare row of the embedding, id V: [MASK], or BOS. A foreign [MASK] that is the last id *is* that
row, and its row of the head is left out. One in the middle stays where it is, so that the tokenizer's ids stay true, and its
embedding is copied to the spare row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redraft.errors import UserError
from redraft.families.base import family_class
from redraft.hub.convert.layouts.facts import Facts
from redraft.hub.convert.layouts.plan import Choices

# Rows: [MASK] and BOS, of public checkpoints.
MASKS = {50258: 50257, 30522: 103, 32001: 32000, 131072: 3, 126464: 126336, 152064: 151666}
BOSES = {50258: 50256, 50257: 50256, 30522: 101, 32001: 1, 32000: 1, 131072: 1}


@dataclass(frozen=True)
class TokenizerInfo:
    """What the tokenizer beside a checkpoint says: how many ids, which ends a document, which is [MASK] if it has one."""

    size: int
    eos: int
    mask: int | None
    name: str


@dataclass(frozen=True)
class Vocabulary:
    """V text ids. `spare`: the id whose embedding the spare row gets, None for zeros. `mask`: the checkpoint's own [MASK].

    `silent`: the ids below V that must never be predicted.
    """

    size: int
    spare: int | None
    mask: int | None
    silent: tuple[int, ...]


def place(
    rows: int, head: int, family: str, facts: Facts, choices: Choices, speaker: TokenizerInfo, notes: list[str],
    *, keeps_mask: bool = False, uniform_mask: bool = False,
) -> Vocabulary:  # fmt: skip
    """The vocabulary of a model with `rows` embeddings and `head` rows of logits.

    `keeps_mask`: its own code leaves [MASK] in the softmax (LLaDA), so it stays there. `uniform_mask`: a uniform-state model
    whose vocabulary holds a [MASK] that it draws as noise but never predicts (scaling-dllms).
    """
    usable = _usable(rows, head, facts, notes)
    mask = _mask(usable, head, family, facts, choices, speaker, notes, uniform_mask)
    last = mask is not None and mask == usable - 1 and speaker.size <= mask
    if not family_class(family).spare or mask is None:
        size = usable
    else:
        size = usable - 1 if last and not keeps_mask else usable
    if size > head:
        raise UserError(
            f"the tokenizer {speaker.name} has {speaker.size} ids and the checkpoint predicts {head}: "
            f"give the tokenizer that it was trained with (--tokenizer)"
        )
    if speaker.size > size:
        raise UserError(
            f"the tokenizer {speaker.name} has {speaker.size} ids and the checkpoint {size}: "
            f"give the tokenizer that it was trained with (--tokenizer)"
        )
    silent = () if mask is None or mask >= size or keeps_mask else (mask,)
    if mask is not None and mask < size and family_class(family).spare:
        notes.append(
            f"[MASK] is id {mask}, within the text ids: it keeps its id, and its embedding is copied to id {size}"
        )
    spare = (
        mask
        if family_class(family).spare == "mask"
        else _beginning(usable, family, facts, choices, speaker, mask, notes)
    )
    return Vocabulary(size, spare, mask, silent)


def _usable(rows: int, head: int, facts: Facts, notes: list[str]) -> int:
    """Rows of the embedding that are ids; the others only fill up a multiple of 64 or 128."""
    said = facts.number("vocab_size")
    if said is not None and 0 < said < rows and head == rows:
        notes.append(f"the configuration says {said} ids: the {rows - said} rows after them are padding, left out")
        return said
    return rows


def _mask(
    usable: int,
    head: int,
    family: str,
    facts: Facts,
    choices: Choices,
    speaker: TokenizerInfo,
    notes: list[str],
    uniform: bool,
) -> int | None:
    if choices.mask is not None:
        if choices.mask >= usable:
            raise UserError(f"--mask {choices.mask} is no id of the checkpoint, which has {usable}")
        if choices.mask < 0 and family_class(family).spare == "mask":
            raise UserError(f"family {family!r} needs a [MASK]: give its id by --mask")
        return choices.mask if choices.mask >= 0 else None
    if not family_class(family).spare and not uniform:
        notes.append(f"uniform noise is over all {usable} ids, none of them a [MASK] (else give --mask ID)")
        return None
    said = facts.number("mask_token_id", "mask_index", "mask_id", "model.mask_index")
    if said is not None and 0 <= said < usable:
        return said
    if family_class(family).spare == "bos" and speaker.size >= usable:
        return None
    for guess, why in (
        (speaker.mask, f"as the tokenizer {speaker.name} names it"),
        (MASKS.get(usable), f"as in public checkpoints of {usable} ids"),
        (
            usable - 1 if family_class(family).spare != "bos" or head == usable == speaker.size + 1 else None,
            "the last id",
        ),
    ):
        if guess is not None and guess < usable:
            notes.append(f"[MASK] is taken to be id {guess}, {why} (else give --mask ID)")
            return guess
    return None


def _beginning(
    usable: int, family: str, facts: Facts, choices: Choices, speaker: TokenizerInfo, mask: int | None, notes: list[str]
) -> int | None:
    """The id whose embedding begins a text of an AR model: ours has a beginning that is no text id."""
    if family_class(family).spare != "bos":
        return None
    if choices.bos is not None:
        if not 0 <= choices.bos < usable:
            raise UserError(f"--bos {choices.bos} is no id of the checkpoint, which has {usable}")
        return choices.bos
    if facts.text("algo.prepend_token") == "mask" and mask is not None:
        notes.append(f"texts begin with [MASK], id {mask}, as the configuration says")
        return mask
    guesses: Sequence[tuple[int | None, str]] = (
        (facts.number("bos_token_id"), "as the configuration says"),
        (BOSES.get(usable), f"as in public checkpoints of {usable} ids"),
        (speaker.eos, "the tokenizer's end of a document"),
    )
    for guess, why in guesses:
        if guess is not None and 0 <= guess < usable:
            notes.append(f"texts are taken to begin with id {guess}, {why} (else give --bos ID)")
            return guess
    raise UserError("no id is known that begins a text: give --bos ID")
