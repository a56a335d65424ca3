"""mkdocs hook: the marker of settings.md becomes the tables of all settings, which are made from their fields."""

from __future__ import annotations

from typing import Any

from onnxcalib.config.reference import render_reference

MARKER = "<!-- settings -->"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """What mkdocs calls with the text of each page."""
    return markdown.replace(MARKER, render_reference()) if page.file.src_uri == "settings.md" else markdown
