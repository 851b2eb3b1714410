"""benchmarks/gpu.py: late stages end, failures are told, the table stays short, and its laws can fail."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import gpu
from gpu_stages import laws, plan
from gpu_stages.networks import Steps, how, optimizer_of, random_network
from gpu_stages.record import Case, Cases, Missed, Report, Stage
from gpu_stages.table import FAILURES, LINES, table
from gpu_stages.waits import waits
from gpu_stages.wheels import modules, unpack

from redraft.errors import UserError
from redraft.registry import FAMILIES, SAMPLERS

CPU, SCRIPT = torch.device("cpu"), Path(gpu.__file__)


def report(folder: Path) -> Report:
    fresh = Report(folder / "gpu.json", {"device_name": "x"})
    fresh.write()
    return fresh


def test_every_case_is_in_the_file_before_the_next_begins(tmp_path: Path) -> None:
    def refused() -> dict[str, Any]:
        raise UserError("not here")

    def missed() -> dict[str, Any]:
        assert [case.name for case in Report.read(tmp_path / "gpu.json").stages["1"].cases] == ["good", "refused"]
        raise Missed("off by 3", off=3)

    cases = Cases(report(tmp_path), "1", time.time() + 60)
    assert cases.run("good", lambda x: {"x": x}, 2) == {"x": 2}
    cases.run("refused", refused)
    cases.run("missed", missed)
    cases.run("broken", lambda: 1 / 0)
    cases.run("late", dict, needs=1000)
    found = Report.read(tmp_path / "gpu.json").stages["1"]
    assert [case.state for case in found.cases] == ["pass", "refused", "fail", "fail", "skipped"]
    assert found.cases[2].numbers == {"off": 3}
    assert found.cases[3].error.startswith("ZeroDivisionError: division by zero (test_gpu_script.py:")
    assert found.state == "running" and not list(tmp_path.glob("*.tmp-*"))
    cases.done()
    assert Report.read(tmp_path / "gpu.json").stages["1"].state == "done"


STAGE = """
import sys, time, subprocess
from pathlib import Path
print("what it said last")
if sys.argv[1] == "sleeps":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path(sys.argv[0]).with_name("child").write_text(str(child.pid))
    time.sleep(60)
