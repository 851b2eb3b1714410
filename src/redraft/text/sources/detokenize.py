"""Detokenisation of word-level benchmarks: `Mr. X 's well @-@ known " play " .` becomes ordinary text.

A perplexity depends on which form was scored by more than most models differ, so the rules that were applied belong to
the result. They lose nothing that counts: bits per byte and per word divide by the text as it came.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from redraft.errors import unknown

_WIKITEXT = (
    (r" @([-,.])@ ", r"\1"),  # 4 @,@ 000, well @-@ known
    (r"s '", "s'"),
    (r" '(s|m|d|re|ve|ll|t)\b", r"'\1"),
    (r" ([.,;:!?])(?=\s|$)", r"\1"),
    (r"([(\[{]) ", r"\1"),
    (r" ([)\]}])", r"\1"),
    (r'" ([^"\n]*?) "', r'"\1"'),
    (r"(?m)^ (=+ .* =+) $", r"\1"),  # a heading's own spaces
    (r"(?m)^ | $", ""),
)
_PTB = (
    (r" '(s|m|d|re|ve|ll)\b", r"'\1"),
    (r" n't\b", "n't"),
    (r" ([.,;:!?])(?=\s|$)", r"\1"),
    (r"\$ (?=[N\d])", "$"),
    (r"``\s?", '"'),
    (r"\s?''", '"'),
)
_LM1B = (
    (r" '(s|m|d|re|ve|ll)\b", r"'\1"),
    (r" n't\b", "n't"),
    (r" ([.,;:!?])(?=\s|$)", r"\1"),
    (r'" ([^"\n]*?) "', r'"\1"'),
    (r"([(\[]) ", r"\1"),
    (r" ([)\]])", r"\1"),
    (r"\$ (?=\d)", "$"),
    (r"£ (?=\d)", "£"),
)
_LAMBADA = ((r"``|''|[“”]", '"'), (r"[‘’]", "'"), (r" +\n", "\n"))
RULES = {"wikitext": _WIKITEXT, "ptb": _PTB, "lm1b": _LM1B, "lambada": _LAMBADA}


def detokenizer(name: str) -> Callable[[str], str]:
    """The text function of a rule set; "none" changes nothing."""
    if name == "none":
        return lambda text: text
    if name not in RULES:
        raise unknown("detokenizer", name, ("none", *RULES))
    rules = [(re.compile(pattern), into) for pattern, into in RULES[name]]

    def written(text: str) -> str:
        for pattern, into in rules:
            text = pattern.sub(into, text)
        return text

    return written
