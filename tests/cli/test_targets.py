"""``onnxcalib targets``: the table of targets."""

from __future__ import annotations

from onnxcalib.cli.main import main
from onnxcalib.targets import list_targets


def test_every_target_is_listed_with_what_can_be_proved_here(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["targets"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["target", "for"]
    names = [line.split()[0] for line in lines[1:] if not line.startswith(" ")]
    assert names == [target.name for target in list_targets()]
    assert "onnxruntime is" in "".join(lines) and "lint only" in "".join(lines)
    assert last == "validate --target reads rules off a file, and with --data runs it in openvino and onnxruntime_qnn"
