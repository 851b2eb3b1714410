"""The site: Markdown pages by MyST, the interface by autodoc; nothing is fetched, and a broken link fails (`make docs`)."""

from __future__ import annotations

from typing import Any

import redraft

project, author = "redraft", "The redraft developers"
version = release = redraft.__version__
copyright = "2026, the redraft developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["conf.py"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["misc.highlighting_failure"]
nitpick_ignore_regex = [("py:.*", r"(?!redraft\.(load|Model|register|Entry)$).*")]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_mock_imports = ["altair"]  # figures are another extra
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
html_theme = "furo"
html_title = "redraft"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"
html_theme_options = {"navigation_with_keys": True}


def plain(app: Any, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with Markdown's code marks: `x` is code there, not a reference."""
    lines[:] = [line.replace("`", "``") if "``" not in line else line for line in lines]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", plain)
