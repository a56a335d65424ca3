import os
import resource
from contextlib import contextmanager

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcalib.errors import OutputError
from onnxcalib.graph import save
from onnxcalib.graph.save import check_output, model_bytes, save_model, write_file


@pytest.fixture
def model(build, draw):
    return build(
        "g (float[N, 40] x) => (float[N, 3] y) { a = MatMul (x, w) b = MatMul (a, v) y = Add (b, c) }",
        w=draw(40, 30),
        v=draw(30, 3),
        c=draw(3),
    )


@contextmanager
def file_size_limit(size):
    """Within it the system refuses to let a file grow beyond that size, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_small_model_is_one_file_that_reads_back_equal(tmp_path, model):
    save_model(model, tmp_path / "m.onnx")
    assert names(tmp_path) == ["m.onnx"]
    assert onnx.load(tmp_path / "m.onnx") == model


def test_an_older_file_is_replaced(tmp_path, model):
    (tmp_path / "m.onnx").write_text("old")
    save_model(model, tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx") == model


def test_a_model_above_the_limit_has_its_larger_tensors_in_a_file_beside_it(tmp_path, model, run, draw):
    untouched = model.SerializeToString()
    save_model(model, tmp_path / "m.onnx", most_bytes=100)
    assert names(tmp_path) == ["m.onnx", "m.onnx.data"]
    assert model.SerializeToString() == untouched
    bare = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    places = {tensor.name: {e.key: e.value for e in tensor.external_data} for tensor in bare.graph.initializer}
    assert places["w"]["location"] == "m.onnx.data" and places["c"] == {}
    assert all(int(place["offset"]) % save.PAGE_BYTES == 0 for place in places.values() if place)
    onnx.checker.check_model(tmp_path / "m.onnx", full_check=True)
    read = onnx.load(tmp_path / "m.onnx")
    for then, now in zip(model.graph.initializer, read.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(now), numpy_helper.to_array(then))
    x = draw(2, 40)
    np.testing.assert_array_equal(run(read, x)[0], run(model, x)[0])


def test_packed_and_typed_tensors_survive_external_data(tmp_path, model):
    floats = helper.make_tensor("typed", TensorProto.FLOAT, [400], np.arange(400, dtype=np.float32))
    packed = helper.make_tensor("packed", TensorProto.INT4, [3001], np.arange(3001) % 16 - 8)
    model.graph.initializer.extend([floats, packed])
    save_model(model, tmp_path / "m.onnx", most_bytes=100)
    read = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "m.onnx").graph.initializer}
    np.testing.assert_array_equal(read["typed"], np.arange(400, dtype=np.float32))
    np.testing.assert_array_equal(read["packed"].astype(int), np.arange(3001) % 16 - 8)
    assert (tmp_path / "m.onnx.data").stat().st_size < 4 * save.PAGE_BYTES + 5000


@pytest.mark.parametrize("most_bytes", [save.MOST_BYTES, 100], ids=["one file", "external data"])
def test_a_disk_that_is_full_leaves_nothing_new_and_the_old_file_as_it_was(tmp_path, model, most_bytes):
    (tmp_path / "m.onnx").write_text("old")
    with file_size_limit(1000), pytest.raises(OutputError, match=r"m\.onnx: cannot be written \(File too large\)"):
        save_model(model, tmp_path / "m.onnx", most_bytes=most_bytes)
    assert names(tmp_path) == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_text() == "old"


def test_a_folder_that_is_missing_is_refused_with_its_reason(tmp_path, model):
    with pytest.raises(OutputError, match=r"nowhere/m\.onnx: cannot be written \(No such file or directory\)"):
        save_model(model, tmp_path / "nowhere" / "m.onnx")


def test_an_interruption_passes_through_and_leaves_nothing(tmp_path, model, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_model(model, tmp_path / "m.onnx")
    assert names(tmp_path) == []


def test_the_size_told_is_that_of_the_file(tmp_path, model):
    save_model(model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_size == model_bytes(model)


def test_a_new_file_in_an_existing_folder_is_allowed(tmp_path):
    assert check_output(tmp_path / "out.onnx", tmp_path / "in.onnx") is None


@pytest.mark.parametrize("link", ["none", "relative", "symbolic", "hard"])
def test_an_output_that_is_the_input_is_refused_however_it_is_spelled(tmp_path, model, link):
    source = tmp_path / "in.onnx"
    onnx.save(model, source)
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


def test_an_output_that_is_a_device_is_refused():
    with pytest.raises(OutputError, match="/dev/null: is no regular file; it would be replaced"):
        check_output("/dev/null")


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


@pytest.mark.parametrize(("lasting", "waits"), [(True, 2), (False, 0)])
def test_the_disk_is_waited_for_unless_the_file_is_a_passing_one(tmp_path, model, monkeypatch, lasting, waits):
    waited = []
    monkeypatch.setattr(save.os, "fsync", waited.append)
    save_model(model, tmp_path / "m.onnx", most_bytes=100, lasting=lasting)
    assert len(waited) == waits and (tmp_path / "m.onnx.data").exists()


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
    with pytest.raises(OutputError, match=r"a\.md: cannot be written: No space left on device; give another path"):
        write_file(tmp_path / "a.md", "new")
    assert (tmp_path / "a.md").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.md"]


def test_text_that_is_no_unicode_is_written_all_the_same(tmp_path):
    """Names of tensors and files may hold anything; a lone surrogate stands for a byte of a file name."""
    write_file(tmp_path / "a.md", "name \udcff\n")
    assert (tmp_path / "a.md").read_bytes().startswith(b"name ")
