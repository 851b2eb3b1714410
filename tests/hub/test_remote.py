"""The hub, played by a server on this machine: what goes up comes down the same, and without a network the cache serves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import redraft
from redraft.cli import main
from redraft.errors import UserError
from redraft.hub.export.export import export
from redraft.hub.model import Model
from redraft.hub.remote import is_hub_name, push
from tests.hub.hub_server import Hub
from tests.hub.models import folder
from tests.rounding import CLOSE, in_float64

pytest.importorskip("huggingface_hub")

LOAD = """
import json, sys, torch, redraft
model = redraft.load(sys.argv[1], "cpu")
model.network.double().compute = torch.float64
print(json.dumps(model.log_p(torch.arange(12)[None])[0, :, :3].tolist()))
"""

FETCH = """
import json, sys
from redraft.errors import UserError
from redraft.hub.remote import fetch
try:
    fetch(sys.argv[1])
except UserError as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, with files that are nobody else's business."""
    path = folder(tmp_path_factory.mktemp("remote") / "run", "ar", "llama", {}, {"loss": 2.0, "loss_kind": "exact"})
    for name in ("journal.jsonl", "config.toml", "record.json"):
        (path / name).write_text("private")
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf")


def at(home: Path, endpoint: str, *command: str, offline: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs Python with a hub at `endpoint`, which the library reads when it is imported."""
    environment = {
        **os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_TOKEN": "hf_test", "NO_PROXY": "127.0.0.1",
        "HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120, cwd=home, check=False
    )


def told(model: Model) -> Tensor:
    """What LOAD prints."""
    in_float64(model.network)
    return model.log_p(torch.arange(12)[None])[0, :, :3]


def test_what_goes_up_comes_down_the_same_and_stays_without_a_network(hub: Hub, run: Path, home: Path) -> None:
    done = at(home, hub.url, "-m", "redraft", "push", str(run), "someone/first", "--private", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["url"].endswith("someone/first")
    assert hub.private["someone/first"]
    assert set(hub.repositories["someone/first"]) == {
        "README.md", "bytes.json", "config.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip
    card = hub.repositories["someone/first"]["README.md"].decode()
    assert "2.0000 nats/token (exact)" in card and 'redraft.load("someone/first")' in card
    hub.repositories["someone/first"]["evil.py"] = b"raise SystemExit"

    expected = told(redraft.load(run, "cpu"))

    def same(printed: str) -> bool:
        """In float64: another process may have other threads, and add in another order."""
        return bool(torch.allclose(torch.tensor(json.loads(printed), dtype=torch.float64), expected, **CLOSE))

    fetched = at(home, hub.url, "-c", LOAD, "someone/first")
    assert same(fetched.stdout), fetched.stderr
    assert not list(home.rglob("evil.py"))
    before = len(hub.asked)
    assert same(at(home, hub.url, "-c", LOAD, "someone/first", offline=True).stdout)
    assert len(hub.asked) == before
    nobody = at(home, "http://127.0.0.1:9", "-c", LOAD, "someone/first")
    assert same(nobody.stdout), nobody.stderr


def test_what_is_not_there_is_one_line(hub: Hub, home: Path) -> None:
    for endpoint, offline, why in (
        (hub.url, False, f"cannot fetch some/other: {hub.url} has no such model, or HF_TOKEN may not see it"),
        (hub.url, True, "cannot fetch some/other: HF_HUB_OFFLINE is set, and the local cache does not hold it"),
        (
            "http://127.0.0.1:9",
            False,
            "cannot fetch some/other: http://127.0.0.1:9 cannot be reached, and the local cache",
        ),
    ):
        done = at(home, endpoint, "-c", FETCH, "some/other", offline=offline)
        assert json.loads(done.stdout).startswith(why), done.stderr


def test_a_push_without_a_network_is_one_line(run: Path, home: Path) -> None:
    done = at(home, "http://127.0.0.1:9", "-m", "redraft", "push", str(run), "someone/first")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("redraft: cannot push to someone/first")


def test_a_path_is_no_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a folder of the owner's name is, a path was meant: a mistyped run asks no network."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert is_hub_name("someone/first") and is_hub_name("a-b/c.d_e")
    for spec in ("first", "runs/frist", "/a/b", "a/b/c", "./a", "../a", "~/a", "a/", "/a", "a b/c"):
        assert not is_hub_name(spec)
    with pytest.raises(UserError, match="no such model folder: runs/frist"):
        redraft.load("runs/frist")


def test_only_finished_models_and_full_names_are_pushed(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no finished model"):
        push(tmp_path, "someone/first")
    with pytest.raises(UserError, match="'first' is no name on the hub: give owner/name"):
        push(export(run, "native", tmp_path / "out"), "first")


def test_pushing_a_folder_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["push", str(tmp_path / "none"), "someone/first"])
    assert "no such model folder" in capsys.readouterr().err
