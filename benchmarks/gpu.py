"""What redraft does on a GPU machine, in eight minutes: is it right, how fast is it, does the command line work there.

    python benchmarks/gpu.py --device cuda --wheels WHEELS --text books --json gpu.json
    python benchmarks/gpu.py --device cpu --quick                 a rehearsal of every stage: under five minutes on two cores

  0   ceilings: copy, matrix products (the step's own shapes too), attention by backend
  1   laws: losses, gradients, bounds and samples as on the CPU, for every family, objective and sampler; host waits; runs
      twice, continued, compiled, as CUDA graphs
  2a  a training step of 170M, eager and compiled     2b  of 1.7B, with blocks checkpointed too; memory beside the plan
  3   sampling: families, steps, batches              4   the command line: train, kill, go on, score, sample
  5   the table

Nothing is installed and nothing reached for: stages run on src/ beside this file and, of the wheels in --wheels, those that
cannot be imported here (pydantic and its like), unpacked into a temporary folder. Each stage is a process with a deadline of
its own; one that is late is ended, and one that would begin too late is skipped. The JSON is whole after every case.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from gpu_stages.plan import LEAST, ends, scale
from gpu_stages.record import Report, Stage
from gpu_stages.table import table
from gpu_stages.wheels import unpack

HERE = Path(__file__).resolve().parent
GRACE = 2.0  # seconds between asking a late stage to end and ending it
MISTAKE = 2


def main(args: Namespace) -> int:
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        unpacked = unpack(args.wheels, Path(folder) / "wheels") if args.wheels else []
        paths = [HERE.parent / "src", HERE, Path(folder) / "wheels"]
        sys.path[:0] = [str(path) for path in paths]
        facts = here(args.device)
        if isinstance(facts, str):
            print(facts, file=sys.stderr)
            return MISTAKE
        report = Report(args.json or Path(folder) / "gpu.json", facts | {"wheels": unpacked, "quick": args.quick})
        report.path.parent.mkdir(parents=True, exist_ok=True)
        report.write()
        known = [*map(str, paths), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(known), "REDRAFT_CACHE": f"{folder}/cache"}
        for stage, end in ends(scale(args.quick), args.stages.split(",")).items():
            carry_out(stage, began + end * args.slower, args, report.path, environment, Path(folder) / "log")
        return told(report.path, time.time() - began)


def here(device: str) -> dict[str, str] | str:
    """What the device is; or, in one line, why there is none, or what this machine lacks."""
    try:
        import torch

        import redraft.config  # noqa: F401  (pydantic and tomli_w: what a machine lacks first)
        from redraft.errors import UserError
        from redraft.network.device import accelerator, device_name, pick_device
    except ImportError as error:
        return f"this machine lacks {error.name}: give a folder of wheels that hold it by --wheels"
    try:
        there = accelerator() if device == "auto" else None
        place = there or pick_device(device)
    except UserError as error:
        return str(error)
    return {"device": str(place), "device_name": device_name(place), "torch": torch.__version__}


def carry_out(stage: str, end: float, args: Namespace, path: Path, environment: dict[str, str], log: Path) -> None:
    """One stage in a process of its own, ended when it is late; what it left is in the file, what it printed in the log."""
    if end - time.time() < LEAST:
        _close(path, stage, "skipped")
        return
    words = ["--json", str(path), "--deadline", str(end), "--device", args.device, "--text", args.text]
    words += ["--tokenizer", args.tokenizer, *["--quick"] * args.quick]
    command = [sys.executable, "-m", "gpu_stages", stage, *words]
    how: dict[str, Any] = {"env": environment, "start_new_session": True, "stderr": subprocess.STDOUT}
    with log.open("w") as out, subprocess.Popen(command, stdout=out, **how) as process:
        try:
            status = process.wait(max(0.1, end - time.time() + GRACE))
            state = "done" if status == 0 else "died"
        except subprocess.TimeoutExpired:
            _end(process)
            state = "late"
    _close(path, stage, state, log.read_text(errors="replace"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """With all that it started: they are a session of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _close(path: Path, name: str, state: str, printed: str = "") -> None:
    report = Report.read(path)
    stage = report.stages.setdefault(name, Stage(name))
    stage.error = (printed.strip().splitlines() or [""])[-1] if state == "died" else ""
    stage.state = "done" if stage.state == "done" and state == "late" else state  # it was late to leave only
    report.write()
    failed = [f"{case.name}: {case.error}" for case in stage.cases if case.state == "fail"]
    told = [f"stage {name}: {stage.state}, {len(stage.cases)} cases, {len(failed)} FAIL, {stage.seconds:.0f} s"]
    print("\n".join([*told, *failed[:5], *[stage.error] * bool(stage.error)]), flush=True)


def told(path: Path, seconds: float) -> int:
    """Stage 5. The status is 1 where a case failed or a stage died."""
    report = Report.read(path)
    report.facts["seconds"] = seconds
    report.write()
    print("\n".join(["", *table(report)]), flush=True)
    bad = any(s.state == "died" or any(case.state == "fail" for case in s.cases) for s in report.stages.values())
    return int(bad)


def parsed() -> Namespace:
    parser = ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, cpu; auto: an accelerator where there is one")
    parser.add_argument("--quick", action="store_true", help="small cases: does every stage run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also keep the numbers here")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="of packages that this machine may lack")
    parser.add_argument("--text", default="stdlib", help="what stage 4 trains on: files, a folder, or stdlib")
    parser.add_argument("--tokenizer", default="bytes", help="of that text")
    parser.add_argument("--stages", default="0,1,2a,2b,3,4", help="some of them")
    parser.add_argument("--slower", type=float, default=1.0, help="so many times the time for every stage")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main(parsed()))
