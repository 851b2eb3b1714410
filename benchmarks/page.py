"""The report in a real browser: how long it takes to load, and whether pointing, filtering and sorting do what they should.

Drives a headless Chromium through its debugging pipe. Without a page, plants a study of 2,000 runs and writes its report.
Skips, with one line, where no Chromium is found.

    python benchmarks/page.py                              a planted study
    python benchmarks/page.py demo/report.html --shots .   any report, with screenshots
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import measure

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
    "--no-first-run",
)
WIDTHS = (1280, 400)
INPUT = "document.querySelector('input[data-of=runs]')"
LONGEST = 2.0  # seconds until the load event


class Browser:
    """One page of a browser; commands of the DevTools protocol, answers in order."""

    def __init__(self, commands: Any, answers: Any):
        self.commands, self.answers, self.number, self.session = commands, answers, 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        self.commands.write(
            json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0"
        )
        self.commands.flush()
        while (heard := self._hear()).get("id") != self.number:
            self.events.append(heard)
        if "error" in heard:
            raise RuntimeError(f"{method}: {heard['error']}")
        return dict(heard["result"])

    def _hear(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser is gone")
            data += byte
        return dict(json.loads(data))

    def script(self, code: str) -> Any:
        answer = self.ask("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{code[:80]}: {answer['exceptionDetails']['exception'].get('description')}")
        return answer["result"].get("value")

    def open(self, page: Path, width: int) -> None:
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self.events.clear()
        self.ask("Page.navigate", url=page.resolve().as_uri())
        self.script("new Promise(r => document.readyState === 'complete' ? r() : addEventListener('load', r))")

    def move(self, x: float, y: float) -> None:
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def shoot(self, path: Path, whole: bool) -> None:
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(shot))


@contextmanager
def browser(program: str) -> Iterator[Browser]:
    """A browser of its own, with a profile that is thrown away."""
    here, there = os.pipe(), os.pipe()

    def wire() -> None:
        read, write = os.dup(here[0]), os.dup(there[1])
        os.dup2(read, 3)
        os.dup2(write, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *FLAGS, f"--user-data-dir={profile}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, preexec_fn=wire, pass_fds=(3, 4), **quiet)  # type: ignore[call-overload]  # noqa: PLW1509
        os.close(here[0])
        os.close(there[1])
        try:
            with os.fdopen(here[1], "wb") as commands, os.fdopen(there[0], "rb") as answers:
                yield Browser(commands, answers)
        finally:
            process.terminate()
            process.wait()


def load(page: Browser, path: Path, width: int) -> dict[str, Any]:
    """Seconds to the load event and to the next frame painted, requests besides the page, and what sticks out."""
    page.open(path, width)
    timing = page.script(
        "new Promise(r => requestAnimationFrame(() => setTimeout(() => {"
        " const t = performance.getEntriesByType('navigation')[0];"
        " r([t.loadEventEnd / 1000, performance.now() / 1000]) })))"
    )
    sent = [e["params"]["request"]["url"] for e in page.events if e.get("method") == "Network.requestWillBeSent"]
    complaints = [e["params"]["entry"]["text"] for e in page.events if e.get("method") == "Log.entryAdded"]
    return {
        "load_s": round(timing[0], 3),
        "painted_s": round(timing[1], 3),
        "requests": [url for url in sent if not url.startswith("file:")],
        "complaints": complaints,
        "sticks_out_px": page.script("document.documentElement.scrollWidth - document.documentElement.clientWidth"),
        "smallest_text_px": page.script(
            "Math.min(...[...document.querySelectorAll('.panels text')].map(t => { const s = t.ownerSVGElement;"
            " return parseFloat(getComputedStyle(t).fontSize) * s.getBoundingClientRect().width / s.viewBox.baseVal.width }))"
        ),
    }


def hover(page: Browser) -> dict[str, Any]:
    """Points at the first run of the first figure and clicks on it."""
    box = page.script(
        "(() => { const p = document.querySelector('.panels svg .p'); p.scrollIntoView({block: 'center'});"
        " const r = p.getBoundingClientRect();"
        " return [r.x + r.width / 2, r.y + r.height / 2, p.getAttribute('aria-label')] })()"
    )
    page.move(box[0], box[1])
    said = page.script("document.getElementById('tip').hidden ? null : document.getElementById('tip').textContent")
    lit = page.script("document.querySelectorAll('.p.on').length")
    page.click(box[0], box[1])
    found = page.script("document.querySelector('tr.on')?.dataset.run ?? null")
    page.move(2, 2)
    hidden = page.script("document.getElementById('tip').hidden")
    return {"point": box[2], "said": said, "lit": lit, "row": found, "hidden_after": hidden}


def filtered(page: Browser, words: str) -> dict[str, Any]:
    """Types into the filter of the table of runs."""
    page.script(f"{INPUT}.scrollIntoView(); {INPUT}.focus()")
    page.ask("Input.insertText", text=words)
    kept = page.script(
        "[...document.querySelectorAll('#runs tbody tr')].filter(r => !r.hidden).map(r => r.textContent)"
    )
    told = page.script(f"{INPUT}.closest('.tools').querySelector('output').textContent")
    fit = all(all(word in text.lower() for word in words.lower().split()) for text in kept)
    page.script(f"{INPUT}.value = ''; {INPUT}.dispatchEvent(new Event('input'))")
    return {"words": words, "kept": len(kept), "told": told, "all_fit": fit}


def sorted_by(page: Browser, column: int) -> dict[str, Any]:
    """Clicks twice on a heading of the table of runs: up, then down."""
    cell = f"r.cells[{column}]"
    values = f"[...document.querySelectorAll('#runs tbody tr')].map(r => {cell}.dataset.v ?? {cell}.textContent)"
    orders = []
    for _ in range(2):
        x, y = page.script(
            f"(() => {{ const h = document.querySelectorAll('#runs th')[{column}]; h.scrollIntoView({{block: 'center'}});"
            " const r = h.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        page.click(x, y)
        seen = [float(value) for value in page.script(values)]
        orders.append("up" if seen == sorted(seen) else "down" if seen == sorted(seen, reverse=True) else "none")
    return {"column": column, "orders": orders}


def planted(folder: Path, runs: int) -> Path:
    """A study of `runs` records, four families x ten budgets x ten sizes x seeds, on planted power laws."""
    import numpy as np

    from redraft.report.report import write_report

    rng, seeds = np.random.default_rng(0), max(1, runs // 400)
    for number, family in enumerate(("ar", "mdlm", "duo", "esolm")):
        for budget in np.geomspace(3e10, 3e13, 10):
            for u in np.linspace(-1.3, 1.3, 10):
                for seed in range(seeds):
                    params = 0.06 * budget**0.52 * np.exp(u)
                    loss = (14 + number) * budget**-0.07 * (1 + 0.03 * u**2) + 0.008 * rng.standard_normal()
                    name = f"{family}-{params:.0f}-{budget:.2g}-s{seed}"
                    record = {
                        "name": name, "arm": family, "family": family, "seed": seed, "params": params, "loss": loss,
                        "tokens": budget / 6 / params, "steps": 100, "flops": budget, "budget": budget, "loss_se": 0.002,
                        "loss_kind": "exact" if family == "ar" else "bound", "bits_per_byte": loss / 0.693,
                    }  # fmt: skip
                    place = folder / "runs" / name
                    place.mkdir(parents=True)
                    (place / "record.json").write_text(json.dumps(record), encoding="utf-8")
    return write_report(folder, title=f"{400 * seeds} planted runs")


def main(args: Namespace, path: Path) -> None:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        return print("skipped: no Chromium on this machine (apt-get install chromium)")
    with browser(program) as page:
        loads = {width: load(page, path, width) for width in WIDTHS}
        if args.shots:
            for width in WIDTHS:
                page.open(path, width)
                page.shoot(args.shots / f"page-{width}.png", whole=True)
        page.open(path, WIDTHS[0])
        found = {"hover": hover(page), "filter": filtered(page, args.filter), "sort": sorted_by(page, 5)}
    good = all(at["load_s"] < LONGEST and not at["requests"] and not at["complaints"] and at["sticks_out_px"] <= 0
               for at in loads.values())  # fmt: skip
    good = good and found["hover"]["said"] == found["hover"]["point"] and found["hover"]["hidden_after"]
    good = good and found["hover"]["point"].startswith(f"{found['hover']['row']}:")
    good = good and found["filter"]["all_fit"] and found["sort"]["orders"] == ["up", "down"]
    result = {"benchmark": "page", "machine": measure.machine(), "bytes": path.stat().st_size, "loads": loads, **found,
              "good": good}  # fmt: skip
    rows = [(f"{width} px", f"{at['load_s']:.2f}", f"{at['painted_s']:.2f}", str(at["sticks_out_px"]),
             f"{at['smallest_text_px']:.1f}", str(len(at["requests"]))) for width, at in loads.items()]  # fmt: skip
    text = measure.table(("width", "load, s", "painted, s", "sticks out, px", "smallest text, px", "requests"), rows)
    measure.publish(result, f"{text}\n\n{path.stat().st_size / 1e6:.1f} MB; {json.dumps(found, indent=1)}", args.json)
    sys.exit(0 if good else 1)


def parsed() -> Namespace:
    parser = ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("page", type=Path, nargs="?", help="a report; a planted study's if left out")
    parser.add_argument("--runs", type=int, default=2000, help="of the planted study")
    parser.add_argument("--filter", default="mdlm s0", help="words typed into the filter of runs")
    parser.add_argument("--shots", type=Path, help="folder for screenshots")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parsed()
    if arguments.page:
        main(arguments, arguments.page)
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(arguments, planted(Path(folder), arguments.runs))
