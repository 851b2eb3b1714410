"""HTML pages that work offline: one template, one style sheet and one small script, all inline; nothing is loaded.

The page's policy lets run that very script, by its hash, and no other: what a sample or a title says is shown, not run.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from redraft.display import quantity
from redraft.scaling.influence_text import part_name
from redraft.scaling.results import label, span


def render(template: str, script: str = "page.js", **values: Any) -> str:
    """The page of a template of this package with one of its scripts; everything in `values` is escaped."""
    from jinja2 import DictLoader, Environment, StrictUndefined
    from markupsafe import Markup

    safe = lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
    sources = {name: _read(name) for name in ("page.html.j2", "parts.html.j2", template)}
    page = Environment(
        autoescape=True, finalize=safe, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=DictLoader(sources),
    )  # fmt: skip
    page.filters |= {"quantity": quantity, "label": label, "span": span, "part_name": part_name}
    page.filters["svgs"] = lambda figure: [Markup(svg) for svg in figure.panel_svgs()]
    code = _read(script)
    parts = {"style": Markup(_read("page.css")), "script": Markup(code), "script_hash": Markup(script_hash(code))}
    return page.get_template(template).render(**parts, **values) + "\n"


def script_hash(script: str) -> str:
    """As a content security policy names an inline script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _read(name: str) -> str:
    return files("redraft.report").joinpath(name).read_text(encoding="utf-8")


def visible(text: str) -> str:
    r"""Text in which control, format and unassigned characters are seen as \x1b or \u202e; lines and tabs stay."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)
