"""Five models of equal FLOPs on books, and what they score without having seen a task: one table from one command.

AR, MDLM, Duo, Eso-LM and SMDM (the recipe `zero-shot`), a BPE of 4,096 ids learned from one shard of the books; then BLiMP,
LAMBADA, PIQA, HellaSwag and ARC-easy by lm-evaluation-harness, and bits per byte of WikiText-2. Everything is offline, and
what is there already is not done again.

    python benchmarks/zero_shot.py --data-dir DATA --into runs/zero-shot --json docs/results/zero-shot.json
"""

from __future__ import annotations

import argparse
import json
import lzma
import subprocess
import sys
from pathlib import Path
from typing import Any

import measure

from redraft.commands.plan import recipe_table
from redraft.files import make_folder, read_json, write_text

FAMILIES = ("ar", "mdlm", "duo", "esolm", "smdm")
# name of the file: (what is asked, how many documents of each task)
ASKED = {
    "blimp": (["--tasks", "blimp"], 20),
    "choice": (["--tasks", "piqa,arc_easy,hellaswag"], 150),
    "lambada": (["--tasks", "lambada_openai"], 100),
}
COLUMNS = (
    ("BLiMP", "blimp", "blimp", "acc"), ("PIQA", "choice", "piqa", "acc_norm"), ("ARC-e", "choice", "arc_easy", "acc_norm"),
    ("HellaSwag", "choice", "hellaswag", "acc_norm"), ("LAMBADA", "lambada", "lambada_openai", "acc"),
)  # fmt: skip


def learn_tokenizer(books: Path, into: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with lzma.open(books / "train_00.jsonl.xz", "rt") as lines:
        tokenizer.train_from_iterator((json.loads(line)["text"] for line in lines), trainer)
    write_text(into, tokenizer.to_str())


def redraft(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "redraft", *words], check=True, stdout=subprocess.DEVNULL)


def train(args: argparse.Namespace) -> dict[str, Path]:
    """The five runs; family -> folder."""
    import tomli_w

    tokenizer = args.into / "tokenizer.json"
    make_folder(args.into)
    if not tokenizer.exists():
        learn_tokenizer(args.data_dir / "books", tokenizer)
    table = recipe_table("zero-shot")
    books = args.data_dir.resolve() / "books"
    data = {"source": str(books / "train_0*.jsonl.xz"), "validation": str(books / "valid.jsonl.xz")}
    table["base"]["data"] |= {**data, "tokenizer": str(tokenizer.resolve())}
    if args.flops:
        for arm in table["arm"]:
            arm["flops"] = [args.flops]
    write_text(args.into / "recipe.toml", tomli_w.dumps(table))
    redraft("study", "run", str(args.into / "recipe.toml"), "--into", str(args.into / "study"), *args.where)
    runs = {path.name.partition("-")[0]: path for path in (args.into / "study" / "runs").iterdir() if path.is_dir()}
    return {name: runs[name] for name in FAMILIES}


def score(args: argparse.Namespace, name: str, run: Path) -> dict[str, Any]:
    """Everything that is asked of one model, each result in a file of its own."""
    out = {key: args.into / "scores" / f"{name}-{key}.json" for key in (*ASKED, "wikitext")}
    for key, (what, limit) in ASKED.items():
        if not out[key].exists():
            limit = 2 if args.quick else limit
            asked = [*what, "--limit", str(limit), "--data-dir", str(args.data_dir), "--truncate"]
            redraft(
                "eval",
                str(run),
                *asked,
                "--cache",
                str(args.into / f"{name}.cache"),
                "--out",
                str(out[key]),
                *args.where,
            )
    if not out["wikitext"].exists():
        text = ["--data", str(args.data_dir / "wikitext2" / "test.txt.xz"), "--detokenize", "wikitext", "--rows", "400"]
        redraft("eval", str(run), *text, "--out", str(out["wikitext"]), *args.where)
    return {key: read_json(path) for key, path in out.items()}


def row(name: str, run: Path, scores: dict[str, Any]) -> dict[str, Any]:
    record, wikitext = read_json(run / "record.json"), scores["wikitext"]
    found: dict[str, Any] = {
        "family": name, "flops": record["flops"], "params": record["params"], "tokens": record["tokens"],
        "loss": record["loss"], "loss_kind": record["loss_kind"], "books_bits_per_byte": record["bits_per_byte"],
        "wikitext_bits_per_byte": [wikitext["bits_per_byte"], wikitext["bits_per_byte_se"]],
    }  # fmt: skip
    for title, key, task, metric in COLUMNS:
        at = scores[key]["groups"].get(task, {}) or scores[key]["tasks"][task]["metrics"]
        found[title] = [at[metric]["value"], at[metric]["stderr"]]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="the folder of the public sets")
    parser.add_argument("--into", type=Path, default=Path("runs/zero-shot"))
    parser.add_argument("--flops", type=float, help="of each model; those of the recipe if left out")
    parser.add_argument("--quick", action="store_true", help="2e11 FLOPs and two documents a task: does it run?")
    parser.add_argument("--json", type=Path)
    measure.device_argument(parser)
    args = measure.placed(parser.parse_args())
    args.where = ["--device", str(args.device)]
    args.flops = args.flops or (2e11 if args.quick else None)
    rows = [row(name, run, score(args, name, run)) for name, run in train(args).items()]
    head = ("", "books, bits/byte", "WikiText-2, bits/byte", *(title for title, *_ in COLUMNS))
    shown = [
        (r["family"], f"{r['books_bits_per_byte']:.3f}", *(_plus(r[t]) for t in ("wikitext_bits_per_byte", *head[3:])))
        for r in rows
    ]
    limits = {key: 2 if args.quick else limit for key, (_, limit) in ASKED.items()}
    result = {"benchmark": "zero-shot", "machine": measure.machine(args.device), "documents": limits, "models": rows}
    measure.publish(result, measure.table(head, shown), args.json)


def _plus(pair: list[float]) -> str:
    return f"{pair[0]:.3f} ± {pair[1]:.3f}"


if __name__ == "__main__":
    main()
