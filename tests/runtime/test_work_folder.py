"""The folder of a run that outlives it: its records are whole or not there, and nothing of others is touched."""

import os
from pathlib import Path

import pytest

from onnxcalib.errors import OutputError
from onnxcalib.runtime import work_folder
from onnxcalib.runtime.work_folder import WorkFolder


def test_records_are_kept_under_their_subject(tmp_path):
    folder = WorkFolder(tmp_path / "w")
    folder.subject = "a"
    folder.write(("x", 1, int), ("y", "z", str))
    assert (folder.read("x", int), folder.read("y", str), folder.read("x", str)) == (1, "z", None)
    assert folder.has("x") and not folder.has("z") and folder.count_bytes() > 100
    folder.subject = "b"
    assert folder.read("x", int) is None


def test_what_is_not_kept_is_removed_and_files_of_others_are_not(tmp_path):
    folder = WorkFolder(tmp_path / "w")
    folder.write(("x", 1, int), ("y", 1, int))
    (tmp_path / "w" / ".onnxcalib-0123.tmp").write_text("")
    (tmp_path / "w" / "notes.txt").write_text("")
    folder.clear(keep=lambda name: name == "x.record")
    assert sorted(os.listdir(tmp_path / "w")) == ["notes.txt", "x.record"]
    folder.remove()
    assert os.listdir(tmp_path / "w") == ["notes.txt"]
    with pytest.raises(OutputError, match=r"w: found 'notes.txt', which is no checkpoint; .* --work-dir"):
        WorkFolder(tmp_path / "w")


def test_a_folder_goes_when_it_is_removed_and_stays_when_it_is_closed(tmp_path):
    folder = WorkFolder(tmp_path / "w")
    folder.close()
    assert (tmp_path / "w").is_dir()
    again = WorkFolder(tmp_path / "w")
    again.remove()
    assert not (tmp_path / "w").exists()


def test_what_is_no_folder_or_anothers_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link", "file/w"):
        with pytest.raises(OutputError, match=f"{name}: checkpoints cannot be kept there .*; room and the right"):
            WorkFolder(tmp_path / name)
    (tmp_path / "w").mkdir()
    monkeypatch.setattr(work_folder.os, "getuid", lambda: -1)
    with pytest.raises(OutputError, match=r"w: checkpoints cannot be kept there \(another user's\)"):
        WorkFolder(tmp_path / "w")


def test_a_folder_is_removed_from_wherever_the_process_has_gone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = WorkFolder(Path("q.checkpoints"))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    folder.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