sys.exit(3)
"""


@pytest.mark.parametrize(("name", "state", "error"), [("sleeps", "late", ""), ("dies", "died", "what it said last")])
def test_a_stage_that_hangs_or_dies_is_ended_and_told(
    name: str, state: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpu_stages").mkdir()
    (tmp_path / "gpu_stages" / "__main__.py").write_text(STAGE)
    monkeypatch.setattr(gpu, "LEAST", 0.1)
    args, path = Namespace(device="cpu", text="t", tokenizer="b", quick=True), report(tmp_path).path
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    began = time.time()
    gpu.carry_out(name, began + 3, args, path, environment, tmp_path / "log")
    stage = Report.read(path).stages[name]
    assert (stage.state, stage.error) == (state, error) and time.time() - began < 30
    if name == "sleeps":  # with what it had started
        assert ends(int((tmp_path / "gpu_stages" / "child").read_text()))


def ends(pid: int, seconds: float = 10) -> bool:
    """Whether a process is gone within so long: one that was killed may be seen running for a moment still."""
    late = time.monotonic() + seconds
    while time.monotonic() < late:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":  # nobody has asked yet how it ended
            return True
        time.sleep(0.02)
    return False


def test_a_stage_that_would_begin_too_late_is_skipped(tmp_path: Path) -> None:
    gpu.carry_out("3", time.time() + 1, Namespace(), report(tmp_path).path, {}, tmp_path / "log")
    assert Report.read(tmp_path / "gpu.json").stages["3"].state == "skipped"


def test_each_stage_has_its_own_time_whichever_are_chosen() -> None:
    for scale in (plan.GPU, plan.QUICK):
        assert plan.ends(scale, list(scale.ends)) == scale.ends
        assert list(scale.ends.values()) == sorted(scale.ends.values())
    assert plan.GPU.ends["4"] <= 470 and plan.QUICK.ends["4"] < 300
    assert plan.ends(plan.GPU, ["1", "3"]) == {"1": 90, "3": 210}


def step_numbers() -> dict[str, Any]:
    held = {"allocated": 3e10, "reserved": 4e10, "planned": 5e10}
    rates = {"tokens_per_second": 1e5, "flops_per_second": 3e14, "share": 0.5, "mfu": 0.3}
    return {**rates, **held, "parameters": 10**9, "busy": 0.9, "top": [("kernel" * 9, 0.5)] * 6}


def full(folder: Path) -> Report:
    """As long a report as there can be, and many failures."""
    whole = report(folder)
    product = {"flops_per_second": 6e14}
    names = [f"matmul {i}" for i in range(10)] + [f"attention {i} masked" for i in range(9)]
    ceilings = [Case("copy", "pass", 1, {"bytes_per_second": 2e12}), *(Case(n, "pass", 1, product) for n in names)]
    waiting = {"training": 2, "sampling": 1.5, "training, where": {f"families/base.py:{i}": i for i in range(9)}}
    found = [Case(f"waits of {name}", "pass", 1, waiting) for name in FAMILIES]
    found += [Case(f"case {i}", "fail", 1, error="RuntimeError: " + "long " * 80) for i in range(40)]
    sampled = {"tokens_per_second": 1e5, "latency": 1.0, "rows": 1024, "batch": 64, "busy": 0.5}
    ways = ["8 steps", "32 steps", "128 steps", "a token a call", "128 steps by graphs"]
    rows = [(family, batch) for family in plan.FAMILIES for batch in (1, 8, 64)]
    batches = [Case(f"{f} x{b}, {w}", "pass", 1, sampled) for f, b in [*rows, ("ar", 256)] for w in ways]
    timed = [Case(f"{f} {w}", "pass", 1, step_numbers()) for f in plan.FAMILIES for w in ("eager", "compiled")]
    parts = {"0": ceilings, "1": found, "2a": timed, "2b": timed[:6], "3": batches, "4": []}
    whole.stages = {name: Stage(name, "done", 60, cases) for name, cases in parts.items()}
    return whole


def test_the_table_is_at_most_sixty_lines_and_hides_no_failure(tmp_path: Path) -> None:
    lines = table(full(tmp_path))
    assert len(lines) <= LINES == 60
    told = [line for line in lines if line.startswith("FAIL")]
    assert len(told) == FAILURES + 1 and told[0].startswith("FAIL stage 1, case 0: RuntimeError: long")
    assert told[-1] == f"FAIL {40 - FAILURES} more: see the file"
    whole = full(tmp_path)
    whole.stages["1"].cases = [case for case in whole.stages["1"].cases if case.state == "pass"]
    assert not table(whole)[-1].startswith("..."), "without failures all of it is shown"


def test_wheels_are_unpacked_where_something_is_lacking(tmp_path: Path) -> None:
    for name, module in (("here", "json"), ("lacking", "nobody_has_this")):
        with zipfile.ZipFile(tmp_path / f"{name}-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{module}/__init__.py", "")
            wheel.writestr(f"{name}-1.dist-info/METADATA", "")
    assert modules(tmp_path / "lacking-1-py3-none-any.whl") == {"nobody_has_this"}
    assert unpack(tmp_path, tmp_path / "into") == ["lacking-1-py3-none-any.whl"]
    assert (tmp_path / "into" / "nobody_has_this" / "__init__.py").exists()


def test_the_laws_are_of_everything_that_is_registered() -> None:
    assert {name for name, _ in laws.trained()} == set(FAMILIES)
    objectives = {(name, options.get("objective")) for name, options in laws.trained()}
    assert {("duo", "curriculum"), ("duo", "distillation"), ("mdlm", "nelbo"), ("bd3lm", "nelbo")} <= objectives
    pairs = set(laws.pairs())
    assert {name for name, _ in pairs} == set(FAMILIES) and {sampler for _, sampler in pairs} == set(SAMPLERS)


def test_a_device_that_computes_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight off by a thousandth stands for a device that is wrong."""
    assert laws.same_loss("mdlm", {}, "float32", CPU)["loss"] < 1e-5
    right = laws.network

    def wrong(kind: str, device: torch.device) -> Any:
        made = right(kind, device)
        if device != CPU:
            made.output.weight.data *= 1.01
        return made

    monkeypatch.setattr(laws, "network", wrong)
    elsewhere = torch.device("cpu", 0)
    assert elsewhere != CPU
    with pytest.raises(Missed, match="is off by"):
        laws.same_loss("mdlm", {}, "float64", elsewhere)
    with pytest.raises(Missed, match="of the tokens differ"):
        laws.same_tokens("ar", "left_to_right", elsewhere)


def test_waits_are_named_by_file_and_line() -> None:
    from redraft.network.device import pick_device

    def reads() -> None:
        pick_device("cpu")
        laws.same_loss("ar", {}, "float32", CPU)

    assert all(":" in place or place == "the backward pass" for place in waits(reads, CPU)) and waits(reads, CPU)


def test_steps_of_several_families_share_parameters_and_optimiser() -> None:
    """A billion weights are made once: each family's steps change the same ones."""
    network = random_network(laws.SHAPE, CPU, torch.float32)
    before, optimizer = network.output.weight.detach().clone(), optimizer_of(network)
    for family in plan.FAMILIES:
        trained = how(CPU, 4, accumulate=2, checkpointing="blocks" if family == "mdlm" else "none")
        run = Steps(network, optimizer, family, trained, 16)
        assert run.network.output.weight is network.output.weight
        assert float(run()) > 0 and not torch.equal(before, network.output.weight)
        before = network.output.weight.detach().clone()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--device", "cuda"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("device 'cuda' is not there")
