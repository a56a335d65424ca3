"""The reference: one row for every setting, grouped as the help is."""

from __future__ import annotations

import re
import subprocess
import sys

from onnxcalib.config import DataConfig, LayerConfig, QuantizeConfig, ValidateConfig
from onnxcalib.config.reference import render_reference


def rows():
    cells = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in render_reference().splitlines() if line[:1] == "|"]
    return [each for each in cells if each[0] not in ("key", "---|---|---|---|---")]


def test_every_setting_has_one_row():
    tables = {"": QuantizeConfig, "[data]": DataConfig, "[validate]": ValidateConfig, '[layers."NAME"]': LayerConfig}
    expected = {
        f"`{table}` `{name}`" if table else f"`{name}`"
        for table, kind in tables.items()
        for name in kind.model_fields
        if name != "data"
    }
    keys = [row[0] for row in rows()]
    assert set(keys) == expected and len(keys) == len(expected)
    assert {len(row) for row in rows()} == {5}


def test_a_row_says_all_that_the_help_says():
    found = {row[0]: row[1:] for row in rows()}
    text = "Bits of the weights of all layers; 3 are stored in 4."
    assert found["`weight_bits`"] == ["`--weight-bits` (*quantize*)", "`8`, `4`, `3`, `2`", "8", text]
    assert found["`[data]` `pairs`"][:3] == ["`--pairs`, `--no-pairs`", "`true` or `false`", "false"]
    assert found["`percentile`"][1] == "number, above 50, at most 100"
    assert found["`layers`"][0] == "in the file only"


def test_it_can_be_printed():
    command = [sys.executable, "-W", "error", "-m", "onnxcalib.config.reference"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == render_reference()
