"""Stage 4: the command line from end to end, as a user runs it: train, be killed, go on, score, sample, mistake a device."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpu_stages.plan import Scale
from gpu_stages.record import Cases, Late, Missed
from redraft.training.journal import last_record, read_journal

NOWHERE = "cuda:99"


@dataclass(frozen=True)
class Run:
    """A run in `into`, by `words` that train it."""

    into: Path
    words: list[str]
    steps: int
    device: torch.device
    text: str

    def train(self) -> list[str]:
        return ["train", "--into", str(self.into), *self.words, "--json"]


def run(cases: Cases, device: torch.device, size: Scale, text: str, tokenizer: str) -> None:
    name, rows, length, steps = size.run
    compile = str(device.type != "cpu").lower()
    words = [
        "--family", "mdlm", "--size", name, "--data", text, "--tokenizer", tokenizer, "--length", str(length),
        "--steps", str(steps), "--batch", str(rows), "--device", str(device), "--train.compile", compile,
        "--train.save_every", str(max(10, steps // 5)), "--evaluate.rows", "64", "--evaluate.draws", "2",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        of = Run(Path(folder) / "run", words, steps, device, text)
        cases.run("train, killed", killed, of, cases, needs=5)
        cases.run("train, continued", continued, of, cases, needs=5)
        cases.run("eval", scored, of, cases, needs=3)
        cases.run("sample", written, of, cases, needs=3)
        cases.run("a device that is not there", refused, of, cases, needs=3)


def told(words: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "redraft", *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, seconds), check=False)
    except subprocess.TimeoutExpired:
        raise Late(f"redraft {words[0]} was not done in the {seconds:.0f} s that were left") from None


def redraft(words: list[str], seconds: float) -> dict[str, Any]:
    """What a command answers, as JSON. `Missed` where it fails."""
    done = told(words, seconds)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise Missed(f"redraft {words[0]} ended with status {done.returncode}: {said[:300]}")
    return dict(json.loads(done.stdout))


def killed(of: Run, cases: Cases) -> dict[str, Any]:
    """SIGKILL once there is a state to go on from and a step beyond it."""
    command, end = [sys.executable, "-m", "redraft", *of.train()], time.time() + cases.left
    began = time.time()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not _under_way(of.into):
            if time.time() > end:
                process.kill()
                raise Late("nothing was saved in the time there was")
            time.sleep(0.05)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        assert process.stderr is not None
        said = process.stderr.read()
    if process.returncode not in (0, -signal.SIGKILL):
        raise Missed(f"redraft train ended with status {process.returncode}: {(said.strip().splitlines() or [''])[-1]}")
    last = last_record(of.into / "journal.jsonl")
    return {"step": last.step if last else 0, "seconds_to_the_kill": time.time() - began}


def _under_way(into: Path) -> bool:
    """Whether something is saved that a continued run can begin with."""
    saved, journal = (into / "state.safetensors").exists(), into / "journal.jsonl"
    return saved and journal.exists() and last_record(journal) is not None


def continued(of: Run, cases: Cases) -> dict[str, Any]:
    """The same command ends the run: every step is in the journal once, and the record says where it was computed."""
    record = redraft(of.train(), cases.left)
    steps = [entry.step for entry in read_journal(of.into / "journal.jsonl")]
    numbers = {key: record[key] for key in ("loss", "device", "device_name", "precision", "compiled", "steps")}
    numbers |= {"tokens_per_second": record["timing"]["tokens_per_second"], "steps_again": record["timing"]["steps"]}
    if steps != sorted(set(steps)) or steps[-1] != of.steps or record["steps"] != of.steps:
        raise Missed(f"the journal's steps are {steps}, the last should be {of.steps}", **numbers)
    if not math.isfinite(record["loss"]) or torch.device(record["device"]).type != of.device.type:
        raise Missed(f"loss {record['loss']} on {record['device']}", **numbers)
    return numbers


def scored(of: Run, cases: Cases) -> dict[str, Any]:
    """The bound that training measured, on more windows, to three of its errors and the formats' rounding."""
    words = ["eval", str(of.into), "--rows", "64", "--draws", "2", "--device", str(of.device), "--json"]
    found = redraft([*words, "--precision", "bfloat16"], cases.left)
    record = json.loads((of.into / "record.json").read_text())
    numbers = {
        "nats": found["nats"],
        "loss": record["loss"],
        "device": found["device"],
        "precision": found["precision"],
    }
    error = 3 * math.hypot(found["monte_carlo_error"] or 0.0, record["loss_se"] or 0.0) + 0.01 * record["loss"]
    if abs(found["nats"] - record["loss"]) > error:
        raise Missed(
            f"eval says {found['nats']:.4f} nats/token, training {record['loss']:.4f} (within {error:.4f})", **numbers
        )
    return numbers


def written(of: Run, cases: Cases) -> dict[str, Any]:
    words = ["sample", str(of.into), "-n", "4", "--steps", "16", "--device", str(of.device), "--precision", "bfloat16"]
    found = redraft([*words, "--json"], cases.left)
    if len(found["texts"]) != 4 or found["precision"] != "bfloat16":
        raise Missed(f"{len(found['texts'])} texts in {found['precision']}")
    return {"tokens_per_second": found["new_tokens"] / found["seconds"], "text": found["texts"][0][:200]}


def refused(of: Run, cases: Cases) -> dict[str, Any]:
    done = told(["sample", str(of.into), "--device", NOWHERE], cases.left)
    said = done.stderr.strip().splitlines()
    if done.returncode != 2 or len(said) != 1:
        raise Missed(f"status {done.returncode}, {len(said)} lines: {said[-1:]}")
    return {"said": said[0]}
