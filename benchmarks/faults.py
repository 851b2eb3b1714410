"""A matrix of faults: what a run of several ranks survives, and what it says where it does not.

Every case breaks a small run in one way, runs the same command again, and compares with the run that nobody broke: the same
bits where the ranks are as many as before, else the same losses to 1e-9 (float64). `lost` is how many steps were trained
again; a checkpoint is written in the background, so it is at most two intervals of `save_every`, and three where two could
not be written.

    python benchmarks/faults.py --trials 3 --json docs/results/faults.json
    python benchmarks/faults.py --only disk_full two_nodes
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from redraft.config import RunConfig, dump_toml, validated
from redraft.text.shards.packed import write_packed
from redraft.training.journal import last_record, read_events, read_journal

STEPS, EVERY = 60, 10


@dataclass(frozen=True)
class Outcome:
    """`same`: bits, or "1e-9" where the ranks are others. `said`: the line a user reads, where there is one."""

    case: str
    same: str
    lost: int
    said: str = ""


class Bench:
    """A corpus of packed files (those after the first 2^20 tokens are opened when they are needed), a recipe, and the
    unbroken run of two ranks."""

    def __init__(self, folder: Path):
        self.folder, self.recipe = folder, folder / "recipe.toml"
        os.environ |= {"REDRAFT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        rng = np.random.default_rng(0)
        (folder / "data").mkdir(parents=True)
        for number in range(60):
            write_packed(folder / "data" / f"train_{number:02}.bin", rng.integers(0, 250, 1 << 15))
        write_packed(folder / "data" / "validation.bin", rng.integers(0, 250, 512))
        self.recipe.write_text(dump_toml(config(folder / "data")))
        finish(self, folder / "whole", 2)

    def start(
        self, folder: Path, size: int, recipe: Path | None = None, more: tuple[str, ...] = ()
    ) -> list[subprocess.Popen[str]]:
        """The command on each rank, told who it is as torchrun tells."""
        command = [
            sys.executable,
            "-m",
            "redraft",
            "train",
            str(recipe or self.recipe),
            "--into",
            str(folder),
            "--json",
            *more,
        ]
        if size == 1:
            return [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)]
        with socket.socket() as door:
            door.bind(("127.0.0.1", 0))
            port = door.getsockname()[1]
        return [
            subprocess.Popen(
                command, env=os.environ | environment(rank, size, port), text=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )
            for rank in range(size)
        ]  # fmt: skip


def config(data: Path) -> RunConfig:
    return validated(
        RunConfig,
        {
            "family": "mdlm",
            "network": {"depth": 2, "heads": 2, "width": 16, "cond": 8},
            "data": {"source": str(data), "length": 16},
            "budget": {"steps": STEPS},
            "train": {
                "batch": 4, "lr": 3e-3, "threads": 1, "precision": "float64", "device": "cpu", "ema": 0.9,
                "save_every": EVERY, "parallel": {"kind": "fsdp"},
            },
            "evaluate": {"rows": 8, "draws": 2, "batch": 8},
        },
    )  # fmt: skip


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in names.items()}}


def finish(bench: Bench, folder: Path, size: int, recipe: Path | None = None) -> str:
    """Run to the end; what the ranks said."""
    ranks = bench.start(folder, size, recipe)
    said = [rank.communicate(timeout=300)[1] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise RuntimeError(f"the run did not end well: {[r.returncode for r in ranks]}\n" + "\n".join(said))
    return "".join(said)


def ended(ranks: list[subprocess.Popen[str]]) -> tuple[list[int], str]:
    """Exit statuses, and the lines that begin with the program's name."""
    said = "".join(rank.communicate(timeout=120)[1] for rank in ranks)
    lines = [line for line in said.splitlines() if line.startswith(("redraft: ", "note: "))]
    if any(rank.returncode == 1 for rank in ranks):
        raise RuntimeError(said)
    return [rank.returncode for rank in ranks], "\n".join(lines)


def compared(bench: Bench, case: str, folder: Path, reached: int, said: str = "", whole: Path | None = None) -> Outcome:
    """The finished run against the unbroken one."""
    whole = whole or bench.folder / "whole"
    record = json.loads((folder / "record.json").read_text())
    lost = reached - (record["steps"] - record["timing"]["steps"])
    one, other = (load_file(f / "model.safetensors") for f in (whole, folder))
    losses = [[r.loss for r in read_journal(f / "journal.jsonl")] for f in (whole, folder)]
    if losses[0] == losses[1] and all(np.array_equal(one[name], other[name]) for name in one):
        same = "bits"
    elif len(losses[0]) == len(losses[1]) and np.allclose(*losses, rtol=1e-9, atol=0):
        same = "1e-9"
    else:
        same = "NO"
    return Outcome(case, same, lost, said.replace(f"{bench.folder}/", ""))


