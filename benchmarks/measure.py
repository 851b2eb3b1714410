"""What every benchmark here shares: side-by-side timings, peak memory of a fresh process, facts about the machine.

Speed is a ratio measured side by side: the cases take turns, A B A B, so that a busy neighbour slows both; each case's
time is the median of its turns. Memory is measured in a process of its own, for peaks in one process hide each other.

`--device cuda` puts networks and tensors on an accelerator: the clock is read when it has done its work, and memory is its
allocator's.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redraft.errors import MISTAKE, UserError
from redraft.evaluation.compute import wait
from redraft.evaluation.generation.memory import forget_peak
from redraft.network.device import device_name, pick_device

CPU = torch.device("cpu")
PACKAGES = ("torch", "transformers", "redraft")


def arguments(description: str) -> ArgumentParser:
    parser = ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="few repeats: checks that it runs, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each case")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    device_argument(parser)
    return parser


def device_argument(parser: ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="where networks compute: cpu, cuda, cuda:1, auto")


def placed(args: Namespace) -> Namespace:
    """`args.device` as a torch device; for one that is not there one line, exit status 2."""
    try:
        args.device = pick_device(args.device)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(MISTAKE)
    return args


def parsed(parser: ArgumentParser) -> Namespace:
    args = parser.parse_args()
    if args.quick:
        args.repeats = 2
    torch.set_num_threads(args.threads)
    return placed(args)


def take_turns(
    cases: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device = CPU
) -> dict[str, list[float]]:
    """Seconds of each case, turn by turn, after one unmeasured turn each. `device`: whose work is waited for."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, run in cases.items():
            spent = clocked(run, device)
            if turn:
                seconds[name].append(spent)
    return seconds


def clocked(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, from an idle device to an idle device."""
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(turns) for name, turns in seconds.items()}


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """How many times as fast: the median over turns of the ratio within a turn, where both met the same neighbours."""
    return statistics.median(s / f for s, f in zip(seconds[slow], seconds[fast], strict=True))


def ratio_of_best(seconds: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """The same of each case's fastest turn: what a quiet machine would say. `ratio` should not be far above it."""
    return min(seconds[slow]) / min(seconds[fast])


def product(dtype: torch.dtype, size: int = 2048, device: torch.device = CPU) -> Callable[[], Tensor]:
    """A large square matrix product: what the machine can do at best in `dtype`, 2 size^3 FLOPs."""
    a = torch.randn(size, size, device=device).to(dtype)
    return lambda: a @ a


def peak_bytes(program: str, *words: str) -> int:
    """Peak memory above the idle process of `program --peak words...`, run afresh. It must end in `report_peak`."""
    command = [sys.executable, program, "--peak", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def peak_words(args: Namespace) -> list[str]:
    """What the fresh process of `peak_bytes` has to be told."""
    return ["--threads", str(args.threads), "--device", str(args.device)]


def report_peak(run: Callable[[], Any], device: torch.device = CPU) -> None:
    """Print the peak bytes of `run()` above the process as it is now, everything imported, nothing built: resident ones, or on
    an accelerator those that its allocator gave out."""
    if device.type != "cpu":
        print(allocated_peak(run, device))
        return
    idle = _status("VmRSS")
    run()
    # Not ru_maxrss: a child process inherits its parent's.
    print(_status("VmHWM") - idle)


def allocated_peak(run: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that an accelerator's allocator had given out during `run()`, above what it has now."""
    idle = torch.accelerator.memory_allocated(device)
    forget_peak(device)
    run()
    wait(device)
    return int(torch.accelerator.max_memory_allocated(device) - idle)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def machine(device: torch.device = CPU) -> dict[str, Any]:
    """The processor, what runs on it and, where that does the work, the accelerator."""
    models = [li for li in Path("/proc/cpuinfo").read_text().splitlines() if li.startswith("model name")]
    return {
        "cpu": models[0].partition(": ")[2] if models else platform.processor(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        **({} if device.type == "cpu" else _accelerator(device)),
    }


def _accelerator(device: torch.device) -> dict[str, Any]:
    free, total = torch.get_device_module(device).mem_get_info(device)
    return {
        "device": str(device),
        "gpu": device_name(device),
        "memory": total,
        "free": free,
        "cuda": torch.version.cuda,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return "from source"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Plain text; the first column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [[row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))] for row in [head, *rows]]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def publish(result: dict[str, Any], text: str, file: Path | None) -> None:
    print(f"{result['machine']}\n\n{text}")
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n")
