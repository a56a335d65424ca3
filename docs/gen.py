"""mkdocs hook: pages that come from the code. settings.md gets the table of all settings in place of its marker."""

from __future__ import annotations

import inspect
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from onnxcalib.config import DataConfig, LayerConfig, QuantizeConfig, ValidateConfig

MARKER = "<!-- settings -->"
SECTIONS = {
    "Settings of quantize and plan": QuantizeConfig,
    "Settings of single layers": LayerConfig,
    "Settings of samples": DataConfig,
    "Settings of validate": ValidateConfig,
}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """What mkdocs calls with the text of each page."""
    return markdown.replace(MARKER, render_settings()) if page.file.src_uri == "settings.md" else markdown


def render_settings() -> str:
    """Every setting with its values and default, a section for each class that has them."""
    parts = []
    for heading, kind in SECTIONS.items():
        rows = [_render_row(name, field) for name, field in kind.model_fields.items() if name != "data"]
        table = "\n".join(["| setting | values | default | |", "|---|---|---|---|", *rows])
        parts.append(f"## {heading}\n\n{inspect.getdoc(kind)}\n\n{table}")
    return "\n\n".join(parts)


def _render_row(name: str, field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    return f"| `{name}` | {_spell_type(field.annotation)} | {_spell_default(default)} | {field.description or ''} |"


def _spell_type(kind: Any) -> str:
    """The values of an annotation, None left out, as the default says it."""
    if get_origin(kind) is Annotated:
        return _spell_type(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_spell_type(each) for each in get_args(kind) if each is not type(None))
    if get_origin(kind) is tuple:
        return f"list of {_spell_type(get_args(kind)[0])}"
    names = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}
    return names.get(kind, "table for each layer")


def _spell_default(default: Any) -> str:
    if default is None or default in ((), {}) or isinstance(default, BaseModel):
        return "none"
    return f"`{list(default)}`" if isinstance(default, tuple) else f"`{str(default).lower()}`"