def wait_for_step(folder: Path, step: int, ranks: list[subprocess.Popen[str]]) -> int:
    """Until so many steps are logged; the last one that is."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and all(rank.poll() is None for rank in ranks):
        last = last_record(folder / "journal.jsonl") if (folder / "journal.jsonl").exists() else None
        if last and last.step >= step:
            return last.step
        time.sleep(0.002)
    raise RuntimeError(f"step {step} was not reached: " + str(ended(ranks)))


def wait_for_checkpoint(folder: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (folder / "checkpoints" / f"step-{step:08d}" / "done.json").exists():
        time.sleep(0.002)


def kill(ranks: list[subprocess.Popen[str]]) -> None:
    for rank in ranks:
        rank.send_signal(signal.SIGKILL)


def one_killed(bench: Bench, folder: Path) -> Outcome:
    """SIGKILL of rank 1: rank 0 notices and says so."""
    ranks = bench.start(folder, 2)
    wait_for_step(folder, 30, ranks)
    kill(ranks[1:])
    codes, said = ended(ranks)
    assert codes == [75, -signal.SIGKILL] and said.count("a rank was lost") == 1, (codes, said)
    reached = last_record(folder / "journal.jsonl").step  # type: ignore[union-attr]
    finish(bench, folder, 2)
    return compared(bench, "SIGKILL of one rank", folder, reached, said)


def one_frozen(bench: Bench, folder: Path) -> Outcome:
    """SIGSTOP of rank 1, as of a machine that hangs and breaks no connection: rank 0 gives it up after `--timeout`."""
    ranks = bench.start(folder, 2, more=("--timeout", "5"))
    wait_for_step(folder, 30, ranks)
    ranks[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    ranks[0].wait(timeout=120)
    waited = time.monotonic() - began
    kill(ranks[1:])
    codes, said = ended(ranks)
    assert codes[0] == 75 and said.count("a rank was lost") == 1, (codes, said)
    reached = last_record(folder / "journal.jsonl").step  # type: ignore[union-attr]
    finish(bench, folder, 2)
    return compared(bench, "SIGSTOP of one rank", folder, reached, f"{said} (given up after {waited:.0f} s of 5)")


def all_killed(bench: Bench, folder: Path) -> Outcome:
    """SIGKILL of every rank."""
    ranks = bench.start(folder, 2)
    reached = wait_for_step(folder, 30, ranks)
    kill(ranks)
    ended(ranks)
    finish(bench, folder, 2)
    return compared(bench, "SIGKILL of all ranks", folder, reached)


def killed_in_a_write(bench: Bench, folder: Path) -> Outcome:
    """SIGKILL while a checkpoint after the first is half written; tried until it is."""
    while True:
        ranks, aside = bench.start(folder, 2), folder / "checkpoints" / f"step-{3 * EVERY:08d}.tmp"
        wait_for_step(folder, 2 * EVERY, ranks)
        while not (aside.exists() and any(aside.iterdir())) and ranks[0].poll() is None:
            pass
        kill(ranks)
        ended(ranks)
        if aside.exists():
            break
        shutil.rmtree(folder)
    reached = last_record(folder / "journal.jsonl").step  # type: ignore[union-attr]
    finish(bench, folder, 2)
    assert not aside.exists()
    return compared(bench, "SIGKILL in the middle of a checkpoint", folder, reached)


def truncated(bench: Bench, folder: Path) -> Outcome:
    """The newest checkpoint loses half of a file: the one before it is used, and that is said."""
    ranks = bench.start(folder, 2)
    wait_for_checkpoint(folder, 2 * EVERY)
    wait_for_checkpoint(folder, 3 * EVERY)
    kill(ranks)
    ended(ranks)
    reached = last_record(folder / "journal.jsonl").step  # type: ignore[union-attr]
    newest = max((folder / "checkpoints").glob("step-????????"))
    file = next(newest.glob("__1_*"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    said = finish(bench, folder, 2)
    line = next(line for line in said.splitlines() if "missing or damaged" in line)
    assert any(event["kind"] == "damage" for event in read_events(folder / "journal.jsonl"))
    return compared(bench, "newest checkpoint truncated", folder, reached, line)


def other_ranks(bench: Bench, folder: Path) -> Outcome:
    """Begun on two ranks, continued on three, then on one."""
    reached = 0
    for size, until in ((2, 20), (3, 40)):
        ranks = bench.start(folder, size)
        wait_for_step(folder, until, ranks)
        wait_for_checkpoint(folder, until - EVERY)
        kill(ranks)
        ended(ranks)
        reached = last_record(folder / "journal.jsonl").step  # type: ignore[union-attr]
    finish(bench, folder, 1)
    return compared(bench, "2 ranks, then 3, then 1", folder, reached)


def shard_vanishes(bench: Bench, folder: Path) -> Outcome:
    """Files of the data go away: state saved, the file named; they come back, and it goes on."""
    ranks = bench.start(folder, 2)
    wait_for_step(folder, EVERY, ranks)
    gone = bench.folder / "gone"
    shutil.move(bench.folder / "data", gone)
    codes, said = ended(ranks)
    shutil.move(gone, bench.folder / "data")
    assert codes == [2, 2] and said.count("No such file") == 1, (codes, said)
    saved = int(max((folder / "checkpoints").glob("step-????????")).name[-8:])
    finish(bench, folder, 2)
    return compared(bench, "data shard vanishes", folder, saved, said)


def disk_full(bench: Bench, folder: Path) -> Outcome:
    """One checkpoint finds no space; there is room again, and nothing was lost."""
    with small_disk(folder, bench) as (ranks, ballast):
        wait_for_event(folder, "save failed", ranks)
        ballast.unlink()
        codes, said = ended(ranks)
    assert codes == [0, 0], (codes, said)
    return compared(bench, "disk full for a while", folder, 0, said.splitlines()[0])


def disk_stays_full(bench: Bench, folder: Path) -> Outcome:
    """Two in a row find no space: it stops; with room again it goes on from the checkpoint before."""
    with small_disk(folder, bench) as (ranks, ballast):
        codes, said = ended(ranks)
        ballast.unlink()
    assert codes == [2, 2] and "2 checkpoints in a row" in said, (codes, said)
    reached = last_record(folder / "journal.jsonl").step  # type: ignore[union-attr]
    finish(bench, folder, 2)
    return compared(bench, "disk stays full", folder, reached, said.splitlines()[-1])


@contextmanager
def small_disk(folder: Path, bench: Bench) -> Any:
    """A run of two ranks on a disk of its own, which is filled after the first checkpoint. Needs user namespaces."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "disk", str(folder)], check=True)
    place, ballast = folder, folder / ".ballast"
    ranks = bench.start(place, 2)
    wait_for_checkpoint(place, EVERY)
    with suppress(OSError), ballast.open("wb") as file:
        free = shutil.disk_usage(place).free
        file.write(bytes(free - 200_000))
    yield ranks, ballast


