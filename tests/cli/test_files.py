"""Files that a command writes: never over what it reads, never two in one place, each whole or not at all."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from onnxcalib.cli.files import check_targets, list_read
from onnxcalib.config import QuantizeConfig, ValidateConfig
from onnxcalib.errors import OutputError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"model")
    (tmp_path / "data").mkdir()
    return tmp_path


def check(targets, sources=()):
    check_targets(
        {option: path and Path(path) for option, path in targets.items()}, [path and Path(path) for path in sources]
    )


def test_new_files_and_old_reports_may_be_written(folder):
    (folder / "old.json").write_text("{}")
    check({"--json": "old.json", "--junit": "new.xml", "--markdown": None}, ["model.onnx", "data", None])
    with pytest.raises(OutputError, match=r"data/new\.json: lies in data, which this run reads; .*; choose another"):
        check({"--json": "data/new.json"}, ["model.onnx", "data"])


@pytest.mark.parametrize("target", ["model.onnx", "./model.onnx", "data/../model.onnx", "link.onnx", "hard.onnx"])
def test_what_is_read_is_never_a_target_whatever_its_name(folder, target):
    (folder / "link.onnx").symlink_to("model.onnx")
    os.link(folder / "model.onnx", folder / "hard.onnx")
    with pytest.raises(OutputError, match="is read by this run; what is read is never overwritten; choose another"):
        check({"--json": target}, ["other.onnx", "model.onnx"])


def test_files_that_settings_name_are_read():
    data = {"tokenizer": "t.json"}
    assert list_read(QuantizeConfig(latencies="l.csv", data=data)) == [Path("l.csv"), Path("t.json")]
    assert list_read(ValidateConfig(data=data)) == [Path("t.json")] and list_read(QuantizeConfig()) == []


def test_a_folder_of_samples_is_no_target():
    with pytest.raises(OutputError, match="data: is read by this run"):
        check({"--json": "data"}, ["data"])
    with pytest.raises(OutputError, match="data: is a directory; a file name is needed"):
        check({"--json": "data"})


def test_a_missing_folder_is_refused():
    with pytest.raises(OutputError, match=re.escape("absent/a.json: the folder absent does not exist")):
        check({"--json": "absent/a.json"})


@pytest.mark.parametrize("other", ["a.json", "./a.json", "data/../a.json"])
def test_one_place_for_two_files_is_refused_by_both_options(other):
    text = "is the file of both --json and --junit; one would replace the other; give one of them another name"
    with pytest.raises(OutputError, match=re.escape(text)):
        check({"--json": "a.json", "--junit": other, "--markdown": None})


def test_every_target_is_looked_at():
    with pytest.raises(OutputError, match=re.escape("model.onnx: is read by this run")):
        check({"--json": "a.json", "--junit": None, "--markdown": "model.onnx"}, ["model.onnx"])
