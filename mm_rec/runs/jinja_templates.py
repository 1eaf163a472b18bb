"""Jinja templates of reports: pages and cards, beside the code that fills them."""

from __future__ import annotations

from pathlib import Path

import jinja2


def jinja_environment(folder: Path) -> jinja2.Environment:
    """Return the templates of a folder: text is escaped in .html, and an undefined name is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=jinja2.select_autoescape(["html"]), trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
