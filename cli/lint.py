"""Print a file against the rules of a target."""

from __future__ import annotations

from rich.console import Console

from onnxcalib.targets import LintRecord

from .console import print_lines


def print_lint(record: LintRecord, console: Console) -> None:
    """Print the violations of a target's rules, one a line, and last how many rules hold."""
    if record.violations:
        print_lines(console, list_violations(record))
    outcome = "PASSED" if record.passed else "FAILED"
    style = "bold green" if record.passed else "bold red"
    print_lines(console, [" ".join(f"{outcome}: {record.model}: {record.text}".split())], style=style)


def list_violations(record: LintRecord) -> list[str]:
    return [f"  {' '.join(each.text.split())}" for each in record.violations]
