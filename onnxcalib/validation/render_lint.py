"""Write a file's lint as Markdown, JUnit XML or JSON, by itself or as a part of a verdict."""

from __future__ import annotations

from dataclasses import asdict
from xml.etree import ElementTree

from ..report import to_json as to_json_text
from ..targets.violation import LintRecord
from ..verdict import GateRecord
from .markup import add_case, draw_table, escape, spell_code, spell_text


def draw_lint(record: LintRecord) -> list[str]:
    """The violations as paragraphs of Markdown; none where there are none."""
    headers = ("level", "where", "rule", "found", "allowed", "source")
    rows = [
        (
            each.level,
            spell_code(each.where),
            spell_code(each.rule),
            *map(spell_text, (each.found, each.allowed, each.source)),
        )
        for each in record.violations
    ]
    return [draw_table(headers, rows)] if rows else []


def to_markdown(record: LintRecord) -> str:
    """The lint alone as GitHub-flavoured Markdown."""
    outcome = "PASSED" if record.passed else "FAILED"
    lines = [f"## onnxcalib validate: {outcome}", f"{spell_code(record.model)}: {spell_text(record.text)}."]
    return "\n\n".join([*lines, *draw_lint(record)]) + "\n"


def to_junit(record: LintRecord) -> str:
    """The lint alone as JUnit XML of one test case."""
    counts = {"tests": "1", "failures": str(int(not record.passed)), "errors": "0"}
    root = ElementTree.Element("testsuites", counts)
    name = escape(f"onnxcalib validate {record.model}")
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, "skipped": "0", **counts})
    add_case(suite, GateRecord("target", record.passed, record.text), [each.text for each in record.violations])
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def to_json(record: LintRecord) -> str:
    """The lint alone as JSON text, at the key that it has in a verdict."""
    return to_json_text({"passed": record.passed, "quantized_model": record.model, "lint": asdict(record)})
