"""mkdocs hook: the marker of settings.md becomes the tables of all settings, which are made from their fields."""

from __future__ import annotations

import importlib
from typing import Any

MARKER = "<!-- settings -->"
MODULE = "onnxcalib.config.reference"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """What mkdocs calls with the text of each page."""
    return markdown.replace(MARKER, render_settings()) if page.file.src_uri == "settings.md" else markdown


def render_settings() -> str:
    """Markdown with every setting: key, option, type, default and meaning."""
    try:
        return importlib.import_module(MODULE).render_reference()
    except ModuleNotFoundError:  # until the settings render themselves
        return "The help of each command lists its options."
