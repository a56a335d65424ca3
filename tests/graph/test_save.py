import os
import re
import resource
from contextlib import contextmanager

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcalib.errors import OutputError
from onnxcalib.files.scratch import claimed
from onnxcalib.graph import save
from onnxcalib.graph.save import remove_stale_data, save_model
from onnxcalib.graph.stream import model_bytes
from onnxcalib.graph.values import PAGE_BYTES


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
    (data,) = set(names(tmp_path)) - {"m.onnx"}
    assert re.fullmatch(r"m\.onnx\.[0-9a-f]{16}\.data", data)
    assert model.SerializeToString() == untouched
    bare = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    places = {tensor.name: {e.key: e.value for e in tensor.external_data} for tensor in bare.graph.initializer}
    assert places["w"]["location"] == data and places["c"] == {}
    assert all(int(place["offset"]) % PAGE_BYTES == 0 for place in places.values() if place)
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
    assert next(tmp_path.glob("m.onnx.*.data")).stat().st_size < 4 * PAGE_BYTES + 5000


@pytest.mark.parametrize("most_bytes", [save.MOST_BYTES, 100], ids=["one file", "external data"])
def test_a_disk_that_is_full_leaves_nothing_new_and_the_old_file_as_it_was(tmp_path, model, most_bytes):
    (tmp_path / "m.onnx").write_text("old")
    with file_size_limit(1000), pytest.raises(OutputError, match=r"m\.onnx.*: cannot be written \(File too large\)"):
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


@pytest.mark.parametrize(("lasting", "waits"), [(True, 3), (False, 0)])
def test_the_disk_is_waited_for_unless_the_file_is_a_passing_one(tmp_path, model, monkeypatch, lasting, waits):
    waited = []
    monkeypatch.setattr(os, "fsync", waited.append)
    save_model(model, tmp_path / "m.onnx", most_bytes=100, lasting=lasting)
    assert len(waited) == waits and len(names(tmp_path)) == 2


def test_a_new_version_has_a_data_file_of_its_own_and_the_old_one_goes(tmp_path, model):
    save_model(model, tmp_path / "m.onnx", most_bytes=100)
    before = names(tmp_path)
    save_model(model, tmp_path / "m.onnx", most_bytes=100)
    assert names(tmp_path) == before
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    save_model(model, tmp_path / "m.onnx", most_bytes=100)
    assert len(names(tmp_path)) == 2 and names(tmp_path) != before
    assert onnx.load(tmp_path / "m.onnx").graph.initializer[0].raw_data == model.graph.initializer[0].raw_data


@pytest.mark.parametrize("fails", [1, 2, 3])
def test_a_renaming_that_fails_leaves_the_old_model_on_its_own_weights(tmp_path, model, monkeypatch, fails):
    save_model(model, tmp_path / "m.onnx", most_bytes=100)
    old, before = onnx.load(tmp_path / "m.onnx"), names(tmp_path)
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    replace, calls = os.replace, []

    def fail(source, target):
        calls.append(target)
        if len(calls) == fails:
            raise OSError(28, os.strerror(28))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match="cannot be written"):
        save_model(model, tmp_path / "m.onnx", beside={tmp_path / "report.json": "{}"}, most_bytes=100)
    assert [target.suffix for target in calls] == [".json", ".data", ".onnx"][:fails]
    assert onnx.load(tmp_path / "m.onnx") == old
    assert set(names(tmp_path)) - {"report.json"} == set(before)


@pytest.mark.parametrize("at", range(6))
def test_a_models_file_is_looked_through_for_its_tensors_piece_by_piece(tmp_path, monkeypatch, at):
    monkeypatch.setattr("onnxcalib.graph.save.PIECE_BYTES", 5)
    used, stale = tmp_path / f"m.onnx.{'0' * 16}.data", tmp_path / f"m.onnx.{'1' * 16}.data"
    for path in (used, stale):
        path.write_bytes(b"old")
    (tmp_path / "m.onnx").write_bytes(b"x" * at + used.name.encode() + b"y" * 7)
    assert remove_stale_data(tmp_path / "m.onnx") == [stale]


@pytest.mark.parametrize("name", ["a\nb.onnx", "[a.onnx", "a.data.onnx"])
def test_stale_tensors_of_a_model_with_an_odd_name_are_removed(tmp_path, name):
    stale = tmp_path / f"{name}.{'0' * 16}.data"
    stale.write_bytes(b"old")
    assert remove_stale_data(tmp_path / name) == [stale]


def test_tensors_that_a_killed_run_left_are_removed_unless_a_model_needs_them(tmp_path, model):
    save_model(model, tmp_path / "m.onnx", most_bytes=100)
    (used,) = tmp_path.glob("*.data")
    stale, foreign = tmp_path / f"m.onnx.{'0' * 16}.data", tmp_path / "m.onnx.data"
    for path in (stale, foreign):
        path.write_bytes(b"old")
    assert remove_stale_data(tmp_path / "m.onnx") == [stale]
    assert names(tmp_path) == sorted(["m.onnx", used.name, foreign.name])
    stale.write_bytes(b"new")
    with claimed(stale) as free:  # as another run does until its model has its name
        assert free and remove_stale_data(tmp_path / "m.onnx") == [] and stale.exists()
    stale.unlink()
    (tmp_path / "m.onnx").rename(tmp_path / "kept.onnx")
    assert remove_stale_data(tmp_path / "m.onnx") == [] and used.exists()
