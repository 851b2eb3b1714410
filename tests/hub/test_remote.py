"""The hub, played by a server on this machine: what goes up comes down the same, and without a network the cache serves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import redraft
from redraft.cli import main
from redraft.errors import UserError
from redraft.hub.export.export import export
from redraft.hub.remote import is_hub_name, push
from tests.hub.hub_client import load, refused, told
from tests.hub.hub_server import Hub
from tests.hub.models import folder
from tests.processes import ended, start
from tests.rounding import CLOSE

pytest.importorskip("huggingface_hub")


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


def at(home: Path, endpoint: str, work: Callable[..., Any], *arguments: Any, offline: bool = False) -> tuple[int, str]:
    """The status and words of a process with a hub at `endpoint`, which the library reads when it is imported."""
    environment = {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_TOKEN": "hf_test", "NO_PROXY": "127.0.0.1",
        "HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    said = home / "said"
    said.unlink(missing_ok=True)
    status = ended(start(work, *arguments, said=said, **environment))
    return status, said.read_text()


def test_what_goes_up_comes_down_the_same_and_stays_without_a_network(hub: Hub, run: Path, home: Path) -> None:
    status, words = at(home, hub.url, main, ["push", str(run), "someone/first", "--private", "--json"])
    assert status == 0, words
    assert json.loads(words)["url"].endswith("someone/first")
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

    assert same(at(home, hub.url, load, "someone/first")[1])
    assert not list(home.rglob("evil.py"))
    before = len(hub.asked)
    assert same(at(home, hub.url, load, "someone/first", offline=True)[1])
    assert len(hub.asked) == before
    assert same(at(home, "http://127.0.0.1:9", load, "someone/first")[1])


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
        _, words = at(home, endpoint, refused, "some/other", offline=offline)
        assert json.loads(words).startswith(why)


def test_a_push_without_a_network_is_one_line(run: Path, home: Path) -> None:
    status, words = at(home, "http://127.0.0.1:9", main, ["push", str(run), "someone/first"])
    assert status == 2 and words.count("\n") == 1
    assert words.startswith("redraft: cannot push to someone/first")


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
