"""Files that replace others: whole or not at all, together, and never one that the run reads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from onnxcalib.errors import OutputError
from onnxcalib.files.scratch import sweep
from onnxcalib.files.writing import check_output, check_outputs, replacing, write_file, write_together


def test_a_new_file_in_an_existing_folder_is_allowed(tmp_path):
    assert check_output(tmp_path / "out.onnx", tmp_path / "in.onnx") is None


@pytest.mark.parametrize("link", ["none", "relative", "symbolic", "hard"])
def test_an_output_that_is_the_input_is_refused_however_it_is_spelled(tmp_path, link):
    source = tmp_path / "in.onnx"
    source.write_bytes(b"model")
    (tmp_path / "sub").mkdir()
    output = {"none": source, "relative": tmp_path / "sub" / ".." / "in.onnx"}.get(link, tmp_path / "out.onnx")
    if link == "symbolic":
        output.symlink_to(source)
    if link == "hard":
        output.hardlink_to(source)
    with pytest.raises(OutputError, match="is read by this run; what is read is never overwritten"):
        check_output(output, source)


def test_an_output_that_would_be_the_input_is_refused_before_either_exists(tmp_path):
    with pytest.raises(OutputError, match="is read by this run"):
        check_output(tmp_path / "m.onnx", tmp_path / "." / "m.onnx")


def test_an_output_that_is_a_directory_is_refused(tmp_path):
    with pytest.raises(OutputError, match="is a directory; a file name is needed"):
        check_output(tmp_path)


def test_standard_output_is_no_output():
    with pytest.raises(OutputError, match=r"^-: is no name of a file here; results are not written to standard output"):
        check_output("-")


def test_an_output_that_is_a_device_is_refused():
    with pytest.raises(OutputError, match="/dev/null: is no regular file; it would be replaced"):
        check_output("/dev/null")


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/new", "/dev/fd/1", "/proc/self/fd/1", "/sys/new"])
def test_nothing_is_written_where_the_system_keeps_devices(path, tmp_path):
    """A run with standard output in a file would replace the link /dev/stdout."""
    code = f"from pathlib import Path; from onnxcalib.files.writing import check_output; check_output(Path({path!r}))"
    with open(tmp_path / "log", "wb") as log:
        done = subprocess.run([sys.executable, "-c", code], stdout=log, stderr=subprocess.PIPE, text=True, check=False)
    assert f"OutputError: {path}: " in done.stderr


def test_an_output_in_a_missing_folder_is_refused_with_the_folder(tmp_path):
    with pytest.raises(
        OutputError, match=r"the folder .*nowhere does not exist; an existing one is needed; make it first"
    ):
        check_output(tmp_path / "nowhere" / "m.onnx")


def test_an_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file is no folder; an existing one is needed"):
        check_output(tmp_path / "file" / "m.onnx")


def test_an_output_in_a_folder_without_the_right_to_write_is_refused(tmp_path, monkeypatch):
    # The tests may run as root, who may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="is not writable; choose another output"):
        check_output(tmp_path / "m.onnx")


def test_a_file_is_written_in_utf_8_and_replaces_the_old_one(tmp_path):
    (tmp_path / "a.md").write_text("old text that is longer")
    write_file(tmp_path / "a.md", "größer\n")
    assert (tmp_path / "a.md").read_bytes() == "größer\n".encode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.md"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "a.md").write_text("old")

    def fail(source, target):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OutputError, match=r"a\.md: cannot be written \(No space left on device\); room"):
        write_file(tmp_path / "a.md", "new")
    assert (tmp_path / "a.md").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.md"]


def test_text_that_is_no_unicode_is_written_all_the_same(tmp_path):
    """Names of tensors and files may hold anything; a lone surrogate stands for a byte of a file name."""
    write_file(tmp_path / "a.md", "name \udcff\n")
    assert (tmp_path / "a.md").read_bytes().startswith(b"name ")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_name_as_long_as_the_system_allows_is_written_and_a_longer_one_refused_before_any_work(tmp_path):
    longest = tmp_path / ("n" * 255)
    check_output(longest)
    write_file(longest, "text")
    assert longest.read_text() == "text"
    with pytest.raises(OutputError, match=r"nnn: cannot be written \(File name too long\); choose another output"):
        check_output(tmp_path / ("n" * 256))


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    with pytest.raises(OutputError, match="cannot be written"):
        check_output(tmp_path / name)


def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OutputError, match=r"a: cannot be written \(.*[Ss]ymlink loop|a: cannot be written \(Too many"):
        check_output(tmp_path / "a")


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_an_output_that_is_linked_with_a_file_of_a_folder_that_is_read_is_refused(tmp_path, link):
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "x.npy").write_bytes(b"x")
    link(tmp_path / "data" / "deep" / "x.npy", tmp_path / "out")
    with pytest.raises(OutputError, match=r"out: (is the file|lies in) .*data.*, which this run reads"):
        check_output(tmp_path / "out", tmp_path / "data")


def test_a_link_to_itself_among_what_is_read_is_no_fault_of_the_output(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "loop.npy").symlink_to("loop.npy")
    (tmp_path / "old.onnx").write_bytes(b"old")
    check_output(tmp_path / "old.onnx", tmp_path / "data")


def test_an_output_in_a_folder_that_a_link_in_the_data_leads_to_is_refused(tmp_path):
    for name in ("data", "cats", "hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "0").symlink_to(tmp_path / "cats")
    (tmp_path / "data" / ".cache").symlink_to(tmp_path / "hidden")
    with pytest.raises(OutputError, match=r"new\.onnx: lies in .*data, which this run reads"):
        check_output(tmp_path / "cats" / "new.onnx", tmp_path / "data")
    check_output(tmp_path / "hidden" / "new.onnx", tmp_path / "data")


def test_several_files_change_in_the_order_in_which_they_were_begun(tmp_path, monkeypatch):
    renamed = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (renamed.append(new.name), replace(old, new)))
    write_together({tmp_path / "report.json": "{}", tmp_path / "model.onnx": b"model"})
    assert renamed == ["report.json", "model.onnx"] and names(tmp_path) == ["model.onnx", "report.json"]


def test_a_failure_before_the_last_file_is_whole_changes_none(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), replacing() as files:
        files.write(tmp_path / "a", "new")
        raise ZeroDivisionError
    with pytest.raises(OutputError, match="absent/b: cannot be written"):
        write_together({tmp_path / "a": "new", tmp_path / "absent" / "b": "new"})
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_what_a_killed_run_wrote_aside_is_swept_and_what_a_live_one_writes_is_not(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom onnxcalib.files.writing import replacing\n"
        "with replacing() as files:\n    files.write(Path(sys.argv[1]), 'text')\n    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "a"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        (aside,) = tmp_path.iterdir()
        assert sweep(tmp_path) == [] and aside.exists()
        process.kill()
        process.wait()
    assert aside in sweep(tmp_path) and names(tmp_path) == []


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"model")
    (tmp_path / "data").mkdir()
    return tmp_path


def check(outputs, sources=()):
    check_outputs({option: path and Path(path) for option, path in outputs.items()}, map(Path, sources))


def test_new_files_and_old_reports_may_be_written(folder):
    (folder / "old.json").write_text("{}")
    check({"--json": "old.json", "--junit": "new.xml", "--markdown": None}, ["model.onnx", "data"])
    with pytest.raises(OutputError, match=r"data/new\.json: lies in data, which this run reads; .*; choose another"):
        check({"--json": "data/new.json"}, ["model.onnx", "data"])


@pytest.mark.parametrize("output", ["model.onnx", "./model.onnx", "data/../model.onnx", "link.onnx", "hard.onnx"])
def test_what_is_read_is_never_an_output_whatever_its_name(folder, output):
    (folder / "link.onnx").symlink_to("model.onnx")
    os.link(folder / "model.onnx", folder / "hard.onnx")
    with pytest.raises(OutputError, match="is read by this run; what is read is never overwritten; choose another"):
        check({"--json": output}, ["other.onnx", "model.onnx"])


@pytest.mark.parametrize("other", ["a.json", "./a.json", "data/../a.json", "hard.json"])
def test_one_place_for_two_files_is_refused_by_both_options(folder, other):
    (folder / "a.json").write_text("{}")
    os.link(folder / "a.json", folder / "hard.json")
    text = "is the file of both --json and --junit; one would replace the other; give one of them another name"
    with pytest.raises(OutputError, match=re.escape(text)):
        check({"--json": "a.json", "--junit": other, "--markdown": None})


def test_every_output_is_looked_at(folder):
    with pytest.raises(OutputError, match=re.escape("model.onnx: is read by this run")):
        check({"--json": "a.json", "--junit": None, "--markdown": "model.onnx"}, ["model.onnx"])


@pytest.mark.parametrize("name", ["n" * 5000, "loop"])
def test_an_impossible_name_beside_another_output_is_refused(folder, name):
    (folder / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match="cannot be written"):
        check({"--json": "a.json", "--junit": name})


@pytest.mark.parametrize("source", ["n" * 5000, "a\0b", "loop"])
def test_an_impossible_input_is_no_fault_of_an_output(folder, source):
    (folder / "loop").symlink_to("loop")
    check({"--json": "a.json"}, [source])
