"""What a command reads and writes."""

from __future__ import annotations

from pathlib import Path

from onnxcalib.cli.files import list_read
from onnxcalib.config import QuantizeConfig, ValidateConfig


def test_files_that_settings_name_are_read():
    data = {"tokenizer": "t.json"}
    assert list_read(QuantizeConfig(latencies="l.csv", data=data)) == [Path("l.csv"), Path("t.json")]
    assert list_read(ValidateConfig(data=data)) == [Path("t.json")] and list_read(QuantizeConfig()) == []
    assert list_read(ValidateConfig(metric="a.b:f")) == [Path("a/b.py"), Path("a/b/__init__.py")]
