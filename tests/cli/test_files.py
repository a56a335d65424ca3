"""What a command reads and writes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from onnxcalib.cli.files import check_folders, list_read
from onnxcalib.config import QuantizeConfig, ValidateConfig
from onnxcalib.errors import OutputError
from onnxcalib.outputs import claim_outputs


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


def test_external_data_are_never_an_output_and_not_looked_for_where_none_is_there(tmp_path, build, draw, monkeypatch):
    model = build("g (float[N, 8] x) => (float[N, 8] y) { y = MatMul (x, w) }", w=draw(8, 8))
    kept = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    onnx.save(model, tmp_path / "m.onnx", **kept)
    (tmp_path / "link").symlink_to("w.bin")
    for name in ("w.bin", "link"):
        with pytest.raises(OutputError, match="is read by this run; what is read is never overwritten"):
            claim_outputs({"--json": tmp_path / name}, [], [tmp_path / "m.onnx"])
    monkeypatch.setattr("onnxcalib.outputs.stored_files", None)
    assert claim_outputs({"--json": tmp_path / "new.json", "--html": None}, [], [tmp_path / "m.onnx"]) == []
