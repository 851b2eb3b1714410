"""The page at `/`, and in headless Chromium: a race of two models, pause, scrub, infilling, errors, and what axe finds."""

from __future__ import annotations

import re
import shutil
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, ImageSequence

from redraft.serving.http.page import PATHS
from tests.serving.served import Served, models, offline, served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ABSENT = next(
    (n for n in ("playwright", "axe_playwright_python") if find_spec(n) is None), None if CHROMIUM else "chromium"
)
driven = pytest.mark.skipif(
    ABSENT is not None, reason=f"the page is driven with playwright, axe and chromium: {ABSENT} is absent"
)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(models(tmp_path_factory.mktemp("models"), ("ar", "mdlm"))) as running:
        yield running


def fetched(there: Served, path: str) -> tuple[str, Any]:
    with urllib.request.urlopen(there.url + path, timeout=30) as answer:
        return answer.read().decode(), answer.headers


def test_the_page_is_whole_and_loads_nothing_from_elsewhere(there: Served) -> None:
    pages = {path: fetched(there, path) for path in PATHS}
    for path, (text, headers) in pages.items():
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), path
        assert "innerHTML" not in text and "eval(" not in text
    named = re.findall(r'(?:src|href)="(page/[^"]+)"', pages["/"][0])
    named += [f"page/{name}" for text, _ in pages.values() for name in re.findall(r'from "\./([^"]+)"', text)]
    assert {f"/{name}" for name in named} | {"/", "/page/animation.js"} == set(PATHS)
    assert "style=" not in pages["/"][0] and not re.search(r"<script(?![^>]*src=)", pages["/"][0])


def test_the_api_is_what_it_was(there: Served) -> None:
    assert not any(path in fetched(there, "/openapi.json")[0] for path in ('"/"', "/page/"))
    for path in ("/page/", "/page/../guard.py", "/page/index.html", "/page/page.py"):
        with pytest.raises(HTTPError) as refused:
            fetched(there, path)
        assert refused.value.code == 404


def test_with_a_key_the_page_is_open_and_the_models_are_not(there: Served) -> None:
    with served(there.scheduler.models, key="secret") as closed:
        assert "api key" in fetched(closed, "/")[0].lower() and "secret" not in fetched(closed, "/")[0]
        with pytest.raises(HTTPError) as refused:
            fetched(closed, "/v1/models")
        assert refused.value.code == 401


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def page(browser: Any, there: Served) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    troubles: list[str] = []
    opened.on("pageerror", lambda error: troubles.append(str(error)))
    opened.on("console", lambda said: troubles.append(said.text) if "Content Security" in said.text else None)
    opened.goto(there.url)
    opened.wait_for_selector(".lane")
    yield opened
    opened.close()
    assert not troubles


def write(page: Any, prompt: str, tokens: int = 12) -> None:
    page.fill("#prompt", prompt)
    page.fill("#tokens", str(tokens))
    page.click("#write")
    page.wait_for_selector("#lanes[aria-busy=false]")


def shown(page: Any, lane: int, part: str) -> str:
    return str(page.locator(".lane").nth(lane).locator(f".{part}").text_content())


@driven
def test_a_race_is_written_paused_scrubbed_and_stepped(page: Any, there: Served) -> None:
    page.locator(".lane").nth(1).locator(".steps").fill("6")
    write(page, "ab")
    for lane, (name, steps) in enumerate({"ar": 64, "mdlm": 6}.items()):
        model = there.scheduler.models[name]
        text = page.locator(".lane").nth(lane).locator(".part").input_value()
        assert text == offline(model, "ab", 12, seed=0, steps=steps)
        assert shown(page, lane, "text").startswith(text) and shown(page, lane, "clock").endswith(" s")
        assert float(shown(page, lane, "rate")) > 0 and re.fullmatch(r"(≤ )?\d+\.\d\d", shown(page, lane, "bits"))
    lane = page.locator(".lane").nth(1)
    frames = int(lane.locator(".at").get_attribute("max")) + 1
    lane.locator(".at").focus()
    page.keyboard.press("Home")
    assert shown(page, 1, "frame") == f"1 of {frames}" and "░" in shown(page, 1, "text")
    assert int(shown(page, 1, "calls")) < frames
    lane.locator(".on").click()
    assert shown(page, 1, "frame") == f"2 of {frames}"
    lane.locator(".text").focus()
    page.keyboard.press("ArrowLeft")
    assert shown(page, 1, "frame") == f"1 of {frames}"
    page.select_option("#pace", "0.03125")
    page.keyboard.press(" ")
    assert shown(page, 1, "play") == "Pause"
    page.keyboard.press(" ")
    assert shown(page, 1, "play") == "Play"


