"""What benchmarks have in common that make each file in a process of its own: their options, and such a process."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from accuracy import ROOT


def open_parser(text: str | None) -> argparse.ArgumentParser:
    """A parser with the options of all of them; ``--job`` is what a process of its own gets."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("ONNXCALIB_DATA", ROOT.parent / "shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="folder with models, images and text/")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="folder for the files made")
    parser.add_argument("--keep", action="store_true", help="judge the files in --out, without making them again")
    parser.add_argument("--json", type=Path, help="write all rows there")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    return parser


def run_job(script: str, job: dict[str, Any]) -> dict[str, Any]:
    """What the script prints last for this job, as JSON; one that fails says why under ``failed``."""
    command = [sys.executable, str(Path(script).resolve()), "--job", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def render_row(head: str, row: dict[str, Any], formats: dict[str, str], width: int) -> str:
    """A line of the table: behind ``head`` the values of ``formats`` in columns, or why the row failed."""
    if "failed" in row:
        return f"{head} failed: {row['failed']}"
    return head + "".join(f"{format(row[key], form):>{width}}" for key, form in formats.items())
