"""What a command reads and writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxcalib.cli.files import check_folders, list_read
from onnxcalib.config import QuantizeConfig, ValidateConfig
from onnxcalib.errors import OutputError


def test_files_that_settings_name_are_read():
    data = {"tokenizer": "t.json"}
    assert list_read(QuantizeConfig(latencies="l.csv", data=data)) == [Path("l.csv"), Path("t.json")]
    assert list_read(ValidateConfig(data=data)) == [Path("t.json")] and list_read(QuantizeConfig()) == []
    assert list_read(ValidateConfig(metric="a.b:f")) == [Path("a/b.py"), Path("a/b/__init__.py")]


@pytest.mark.parametrize("cache", ["samples", "samples/new", "link"])
def test_a_cache_in_a_folder_that_is_read_is_refused(tmp_path, cache):
    (tmp_path / "samples").mkdir()
    (tmp_path / "link").symlink_to("samples")
    settings = QuantizeConfig(cache_dir=str(tmp_path / cache))
    with pytest.raises(OutputError, match=r"^cache_dir: .* lies in .*samples, which this run reads; that folder stays"):
        check_folders(settings, [], [None, tmp_path / "samples"])


def test_a_cache_in_place_of_an_output_is_refused(tmp_path):
    settings = QuantizeConfig(cache_dir=str(tmp_path / "p.json"))
    with pytest.raises(OutputError, match=r"^cache_dir: .*p\.json is an output of this run; choose another folder"):
        check_folders(settings, [tmp_path / "p.json"], [])
    check_folders(settings, [tmp_path / "q.json"], [tmp_path / "x.npy"])
