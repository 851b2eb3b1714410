"""The official client of OpenAI against served models: the texts are those that are written offline with the same seed."""

from __future__ import annotations

import json
import math
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from redraft.text.examples.chat import asked, template
from tests.serving.served import FAMILIES, Served, models, offline, served

DIFFUSION = ("mdlm", "duo", "esolm")


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(models(tmp_path_factory.mktemp("models"))) as running:
        yield running


@pytest.fixture(scope="module")
def client(there: Served) -> OpenAI:
    return OpenAI(base_url=f"{there.url}/v1", api_key="none", max_retries=0)


def posted(there: Served, path: str, **body: Any) -> Any:
    data = json.dumps(body).encode()
    request = urllib.request.Request(there.url + path, data, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=30))


def test_models_are_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == list(FAMILIES)
    assert client.models.retrieve("duo").model_dump()["family"] == "duo"


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_are_those_of_offline_rows(name: str, there: Served, client: OpenAI) -> None:
    model = there.scheduler.models[name]
    found = client.completions.create(
        model=name, prompt=["ab", "the c"], max_tokens=9, n=2, seed=3, temperature=0.9, top_p=0.9, echo=True,
        extra_body={"steps": 5},
    )  # fmt: skip
    wanted = [
        offline(model, prompt, 9, number, seed=3, steps=5, temperature=0.9, top_p=0.9)
        for prompt in ("ab", "the c")
        for number in range(2)
    ]
    assert [choice.text for choice in found.choices] == wanted
    assert found.usage is not None and found.usage.prompt_tokens == 7 and 0 < found.usage.completion_tokens <= 36


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stream_adds_up_to_the_text(name: str, there: Served, client: OpenAI) -> None:
    settings: dict[str, Any] = {"model": name, "prompt": "ab", "max_tokens": 16, "seed": 1, "n": 2}
    whole = client.completions.create(**settings)
    texts, reasons, usage, sizes = ["", ""], [None, None], None, 0
    for chunk in client.completions.create(**settings, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            sizes += choice.text != ""
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices] and set(reasons) <= {"stop", "length"}
    assert usage == whole.usage
    if name == "duo":
        assert sizes <= 2, "no token of a uniform-state model is final before the end"


@pytest.mark.parametrize("name", FAMILIES)
def test_chat(name: str, there: Served, client: OpenAI) -> None:
    said: list[Any] = [{"role": "user", "content": "Hi"}]
    settings: dict[str, Any] = {"model": name, "messages": said, "max_completion_tokens": 5, "seed": 2}
    found = client.chat.completions.create(**settings).choices[0]
    prompt = asked(said, template("plain"), "")
    wanted = offline(there.scheduler.models[name], prompt, 5, seed=2)
    assert found.message.role == "assistant" and prompt + (found.message.content or "") == wanted
    chunks = [chunk.choices[0].delta for chunk in client.chat.completions.create(**settings, stream=True)]
    assert chunks[0].role == "assistant" and "".join(c.content or "" for c in chunks) == found.message.content


@pytest.mark.parametrize("name", DIFFUSION)
def test_suffix_is_filled_in_before(name: str, there: Served, client: OpenAI) -> None:
    found = client.completions.create(model=name, prompt="ab", suffix="yz", max_tokens=8, seed=4).choices[0].text
    whole = offline(there.scheduler.models[name], "ab", 8, suffix="yz", seed=4)
    assert whole == f"ab{found}yz" or (whole == f"ab{found}" and len(found.encode()) < 8)


