"""Text of one's own to a report: learn a tokenizer, plan a study of two families, run it, read the page.

python examples/own_text.py book.txt --into studies/book           a minute; needs pip install 'redraft[figures]'
python examples/own_text.py 'books/*.txt.xz'                       all that `redraft train --data` reads
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import tomli_w
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from redraft.cli import main as command
from redraft.errors import MISTAKE, UserError
from redraft.text.sources.corpus import open_source


def learned(text: str, size: int) -> Tokenizer:
    """A byte-level BPE of `size` ids, the last of which ends a document. `UserError` for text that cannot be read."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size - 1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((document.text for document in open_source(text).documents()), trainer)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def recipe(
    text: str, tokenizer: Path, flops: list[float], sizes: list[str], length: int, workers: int = 2
) -> dict[str, object]:
    """AR and MDLM at every size and budget; `redraft list keys` names what else can be said."""
    base = {
        "data": {"source": text, "tokenizer": str(tokenizer), "length": length},
        "network": {"cond": 16},
        "train": {"lr": 3e-3, "batch": 8},
        "evaluate": {"rows": 64, "draws": 4},
    }
    arm = {"families": ["ar", "mdlm"], "sizes": sizes, "flops": flops, "seeds": [0]}
    return {"title": f"AR and MDLM on {Path(text).name}", "workers": workers, "base": base, "arm": [arm]}


def main(arguments: list[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("text", help="files, a folder, a glob or hf:DATASET, as of `redraft train --data`")
    parser.add_argument("--into", type=Path, default=Path("studies/own-text"))
    parser.add_argument("--vocabulary", type=int, default=512)
    parser.add_argument("--flops", type=float, nargs="+", default=[1e10, 3e10])
    parser.add_argument("--sizes", nargs="+", default=["6k", "14k", "25k"])
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    options = parser.parse_args(arguments)
    try:
        own = learned(options.text, options.vocabulary)
    except UserError as error:
        parser.exit(MISTAKE, f"{parser.prog}: {error}\n")
    options.into.mkdir(parents=True, exist_ok=True)
    tokenizer = options.into.with_name(f"{options.into.name}-tokenizer.json")
    own.save(str(tokenizer))
    plan = options.into.with_name(f"{options.into.name}.toml")
    settings = (options.flops, options.sizes, options.length, options.workers)
    plan.write_text(tomli_w.dumps(recipe(options.text, tokenizer, *settings)))
    command(["study", "run", str(plan), "--into", str(options.into)])
    command(["study", "fit", str(options.into)])
    command(["study", "report", str(options.into)])


if __name__ == "__main__":
    main()
