"""What every benchmark here shares: side-by-side timings, peak memory of a fresh process, facts about the machine.

Speed is a ratio measured side by side: the cases take turns, A B A B, so that a busy neighbour slows both; each case's
time is the median of its turns. Memory is measured in a process of its own, for peaks in one process hide each other.
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

PACKAGES = ("torch", "transformers", "redraft")


def arguments(description: str) -> ArgumentParser:
    parser = ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="few repeats: checks that it runs, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each case")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    return parser


def parsed(parser: ArgumentParser) -> Namespace:
    args = parser.parse_args()
    if args.quick:
        args.repeats = 2
    torch.set_num_threads(args.threads)
    return args


def take_turns(cases: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each case, turn by turn, after one unmeasured turn each."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(turns) for name, turns in seconds.items()}


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """How many times as fast: the median over turns of the ratio within a turn, where both met the same neighbours."""
    return statistics.median(s / f for s, f in zip(seconds[slow], seconds[fast], strict=True))


def ratio_of_best(seconds: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """The same of each case's fastest turn: what a quiet machine would say. `ratio` should not be far above it."""
    return min(seconds[slow]) / min(seconds[fast])


def product(dtype: torch.dtype, size: int = 2048) -> Callable[[], Tensor]:
    """A large square matrix product: what the machine can do at best in `dtype`, 2 size^3 FLOPs."""
    a = torch.randn(size, size).to(dtype)
    return lambda: a @ a


def peak_bytes(program: str, *words: str) -> int:
    """Peak memory above the idle process of `program --peak words...`, run afresh. It must end in `report_peak`."""
    command = [sys.executable, program, "--peak", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def report_peak(run: Callable[[], Any]) -> None:
    """Print the peak resident bytes of `run()` above the process as it is now: everything imported, nothing built."""
    idle = _status("VmRSS")
    run()
    # Not ru_maxrss: a child process inherits its parent's.
    print(_status("VmHWM") - idle)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def machine() -> dict[str, Any]:
    models = [li for li in Path("/proc/cpuinfo").read_text().splitlines() if li.startswith("model name")]
    return {
        "cpu": models[0].partition(": ")[2] if models else platform.processor(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
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
