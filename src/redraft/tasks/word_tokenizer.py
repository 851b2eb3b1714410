"""A whole-word tokenizer for small synthetic data: one id a word, one for unknown words, one for end of text."""

from __future__ import annotations

import json
from collections.abc import Iterable

UNKNOWN, END = "<unk>", "</s>"


def word_level(texts: Iterable[str]) -> str:
    """The definition (`tokenizer.json`) whose words are those of the texts, split at spaces."""
    words = sorted({word for text in texts for word in text.split()})
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    definition = {
        "version": "1.0",
        "added_tokens": [{"content": END, "id": 1, "special": True} | flags],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {
            "type": "WordLevel",
            "vocab": {w: i for i, w in enumerate([UNKNOWN, END, *words])},
            "unk_token": UNKNOWN,
        },
    }
    return json.dumps(definition, ensure_ascii=False)
