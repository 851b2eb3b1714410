"""What reading costs: tokens a second that one core takes from shards on disk, and nanoseconds a token.

At 1 M tokens/s on a core, 2 % of a step's time is 20 ns a token. Shards are of uint16, as a 32 k vocabulary has them, and
the page cache is warm: what a disk adds is the disk's. The fastest of many turns: what a quiet core would say. A row's
documents are numbered too where attention is to stay within them.
"""

from __future__ import annotations

import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
from measure import arguments, machine, parsed, publish, table, take_turns

from redraft.text.shards.mixture import Mixed
from redraft.text.shards.packing import Blocks
from redraft.text.shards.tokens import Shard, Tokens

BATCH, SHARDS = 512, 8
LIMIT = 20.0  # nanoseconds a token


def stream(folder: Path, count: int) -> Tokens:
    """`count` tokens in shards."""
    rng, shards = np.random.default_rng(0), []
    for number in range(SHARDS):
        file = folder / f"{number}.bin"
        rng.integers(0, 32000, count // SHARDS, dtype=np.uint16).tofile(file)
        shards.append(Shard(file, count // SHARDS, "<u2"))
    return Tokens(shards, documents=None, bytes=None)


def cases(tokens: Tokens, length: int) -> dict[str, Any]:
    """A batch of rows each, a new one at every call."""
    plain, within = Blocks(tokens, length, 0), Blocks(tokens, length, 0, boundary=2)
    mixed = Mixed([Blocks(tokens, length, seed) for seed in range(4)], [[0.55, 0.3, 0.1, 0.05]], [])
    rows = max(1, BATCH * 256 // length)

    def reading(samples: Blocks | Mixed) -> Any:
        steps = iter(range(10**9))
        return lambda: samples.rows(next(steps) * rows + np.arange(rows, dtype=np.int64))

    return {"one source": reading(plain), "four sources mixed": reading(mixed), "within documents": reading(within)}


def main() -> None:
    parser: ArgumentParser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2**26, help="tokens on disk")
    args = parsed(parser)
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        tokens = stream(Path(folder), args.tokens)
        for length in (128, 512, 2048):
            per_batch = max(1, BATCH * 256 // length) * length
            turns = take_turns(cases(tokens, length), 10 * args.repeats)
            seconds = {name: min(each) for name, each in turns.items()}
            results |= {f"{name}, rows of {length}": {"ns": 1e9 * s / per_batch} for name, s in seconds.items()}
    rows = [
        (name, f"{r['ns']:.2f}", f"{1e3 / r['ns']:.0f} M", f"{r['ns'] / 10:.2f} %", "yes" if r["ns"] < LIMIT else "NO")
        for name, r in results.items()
    ]
    head = ("case", "ns/token", "tokens/s", "of a step at 1 M tokens/s", f"< {LIMIT:g} ns")
    publish({"machine": machine(), "limit_ns": LIMIT, "cases": results}, table(head, rows), args.json)


if __name__ == "__main__":
    main()
