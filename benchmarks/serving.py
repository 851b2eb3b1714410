"""A served AR, MDLM, Duo and Eso-LM under load, against the same rows in offline batches and one request at a time.

The server is a process of its own (`redraft serve`), the clients one more, on the same machine; random weights, float32.
First 64 clients ask 500 requests of mixed lengths, steps and families, and a fifth hang up: answers are compared with what
is written offline with the same seeds, and the server's memory is read at each quarter. Float32 rounds differently in other
company, so a draw may fall on the other side about once in a million tokens; the suite compares in float64.
Then, in turns, throughput in tokens written a second: with 64 clients, offline in batches, and one request after another.
All three do the same requests. OMP_NUM_THREADS is what each has: offline uses them in a call, the server shares them out to
its models, one at least.

    python benchmarks/serving.py --json docs/results/serving.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.serving.load import Outcome, all_asked, offline, requests

from redraft.evaluation.compute import recorded
from redraft.hub.folder import ModelConfig, save_model
from redraft.hub.model import Model, load
from redraft.network.init import initialised
from redraft.network.sizes import Shape
from redraft.text.tokenizers.tokenizer import Bytes

NAMES = ("ar", "mdlm", "duo", "esolm")
LENGTH = 128


def folders(into: Path, width: int, depth: int) -> None:
    for number, name in enumerate(NAMES):
        shape = Shape("dit", depth, width // 64, width, 4 * width, Bytes().size, 64)
        network = initialised(shape, number)
        for parameter in network.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        save_model(into / name, ModelConfig(name, {}, shape, LENGTH, Bytes().fingerprint, {}), network, Bytes())


@contextmanager
def serving(into: Path, device: str, rows: int) -> Iterator[tuple[int, int]]:
    """(port, process id) of a server that is up."""
    words = [*(str(into / name) for name in NAMES), "--port", "0", "--device", device, "--rows", str(rows), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "redraft", "serve", *words], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    said = ""
    while not said.endswith("}\n}\n"):
        said += process.stdout.readline()
    try:
        yield int(json.loads(said)["url"].rpartition(":")[2]), process.pid
    finally:
        if (early := process.poll()) is not None:
            print(f"the server ended early, with status {early}")
        process.terminate()
        process.wait(30)


def memory(pid: int) -> float:
    """MiB that are resident."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def loaded(port: int, pid: int, models: dict[str, Model], options: argparse.Namespace) -> dict[str, Any]:
    """The first part: what was lost or wrong, and the memory at each quarter."""
    wanted = requests(NAMES, options.requests, LENGTH, leaving=0.2)
    done, read = [0], [memory(pid)]

    def told(number: int) -> None:
        done[0] += 1
        if done[0] % (len(wanted) // 4) == 0:
            read.append(memory(pid))

    found = asyncio.run(all_asked(port, wanted, options.clients, told))
    texts, _ = offline(models, wanted, options.rows)
    staying = [(outcome, text) for request, outcome, text in zip(wanted, found, texts) if request.leaves is None]
    answered = [(outcome, text) for outcome, text in zip(found, texts) if outcome.status == 200]
    return {
        "requests": len(wanted),
        "hung_up": sum(request.leaves is not None and outcome.status == 0 for request, outcome in zip(wanted, found)),
        "lost": sum(outcome.status != 200 for outcome, _ in staying),
        "answered": len(answered),
        "wrong": sum(outcome.text != text for outcome, text in answered),
        "memory_mib": read,
    }


def rates(port: int, models: dict[str, Model], options: argparse.Namespace, turn: int) -> dict[str, float]:
    """Tokens written a second, side by side. Offline has as many rows at once as the clients can have at each model."""
    wanted = requests(NAMES, options.timed, LENGTH, leaving=0, seed=100 + turn)
    began = time.perf_counter()
    _, sizes = offline(models, wanted, options.clients // len(NAMES))
    out = {"offline": sum(sizes) / (time.perf_counter() - began)}

    def served(clients: int) -> float:
        began = time.perf_counter()
        found: list[Outcome] = asyncio.run(all_asked(port, wanted, clients))
        assert all(outcome.status == 200 for outcome in found)
        return sum(sizes) / (time.perf_counter() - began)

    return out | {"served": served(options.clients), "one_at_a_time": served(1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--timed", type=int, default=128, help="requests of each turn of the clock")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory() as place:
        folders(Path(place), options.width, options.depth)
        models = {name: load(Path(place) / name, options.device) for name in NAMES}
        with serving(Path(place), options.device, options.rows) as (port, pid):
            result = loaded(port, pid, models, options)
            print({key: value for key, value in result.items() if key != "memory_mib"})
            print("memory, MiB:", " ".join(f"{value:.0f}" for value in result["memory_mib"]))
            turns = [rates(port, models, options, turn) for turn in range(options.turns)]
    middle = {name: sorted(turn[name] for turn in turns)[len(turns) // 2] for name in turns[0]}
    result |= {"tokens_per_second": middle, "turns": turns, "width": options.width, "depth": options.depth}
    result |= {
        "threads": torch.get_num_threads(),
        "clients": options.clients,
        "rows": options.rows,
        **recorded(options.device, "float32"),
    }
    result["served_over_offline"] = middle["served"] / middle["offline"]
    result["served_over_one_at_a_time"] = middle["served"] / middle["one_at_a_time"]
    for name, value in middle.items():
        print(f"{name:>14} {value:10.0f} tokens/s   ({middle['served'] / value:.2f} x: served over this)")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
