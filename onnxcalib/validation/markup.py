"""Any text as it can stand in Markdown and in JUnit XML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from xml.etree import ElementTree

from ..errors import escape_controls
from ..verdict import GateRecord

# Characters that XML 1.0 cannot hold, escaped or not, apart from controls: https://www.w3.org/TR/xml/#charsets
ILLEGAL = re.compile("[\ufffe\uffff]")


def add_case(suite: ElementTree.Element, gate: GateRecord, details: Iterable[str] = ()) -> None:
    """Add a gate to a suite of JUnit XML as a test case; details: further lines of its outcome."""
    case = ElementTree.SubElement(suite, "testcase", classname="onnxcalib.validate", name=gate.name)
    line = escape(f"{gate.name}: {gate.text}")
    text = "\n".join([line, *map(escape, details)])
    if gate.passed:
        ElementTree.SubElement(case, "system-out").text = text
    else:
        ElementTree.SubElement(case, "failure", message=line, type="GateFailure").text = text


def escape(text: str) -> str:
    """Text from models as it can stand in Markdown and XML, in one line."""
    return ILLEGAL.sub(lambda found: f"\\u{ord(found[0]):04x}", escape_controls(text))


def draw_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its cells are Markdown already, without line breaks and unescaped pipes."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headers, ["---"] * len(headers), *rows))


def spell_text(text: str) -> str:
    """Any text as Markdown that shows it on one line, also in a table."""
    return re.sub(r"[\\`*_\[\]<>|~#&]", r"\\\g<0>", escape(" ".join(text.split())))


def spell_code(name: str) -> str:
    """Any name in a code span on one line, or in HTML, by character numbers, where a span in a table cannot hold it."""
    name = escape(" ".join(name.split()))
    if name and not set(name) & set("`|\\"):
        return f"`{name}`"
    return f"<code>{re.sub(r'[^A-Za-z0-9 /.:-]', lambda found: f'&#{ord(found[0])};', name)}</code>"
