"""What a run that starts from a trained model takes over from it: network, family, tokens; and what is new where an
autoregressive model becomes another family. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from redraft.config import RunConfig, merge
from redraft.display import quantity
from redraft.registry import FAMILIES


def started(start: str | None, table: Mapping[str, Any]) -> dict[str, Any]:
    """A run's table over that of the model it starts from. An autoregressive one that becomes another family is adapted:
    `train.adapt` is there, if only with its defaults."""
    if start is None:
        return dict(table)
    under = start_table(Path(start))
    over = merge(under, table)
    family = over["family"] if isinstance(over["family"], str) else over["family"].get("name")
    if under["family"]["name"] == "ar" and family != "ar":
        over["train"] = {"adapt": {}, **over["train"]}
    return over


def start_table(folder: Path) -> dict[str, Any]:
    """What is taken over, unless told otherwise."""
    from redraft.hub.config import read_config

    start = read_config(folder)
    shape = {key: value for key, value in asdict(start.shape).items() if key not in ("hidden", "vocab")}
    shape["mlp_width"] = start.shape.hidden
    return {
        "family": {"name": start.family, "options": start.options},
        "network": shape,
        "data": {"tokenizer": str(folder), "length": start.length},
        "train": {"init_from": str(folder)},
    }


def adaptation_sentence(config: RunConfig, vocab: int) -> list[str]:
    """What is carried over and what is new; nothing where the run is no adaptation."""
    adapt, family = config.train.adapt, config.family
    if adapt is None:
        return []
    attention = "opens both ways at once"
    if adapt.open:
        attention = f"opens both ways over the first {adapt.open:.0%} of the steps (arXiv:2410.17891)"
    shift = family.options.get("shift")
    stands = "one place earlier, as before (family.shift)" if shift else "in place, and stood one place earlier"
    new = "the row of [MASK], the mean of the others" if adapt.mask == "mean" else "nothing: [MASK] is what BOS was"
    if "uniform" in FAMILIES[family.name].summary and family.name == "duo":
        new = "no row of the embedding, for its noise is made of text"
    return [
        f"Adaptation of {config.train.init_from}: blocks, norms, head and the embeddings of {quantity(vocab)} ids are carried "
        f"over; new is {new}.{_trained(config)} Attention {attention}; predictions stand {stands}."
    ]


def _trained(config: RunConfig) -> str:
    """What adapters leave as it is."""
    if config.train.lora is None:
        return ""
    row = "" if config.family.name == "duo" else " and the row of [MASK]"
    return f" Trained are adapters of rank {config.train.lora.rank}{row} alone."
