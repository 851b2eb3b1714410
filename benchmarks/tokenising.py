"""Tokenising a corpus into shards, beside what the `tokenizers` library alone does with the same documents on one core.

The library is given lists of documents (`encode_batch_fast`, its own threads off), the whole of ours goes from a .jsonl
file to shards with hashes and a manifest. One thread each; what counts is the ratio within a turn.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from measure import arguments, machine, medians, parsed, publish, ratio, table, take_turns
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, trainers

from redraft.text.shards.prepare import prepare
from redraft.text.sources.corpus import open_source
from redraft.text.tokenizers.tokenizer import HuggingFace

VOCABULARY = 16384
LEAST = 0.8  # of the library's speed


def texts(source: str, characters: int) -> list[str]:
    """The documents of a source up to so many characters."""
    out, size = [], 0
    for document in open_source(source).documents():
        out.append(document.text)
        size += len(document.text)
        if size >= characters:
            break
    return out


def trained(documents: list[str]) -> str:
    """A byte-level BPE of these documents, as a tokenizer.json."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["</s>"], show_progress=False)
    library.train_from_iterator(documents, special)
    return str(library.to_str())


def short(documents: list[str], length: int) -> list[str]:
    """The same text in documents of about a web page's length."""
    return [text[i : i + length] for text in documents for i in range(0, len(text), length)]


def cases(documents: list[str], definition: str, folder: Path) -> dict[str, Any]:
    library, ours = Library.from_str(definition), HuggingFace(definition)
    file = folder / "documents.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))

    def redraft() -> None:
        shutil.rmtree(folder / "out", ignore_errors=True)
        prepare(str(file), ours, folder / "out", workers=1)

    def alone() -> None:
        for start in range(0, len(documents), 256):
            library.encode_batch_fast(documents[start : start + 256], add_special_tokens=False)

    return {"tokenizers alone": alone, "redraft, file to shards": redraft}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--data", default="stdlib", help="source of text")
    parser.add_argument("--characters", type=int, default=8_000_000)
    args = parsed(parser)
    whole = texts(args.data, args.characters // 8 if args.quick else args.characters)
    definition, results = trained(whole[: max(1, len(whole) // 4)]), {}
    for name, documents in (("documents as they are", whole), ("documents of 4000 characters", short(whole, 4000))):
        with tempfile.TemporaryDirectory() as folder:
            seconds = take_turns(cases(documents, definition, Path(folder)), args.repeats)
        size = sum(map(len, documents))
        speed = {case: size / s / 1e6 for case, s in medians(seconds).items()}
        share = ratio(seconds, "tokenizers alone", "redraft, file to shards")
        results[name] = {"documents": len(documents), "share": share, **speed}
    rows = [
        (
            name,
            str(r["documents"]),
            *(f"{r[c]:.2f}" for c in ("tokenizers alone", "redraft, file to shards")),
            f"{r['share']:.2f}",
        )
        for name, r in results.items()
    ]
    head = ("case", "documents", "library, M characters/s", "ours", f"ratio (at least {LEAST})")
    publish({"machine": machine(), "cases": results}, table(head, rows), args.json)


if __name__ == "__main__":
    main()