def wait_for_event(folder: Path, kind: str, ranks: list[subprocess.Popen[str]]) -> int:
    while ranks[0].poll() is None:
        found = [event for event in read_events(folder / "journal.jsonl") if event["kind"] == kind]
        if found:
            return found[0]["step"]
        time.sleep(0.002)
    raise RuntimeError(f"no {kind}: {ended(ranks)}")


def two_nodes(bench: Bench, folder: Path) -> Outcome:
    """Two machines in the eyes of torchrun (network namespaces, joined by a cable): one dies, the other goes on alone, it
    comes back, and both go on."""
    folder.mkdir()
    long = bench.folder / "long.toml"
    if not long.exists():
        setting = config(bench.folder / "data")
        long.write_text(
            dump_toml(setting.model_copy(update={"budget": setting.budget.model_copy(update={"steps": 600})}))
        )
        finish(bench, bench.folder / "whole-long", 2, long)
    other = network()
    try:
        nodes = [node(long, folder / "run", 1, None), node(long, folder / "run", 2, other.pid)]
        wait_for_step(folder / "run", 60, nodes)
        fell(nodes[1])
        reached = last_record(folder / "run" / "journal.jsonl").step  # type: ignore[union-attr]
        whole = max(int(path.parent.name[-8:]) for path in (folder / "run").glob("checkpoints/step-*/done.json"))
        alone = wait_for_world(folder / "run", 1, nodes[:1])
        nodes[1] = node(long, folder / "run", 2, other.pid)
        again = wait_for_world(folder / "run", 2, nodes)
        codes, said = ended(nodes)
    finally:
        other.kill()
    assert codes == [0, 0], (codes, said)
    outcome = compared(bench, "a node dies and comes back", folder / "run", 0, said, bench.folder / "whole-long")
    return Outcome(outcome.case, outcome.same, reached - whole, f"alone from step {alone}, two again from step {again}")