def test_stop_strings_end_a_text(there: Served, client: OpenAI) -> None:
    settings: dict[str, Any] = {"model": "ar", "prompt": "q", "max_tokens": 20, "temperature": 0.7}
    texts = {seed: client.completions.create(**settings, seed=seed).choices[0].text for seed in range(8)}
    seed, text = next((seed, text) for seed, text in texts.items() if len(text) > 6)
    stop, cut = text[3:5], text.index(text[3:5])
    found = client.completions.create(**settings, seed=seed, stop=[stop, "unlikely"]).choices[0]
    assert (found.text, found.finish_reason) == (text[:cut], "stop")
    stream = client.completions.create(**settings, seed=seed, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == text[:cut]


@pytest.mark.parametrize("name", ["mdlm", "duo"])
def test_frames_end_in_the_text(name: str, there: Served, client: OpenAI) -> None:
    stream = client.completions.create(
        model=name, prompt="ab", max_tokens=8, seed=6, stream=True, extra_body={"frames": True, "steps": 4}
    )
    frames = [found for chunk in stream if (found := chunk.choices[0].model_dump().get("canvas"))]
    assert [frame["frame"] for frame in frames] == [1, 2, 3, 4][-len(frames) :] and len(frames) >= 2
    assert all(frame["texts"][:2] == ["a", "b"] and len(frame["tokens"]) == 10 for frame in frames)
    assert name != "duo" or all(frame["calls"] == frame["frame"] for frame in frames)
    written = "".join(frames[-1]["texts"])
    assert written.startswith(offline(there.scheduler.models[name], "ab", 8, seed=6, steps=4))


def test_log_probabilities_of_ar_are_exact(there: Served, client: OpenAI) -> None:
    found = client.completions.create(model="ar", prompt="abcd", max_tokens=0, echo=True, logprobs=2).choices[0]
    model = there.scheduler.models["ar"]
    assert found.logprobs is not None and found.logprobs.token_logprobs is not None
    assert math.isclose(-sum(found.logprobs.token_logprobs), model.score("abcd")[0].nats, rel_tol=1e-6)  # type: ignore[arg-type]
    assert found.text == "abcd" and found.logprobs.tokens == list("abcd")
    chat = client.chat.completions.create(
        model="ar", messages=[{"role": "user", "content": "x"}], logprobs=True, top_logprobs=3, max_tokens=4, seed=1
    )
    content = chat.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None and len(content) == chat.usage.completion_tokens  # type: ignore[union-attr]
    assert all(len(token.top_logprobs) == 3 for token in content)


@pytest.mark.parametrize("name", ["ar", "mdlm", "duo"])
def test_score_is_that_of_the_model(name: str, there: Served) -> None:
    found = posted(there, "/v1/score", model=name, text="some text", draws=4, seed=1)
    wanted = there.scheduler.models[name].score("some text", 4, 1)[0]
    assert math.isclose(found["nats"], wanted.nats) and found["exact"] == (name == "ar")
    assert math.isclose(found["standard_error"], wanted.standard_error, abs_tol=1e-9)


def test_sampler_options_and_guidance_act(there: Served) -> None:
    ask = lambda **more: posted(there, "/v1/completions", model="mdlm", prompt="ab", max_tokens=8, seed=1, **more)
    text = lambda found: found["choices"][0]["text"]
    plain = text(ask(sampler="psi", options={"kappa": 0.5, "steps": 6}))
    assert "ab" + plain == offline(
        there.scheduler.models["mdlm"], "ab", 8, seed=1, sampler="psi", options={"kappa": 0.5, "steps": 6}
    )
    assert text(ask(guidance=5.0)) != text(ask())


def test_health_and_metrics(there: Served) -> None:
    assert json.load(urllib.request.urlopen(there.url + "/health")) == {"status": "ok"}
    posted(there, "/v1/completions", model="ar", max_tokens=3)
    shown = urllib.request.urlopen(there.url + "/metrics").read().decode()
    assert 'redraft_requests_total{path="/v1/completions",status="200"}' in shown
    assert "redraft_running 0" in shown and 'redraft_texts_total{state="finished"}' in shown


def test_the_document_names_the_models_and_the_bounds_of_this_server(there: Served) -> None:
    with urllib.request.urlopen(f"{there.url}/openapi.json", timeout=30) as answer:
        schemas = json.load(answer)["components"]["schemas"]
    for name in ("Completion", "Chat", "Scored"):
        assert schemas[name]["properties"]["model"]["enum"] == sorted(there.scheduler.models)
    assert schemas["Completion"]["properties"]["steps"]["maximum"] == 4096
