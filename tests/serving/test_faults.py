"""A server under bad requests, clients that leave or read slowly, and signals: the right answer, nothing else disturbed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.cli import main
from redraft.serving.http.asking import Limits
from redraft.serving.http.guard import BODY
from redraft.types import View
from tests.hub.models import folder
from tests.serving.served import Served, models, offline, served, wait

LIMITS = Limits(length=400, steps=500, texts=8, work=10_000)
SOUND = {"model": "mdlm", "prompt": "ab", "max_tokens": 8}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(models(tmp_path_factory.mktemp("models"), ("ar", "mdlm")), 4, 12, LIMITS) as running:
        yield running


def answer(
    there: Served, body: bytes | dict[str, Any], path: str = "/v1/completions", **headers: str
) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(there.url + path, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return found.status, json.load(found)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def begun(there: Served, **body: Any) -> socket.socket:
    """A client who has asked, and reads nothing yet."""
    host, port = there.url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)))
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    client.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return client


BAD: list[tuple[bytes | dict[str, Any], int, str]] = [
    (b"{", 400, "JSON"),
    (b"", 400, "Field required"),
    (b"[]", 400, ""),
    (b"\xff\xfe", 400, ""),
    (b'{"model": "mdlm", "temperature": NaN}', 400, "temperature"),
    (b'{"model": "mdlm", "top_p": Infinity}', 400, "top_p"),
    (b'{"model": "mdlm", "seed": ' + b"9" * 5000 + b"}", 400, ""),
    (b"[" * 100_000, 400, ""),
    ({**SOUND, "model": "mdml"}, 404, "Did you mean 'mdlm'"),
    ({**SOUND, "model": "../mdlm"}, 404, "unknown model"),
    ({**SOUND, "model": "\ud800"}, 404, "unknown model"),
    ({**SOUND, "prompt": "\ud800", "max_tokens": 0}, 200, ""),
    ({**SOUND, "prompt": "x" * 500}, 400, "500 tokens and max_tokens of 8 do not fit the context of 400 tokens"),
    ({**SOUND, "prompt": "x" * 400, "max_tokens": None}, 400, "do not fit"),
    ({**SOUND, "prompt": "", "max_tokens": 0}, 400, "nothing to write"),
    ({**SOUND, "prompt": [1, 2]}, 400, "prompt"),
    ({**SOUND, "n": 9}, 400, "more than 8 in one request"),
    ({**SOUND, "n": 0}, 400, "n: "),
    ({**SOUND, "max_tokens": 10**9}, 400, "max_tokens"),
    ({**SOUND, "steps": 501}, 400, "steps must be at most 500"),
    ({**SOUND, "options": {"steps": 501}}, 400, "steps must be at most 500"),
    ({**SOUND, "options": {"steps": "many"}}, 400, "options.steps must be int"),
    ({**SOUND, "options": {"steps": True}}, 400, "options.steps must be int"),
    ({**SOUND, "sampler": "entropy_bounded", "options": {"gamma": 1e300}}, 400, "options.gamma must be float"),
    ({**SOUND, "sampler": "psi", "options": {"kappa": []}}, 400, "options.kappa"),
    ({**SOUND, "sampler": "semi_autoregressive", "options": {"steps": 1, "block": 2}}, 400, "cannot be shared"),
    ({**SOUND, "sampler": "semi_autoregressive", "options": {"inner": "../x"}}, 400, "unknown inner sampler"),
    ({**SOUND, "sampler": "ancestrl"}, 400, "Did you mean 'ancestral'"),
    ({**SOUND, "sampler": "left_to_right"}, 400, "cannot serve family 'mdlm'"),
    ({**SOUND, "model": "ar", "suffix": "z"}, 400, "cannot fill in before"),
    ({**SOUND, "model": "ar", "suffix": "z", "stream": True}, 400, "cannot fill in before"),
    ({**SOUND, "logprobs": 1}, 400, "logprobs are for families with exact ones"),
    ({**SOUND, "temperature": 1e-9}, 400, "0 or at least 0.0001"),
    ({**SOUND, "temperature": "1"}, 400, "temperature"),
    ({**SOUND, "presence_penalty": 1}, 400, "presence_penalty"),
    ({**SOUND, "templatte": "x"}, 400, "templatte"),
    ({**SOUND, "frames": True}, 400, "frames are streamed"),
    ({**SOUND, "stop": ""}, 400, "stop"),
    (json.dumps({**SOUND, "prompt": "x" * 10_000_000}).encode(), 413, f"at most {BODY} bytes"),
]


@pytest.mark.parametrize(("body", "status", "words"), BAD, ids=[str(n) for n in range(len(BAD))])
def test_a_bad_request_is_answered_in_a_sentence(
    body: bytes | dict[str, Any], status: int, words: str, there: Served
) -> None:
    code, found = answer(there, body)
    assert code == status, found
    if status != 200:
        assert words in found["error"]["message"] and set(found["error"]) == {"message", "type", "param", "code"}
    assert there.thread.is_alive() and there.scheduler.is_alive()


def test_other_bad_requests_too(there: Served) -> None:
    turn = {"role": "user", "content": "x"}
    for messages in ([], [{"role": "robot", "content": "x"}], [{**turn, "content": " "}], [turn, {"role": "user"}]):
        assert answer(there, {"model": "ar", "messages": messages}, "/v1/chat/completions")[0] == 400
    for more in ({"draws": 0}, {"draws": 1024, "text": "x" * 50}, {"text": ""}, {"seed": 1.5}):
        assert answer(there, {"model": "mdlm", "text": "x", **more}, "/v1/score")[0] == 400
    assert answer(there, SOUND, "/v1/edits")[0] == 404
    assert answer(there, SOUND, "/v1/models")[0] == 405
    assert answer(there, json.dumps(SOUND).encode(), **{"Content-Type": "text/plain"})[0] == 400
    assert answer(there, SOUND, Host="rebound.example:8000")[0] == 403
    assert [answer(there, SOUND, Host=host)[0] for host in ("localhost", "127.0.0.1:80", "[::1]:80")] == [200] * 3


def busy(there: Served) -> bool:
    return there.scheduler.busy


LONG = {"model": "mdlm", "prompt": "", "max_tokens": 400, "sampler": "psi", "steps": 400, "seed": 1}


@pytest.mark.parametrize("more", [{}, {"stream": True, "frames": True}], ids=["whole", "streamed"])
def test_a_client_who_leaves_frees_its_rows(more: dict[str, Any], there: Served) -> None:
    steps = there.scheduler.metrics.counts
    client = begun(there, **LONG, n=3, **more)
    wait(lambda: len(there.scheduler.lanes["mdlm"].running) == 3)
    if more:
        assert b"200 OK" in client.recv(4096)
    client.close()
    wait(lambda: not busy(there), 5)
    assert steps["texts", (("state", "cancelled"),)] >= 3
    assert answer(there, SOUND)[0] == 200


def test_a_client_who_does_not_read_holds_nobody_up(there: Served) -> None:
    """Its rows finish, and what is kept for it is bounded."""
    client = begun(there, **{**LONG, "steps": 60, "max_tokens": 380}, n=2, stream=True, frames=True)
    wait(lambda: busy(there))
    assert answer(there, SOUND)[0] == 200
    wait(lambda: not busy(there))
    client.settimeout(20)
    found = b""
    while b"[DONE]" not in found[-64:]:
        found += client.recv(1 << 20)
    client.close()


def test_a_full_queue_says_when_to_come_back(there: Served) -> None:
    lane = there.scheduler.lanes["mdlm"]
    clients = [begun(there, **LONG, n=8)]
    wait(lambda: len(lane.running) == 4)
    clients.append(begun(there, **LONG, n=8))
    wait(lambda: len(lane.waiting) == 12)
    request = urllib.request.Request(
        there.url + "/v1/completions", json.dumps(SOUND).encode(), {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 429 and refused.value.headers["Retry-After"] == "1"
    for client in clients:
        client.close()
    wait(lambda: not busy(there))
    assert answer(there, SOUND)[0] == 200


def test_a_text_that_fails_fails_alone(there: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    model = there.scheduler.models["mdlm"]
    network = there.scheduler.lanes["mdlm"].engine.network
    trunk = network.trunk

    def poisoned(view: View) -> Tensor:
        if (view.tokens[:, 0] == ord("!")).any():
            raise RuntimeError("poison")
        return trunk(view)

    monkeypatch.setattr(network, "trunk", poisoned)
    found = dict[str, tuple[int, Any]]()
    ask = lambda prompt: found.setdefault(prompt, answer(there, {**SOUND, "prompt": prompt, "seed": 1, "echo": True}))
    threads = [threading.Thread(target=ask, args=[prompt]) for prompt in ("ab", "!b", "cd")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["!b"][0] == 500 and "poison" not in str(found["!b"][1])
    for prompt in ("ab", "cd"):
        assert found[prompt][1]["choices"][0]["text"] == offline(model, prompt, 8, seed=1)


def test_out_of_memory_sheds_load(there: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    lane = there.scheduler.lanes["mdlm"]
    trunk = lane.engine.network.trunk

    def small(view: View) -> Tensor:
        if len(view.tokens) > 2 or view.tokens.shape[1] > 100:
            raise torch.OutOfMemoryError("out of memory")
        return trunk(view)

    monkeypatch.setattr(lane.engine.network, "trunk", small)
    code, whole = answer(there, {**SOUND, "n": 8, "seed": 1, "echo": True})
    refused, found = answer(there, {**SOUND, "max_tokens": 200})
    monkeypatch.undo()
    assert refused == 503 and found["error"]["code"] == "out_of_memory"
    model = there.scheduler.models["mdlm"]
    texts = [offline(model, "ab", 8, number, seed=1) for number in range(8)]
    assert code == 200 and [choice["text"] for choice in whole["choices"]] == texts
    assert answer(there, SOUND)[0] == 200


def test_a_key_is_asked_for(tmp_path: Path) -> None:
    with served(models(tmp_path, ("ar",)), key="secret") as there:
        assert answer(there, {"model": "ar", "max_tokens": 1})[0] == 401
        assert answer(there, {"model": "ar", "max_tokens": 1}, Authorization="Bearer secreT")[0] == 401
        assert answer(there, {"model": "ar", "max_tokens": 1}, Authorization="Bearer secret")[0] == 200


def test_a_signal_lets_what_runs_finish(tmp_path: Path) -> None:
    """SIGTERM in mid-stream, to a process: the stream ends whole, a new request is refused, the exit status is 0."""
    folder(tmp_path / "m", "mdlm", "dit")
    command = [sys.executable, "-m", "redraft", "serve", str(tmp_path / "m"), "--port", "0", "--max-length", "2000"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    said = ""
    while not said.endswith("}\n}\n"):
        said += next(lines)
    there = Served(json.loads(said)["url"], None, None, None)  # type: ignore[arg-type]
    wait(lambda: _up(there))
    client = begun(there, model="m", max_tokens=1000, sampler="psi", steps=60, stream=True, frames=True)
    found = client.recv(4096)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert answer(there, {"model": "m", "max_tokens": 4})[0] == 503
    while more := client.recv(1 << 20):
        found += more
        if b"[DONE]" in more:
            break
    assert b'"finish_reason": "length"' in found or b'"finish_reason": "stop"' in found
    assert process.wait(20) == 0


def _up(there: Served) -> bool:
    try:
        return urllib.request.urlopen(there.url + "/health").status == 200
    except urllib.error.URLError:
        return False


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["runs/nowhere"], "no such model folder: runs/nowhere"),
        (["--host", "0.0.0.0"], "give --api-key too"),
        (["--port", "70000"], "--port must be at most 65535"),
        (["--chat-template", "nothing"], "chat template"),
        (["--api-key", "a b"], "printable ASCII"),
        (["--rows", "0"], "--rows must be at least 1"),
    ],
)
def test_mistakes_are_told_before_anything_begins(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path / "m", "ar", "dit")
    models = words if words[0].startswith("runs") else [str(tmp_path / "m"), *words]
    with pytest.raises(SystemExit):
        main(["serve", *models])
    assert told in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["serve", str(tmp_path / "m"), str(tmp_path / "m")])
    assert "two models are called 'm'" in capsys.readouterr().err
