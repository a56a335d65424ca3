"""Temporary folders: they end with their run, those of killed runs with the next one."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile

import pytest

from onnxcalib.errors import OutputError
from onnxcalib.files.scratch import Scratch, remove_held, room_in, sweep


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_ends_with_its_block_or_with_its_object(temporary):
    with Scratch() as folder:
        (folder / "file").write_text("text")
        assert folder.parent == temporary
    assert list(temporary.iterdir()) == []
    scratch = Scratch()
    assert scratch.path.is_dir()
    del scratch
    gc.collect()
    assert list(temporary.iterdir()) == []


def test_all_folders_of_this_process_end_at_once(temporary):
    first, second = Scratch(), Scratch()
    remove_held()
    assert not first.path.exists() and not second.path.exists()


def test_the_folder_of_a_killed_run_is_swept_and_that_of_a_live_one_is_not(temporary):
    code = (
        "import time\nfrom onnxcalib.files.scratch import Scratch\n"
        "scratch = Scratch()\nprint(scratch.path, flush=True)\ntime.sleep(60)"
    )
    command, environment = [sys.executable, "-c", code], {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        folder = temporary / os.path.basename(process.stdout.readline().strip())
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("text")
        own = Scratch()
        assert sweep() == [] and folder.is_dir()
        process.kill()
        process.wait()
    assert sweep() == [folder] and not folder.exists() and own.path.is_dir()


def test_what_only_looks_like_a_folder_of_ours_is_not_followed(temporary):
    (temporary / "mine").mkdir()
    (temporary / "mine" / "file").write_text("text")
    (temporary / "onnxcalib-link").symlink_to("mine")
    (temporary / "onnxcalib-file").write_text("text")
    assert sweep() == [] and (temporary / "mine" / "file").exists() and (temporary / "onnxcalib-file").exists()


def test_a_forked_process_leaves_the_folder_of_its_parent(temporary):
    scratch = Scratch()
    child = os.fork()
    if child == 0:
        scratch.remove()
        os._exit(0)
    os.waitpid(child, 0)
    assert scratch.path.is_dir()


def test_a_place_where_no_folder_can_be_made_is_an_error_that_names_it(temporary, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "absent"))
    with pytest.raises(OutputError, match=r"no temporary folder can be made here \(No such file or directory\); free"):
        Scratch()


def test_a_full_disk_is_an_error_that_names_the_folder(temporary):
    with pytest.raises(OutputError, match=r"temporary files cannot be kept here \(No space left on device\)"):
        with room_in(temporary):
            raise OSError(28, os.strerror(28))


def test_a_folder_that_another_run_sweeps_before_it_is_locked_is_made_anew(temporary, monkeypatch):
    make, made = tempfile.mkdtemp, []

    def make_and_lose(prefix):
        made.append(make(prefix=prefix))
        if len(made) == 1:
            os.rmdir(made[0])
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_lose)
    assert Scratch().path == temporary / os.path.basename(made[1])