def network() -> subprocess.Popen[bytes]:
    """A second network namespace with a cable to ours: 10.9.0.1 here, 10.9.0.2 there. It lives as long as the process."""
    other = subprocess.Popen(["unshare", "-n", "sleep", "3600"])
    time.sleep(0.5)
    there = ["nsenter", "-t", str(other.pid), "-n"]
    for command in (
        ["ip", "link", "set", "lo", "up"],
        ["ip", "link", "add", "here", "type", "veth", "peer", "name", "there", "netns", str(other.pid)],
        ["ip", "addr", "add", "10.9.0.1/24", "dev", "here"],
        ["ip", "link", "set", "here", "up"],
        [*there, "ip", "link", "set", "lo", "up"],
        [*there, "ip", "addr", "add", "10.9.0.2/24", "dev", "there"],
        [*there, "ip", "link", "set", "there", "up"],
    ):
        subprocess.run(command, check=True)
    return other


def node(recipe: Path, folder: Path, number: int, namespace: int | None) -> subprocess.Popen[str]:
    """torchrun on one of the machines, a rank each."""
    enter = [] if namespace is None else ["nsenter", "-t", str(namespace), "-n"]
    command = [
        *enter, sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1",
        "--max-restarts", "9", "--rdzv-backend", "c10d", "--rdzv-id", "faults", "--rdzv-endpoint", "10.9.0.1:29477",
        "--rdzv-conf", f"last_call_timeout=3,is_host={int(number == 1)}", "--local-addr", f"10.9.0.{number}",
        "--monitor-interval", "0.5", "-m", "redraft", "train", str(recipe), "--into", str(folder), "--json",
    ]  # fmt: skip
    # Without the second, torch 2.13 tells a machine that comes back no address: the survivor thinks that it has told it.
    settings = {
        "GLOO_SOCKET_IFNAME": "here" if namespace is None else "there",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    return subprocess.Popen(
        command, env=os.environ | settings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def fell(machine: subprocess.Popen[str]) -> None:
    """SIGKILL of everything on it."""
    family = [machine.pid]
    for pid in family:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            family += [int(child) for child in task.read_text().split()]
    for pid in family:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    machine.wait()


def wait_for_world(folder: Path, size: int, nodes: list[subprocess.Popen[str]]) -> int:
    """Until a new checkpoint was written by so many ranks; its step."""
    before, deadline = set(folder.glob("checkpoints/step-*")), time.monotonic() + 120
    while time.monotonic() < deadline and all(node.poll() is None for node in nodes):
        for path in set(folder.glob("checkpoints/step-*[0-9]")) - before:
            with suppress(FileNotFoundError):
                done = json.loads((path / "done.json").read_text())
                if done["ranks"] == size:
                    return int(done["step"])
        time.sleep(0.01)
    raise RuntimeError(f"{size} ranks wrote no checkpoint: " + str(ended(nodes)))


CASES: dict[str, Callable[[Bench, Path], Outcome]] = {
    f.__name__: f
    for f in (
        one_killed, one_frozen, all_killed, killed_in_a_write, truncated, other_ranks, shard_vanishes, disk_full,
        disk_stays_full, two_nodes,
    )
}  # fmt: skip
APART = ("disk_full", "disk_stays_full", "two_nodes")  # need namespaces of their own


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--trials", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if any(name in APART for name in args.only) and "FAULTS_INSIDE" not in os.environ:
        os.environ["FAULTS_INSIDE"] = "1"  # mounts and networks of our own need no rights outside
        os.execvp("unshare", ["unshare", "-rmn", sys.executable, *sys.argv])
    if "FAULTS_INSIDE" in os.environ:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        outcomes = measured(Bench(Path(folder) / "bench"), args.only, args.trials)
    print(table(outcomes))
    if args.json:
        args.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")


def measured(bench: Bench, names: list[str], trials: int) -> list[Outcome]:
    outcomes = []
    for name in names:
        for trial in range(trials):
            outcomes.append(CASES[name](bench, bench.folder / f"{name}{trial}"))
            print(outcomes[-1], file=sys.stderr, flush=True)
    return outcomes


def table(outcomes: list[Outcome]) -> str:
    rows = [
        "| fault | trials | same bits | same to 1e-9 | not the same | steps trained again, most |",
        "| --- | " + "---: | " * 5,
    ]
    for case in dict.fromkeys(outcome.case for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.case == case]
        counts = [sum(outcome.same == same for outcome in own) for same in ("bits", "1e-9", "NO")]
        rows.append(f"| {case} | {len(own)} | {' | '.join(map(str, counts))} | {max(o.lost for o in own)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
