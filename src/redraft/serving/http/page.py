"""The page at `/`: files of this package, read once; nothing of it comes from elsewhere, and it asks this server alone."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from starlette.responses import Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
PARTS = ("style.css", "main.js", "api.js", "lane.js", "player.js", "recording.js", "save.js", "gif.js", "share.js")
SAVED = "animation.js"  # plays a saved lane: the script of `redraft sample --animate`
PATHS = ("/", *(f"/page/{name}" for name in (*PARTS, SAVED)))


def show_page(app: FastAPI) -> None:
    """Serve the page at `PATHS`. They hold no secret, and need no key: it is the page that asks for one."""
    own, report = files("redraft.serving").joinpath("page"), files("redraft.report")
    sources = {"/": own.joinpath("index.html"), f"/page/{SAVED}": report.joinpath(SAVED)}
    sources |= {f"/page/{name}": own.joinpath(name) for name in PARTS}
    for path, source in sources.items():
        _serve(app, path, source.read_bytes(), KINDS[source.name.rpartition(".")[2]])


def _serve(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    @app.get(path, include_in_schema=False)
    async def part() -> Response:
        return Response(content, 200, HEADERS, kind)