@driven
def test_a_part_is_rewritten_between_what_stands_around_it(page: Any) -> None:
    write(page, "ab")
    lane = page.locator(".lane").nth(1)
    lane.locator("summary").click()
    lane.locator(".part").evaluate("e => { e.value = 'abXYZde'; e.focus(); e.setSelectionRange(2, 5) }")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowLeft")
    lane.locator(".room").fill("3")
    lane.locator(".rewrite").click()
    page.wait_for_selector(".lane:nth-child(2)[aria-busy=false]")
    cells = lane.locator(".text .given").all_text_contents()
    assert cells == ["ab", "de"] and lane.locator(".at").get_attribute("max") != "0"
    left = page.locator(".lane").nth(0)
    assert left.locator(".rewrite").is_disabled() and "cannot fill in" in shown(page, 0, "infill")


@driven
def test_an_error_is_shown_as_its_sentence_and_the_others_go_on(page: Any) -> None:
    page.locator(".lane").nth(0).locator(".temperature").fill("0.00000001")
    write(page, "ab")
    assert shown(page, 0, "error") == "temperature: Value error, must be 0 or at least 0.0001"
    assert shown(page, 1, "error") == "" and shown(page, 1, "clock").endswith(" s")
    page.fill("#suffix", "yz")
    write(page, "ab", 500)
    assert "do not fit the context of 24 tokens" in shown(page, 1, "error")


@driven
def test_what_is_asked_stands_in_the_address(page: Any, there: Served) -> None:
    page.locator(".lane").nth(0).locator(".remove").click()
    page.locator(".lane").nth(0).locator(".sampler").select_option("psi")
    page.locator(".lane").nth(0).locator(".steps").fill("5")
    write(page, "a&b <b>")
    query = parse_qs(urlsplit(page.url).query, keep_blank_values=True)
    assert query["prompt"] == ["a&b <b>"] and query["model"] == ["mdlm"] and query["sampler"] == ["psi"]
    page.goto(page.url)
    page.wait_for_selector(".lane")
    assert page.locator(".lane").count() == 1 and page.input_value("#prompt") == "a&b <b>"
    assert page.locator(".sampler").input_value() == "psi" and page.locator(".steps").input_value() == "5"


@driven
def test_a_lane_is_saved_as_files_that_play_alone(page: Any, tmp_path: Path) -> None:
    write(page, "<&")
    lane = page.locator(".lane").nth(1)
    lane.locator("summary").click()
    files: dict[str, Path] = {}
    for kind in ("svg", "html", "gif"):
        with page.expect_download() as saved:
            lane.locator(f".{kind}").click()
        assert saved.value.suggested_filename == f"mdlm.{kind}"
        saved.value.save_as(files.setdefault(kind, tmp_path / f"mdlm.{kind}"))
    assert "&#60;&#38;" in files["svg"].read_text() and ElementTree.parse(files["svg"]).getroot().tag.endswith("svg")
    with Image.open(files["gif"]) as played:
        waits = [frame.info["duration"] for frame in ImageSequence.Iterator(played)]
        # Between four and twelve seconds and two at the end; a frame waits at least 20 ms.
        assert len(waits) > 1 and 6000 <= sum(waits) <= 14000 + 20 * len(waits)
        played.seek(0)
        first = np.asarray(played.convert("L"))
        played.seek(len(waits) - 1)
        last = np.asarray(played.convert("L"))
    assert (first < 250).any() and (first != last).any()
    alone = page.context.browser.new_page()
    alone.goto(files["html"].as_uri())
    assert alone.locator("#text").text_content().startswith("<&")
    alone.close()


@driven
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_violation(page: Any, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme=scheme)
    page.locator(".lane").nth(0).locator(".temperature").fill("0.00000001")
    write(page, "ab")
    page.locator(".lane").nth(1).locator("summary").click()
    for width in (400, 1600):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        found = Axe().run(page).response["violations"]
        assert not [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")]


@driven
def test_a_server_with_a_key_asks_for_it(browser: Any, there: Served) -> None:
    with served(there.scheduler.models, key="secret") as closed:
        opened = browser.new_page()
        opened.goto(closed.url)
        opened.wait_for_selector("#key-field:not([hidden])")
        opened.fill("#key", "secret")
        write(opened, "ab", 4)
        assert opened.locator(".lane").count() == 2 and "secret" not in opened.url
        opened.close()
