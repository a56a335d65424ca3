"""mkdocs hook: markers in pages become what is made from the code, the tables of all settings and lists of names."""

from __future__ import annotations

import re
from typing import Any

import onnxcalib
from onnxcalib.config.reference import render_reference

SETTINGS, RECORDS, ERRORS = "<!-- settings -->", "<!-- records -->", "<!-- errors -->"
ENTRY = re.compile(r"^::: \S+\.(\w+)$", flags=re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """What mkdocs calls with the text of each page."""
    if page.file.src_uri == "settings.md":
        return markdown.replace(SETTINGS, render_reference())
    return add_names(markdown) if page.file.src_uri == "api.md" else markdown


def add_names(markdown: str) -> str:
    """Entries of all public names that have none: exceptions and warnings by themselves, behind the other names."""
    shown = {*ENTRY.findall(markdown), "__version__"}
    entries: dict[str, list[str]] = {RECORDS: [], ERRORS: []}
    for name in onnxcalib.__all__:
        value = getattr(onnxcalib, name)
        if name not in shown:
            is_fault = isinstance(value, type) and issubclass(value, Exception)
            entries[ERRORS if is_fault else RECORDS].append(f"::: {value.__module__}.{name}")
    for marker, lines in entries.items():
        markdown = markdown.replace(marker, "\n\n".join(lines))
    return markdown
