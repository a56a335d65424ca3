import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from onnxcalib.errors import ModelError, OutputError
from onnxcalib.graph import values
from onnxcalib.graph.edit import add_constant, write_operand
from onnxcalib.graph.index import Index
from onnxcalib.graph.load import load_model
from onnxcalib.graph.passes.float16 import widen_float16
from onnxcalib.graph.passes.normalise import lift_constants
from onnxcalib.graph.values import bring_in, find_place, is_outside, read_pieces, read_values, with_values
from onnxcalib.graph.weight_file import (
    FileIntegers,
    WeightFile,
    make_tensor,
    move_out,
    put_integers,
    put_parts,
    put_zeros,
)

LARGE = (300, 301)


@pytest.fixture
def file():
    opened = WeightFile()
    opened.open()
    with opened.taking():
        yield opened


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.int4, np.int8, np.bool_])
def test_a_large_value_goes_to_the_file_and_comes_back(file, draw, dtype):
    values = (3 * draw(*LARGE)).astype(dtype).T
    tensor = make_tensor("w", values)
    assert is_outside(tensor)
    found = read_values(tensor)
    assert (found.dtype, found.shape) == (values.dtype, values.shape)
    np.testing.assert_array_equal(found.astype(np.float32), values.astype(np.float32))
    bring_in(tensor)
    assert tensor == numpy_helper.from_array(values, "w")


def test_small_values_and_those_of_small_models_stay(draw):
    for opened in (False, True):
        file = WeightFile()
        with file.taking():
            if opened:
                file.open()
            values = draw(5) if opened else draw(*LARGE)
            assert make_tensor("w", values) == numpy_helper.from_array(values, "w")
            assert put_integers(values, 8) is values
    assert not is_outside(make_tensor("w", draw(*LARGE)))


def test_the_file_ends_with_its_owner(draw):
    file = WeightFile()
    file.open()
    with file.taking():
        path = find_place(make_tensor("w", draw(*LARGE))).file
    assert path.exists()
    del file
    assert not path.parent.exists()


def test_a_full_disk_is_told(file, draw, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(OutputError, match=r"temporary files cannot be kept here \(No space left on device\)"):
        make_tensor("w", draw(*LARGE))


def test_a_temporary_folder_that_no_tensor_can_name_is_refused(tmp_path, monkeypatch):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    os.mkdir(folder)
    monkeypatch.setattr("tempfile.tempdir", folder)
    with pytest.raises(OutputError, match=r"its name is no UTF-8; .*; set TMPDIR to another folder"):
        WeightFile().open()


@pytest.mark.parametrize("bits", [4, 8])
def test_integers_are_kept_part_by_part_and_stored_as_they_are(file, bits):
    integers = (np.arange(300 * 302) % 15 - 7).astype(np.int8).reshape(300, 302)
    kept = put_parts(iter(np.split(integers, [100, 200])), integers.shape, bits)
    assert isinstance(kept, FileIntegers) and kept.shape == integers.shape
    np.testing.assert_array_equal(kept.read(), integers)
    stored = kept.store("w", (300, 151, 2))
    assert find_place(stored).length == integers.size * bits // 8
    kind = np.int8 if bits == 8 else ml_dtypes.int4
    bring_in(stored)
    assert stored == numpy_helper.from_array(integers.reshape(300, 151, 2).astype(kind), "w")


def test_threads_that_share_a_run_write_one_after_the_other(file, draw):
    arrays, going = [draw(*LARGE) for _ in range(2)], Barrier(2)

    def give(array):
        for half in np.split(array, 2):
            with suppress(BrokenBarrierError):
                going.wait(0.05)
            yield half.tobytes()

    with ThreadPoolExecutor() as pool:
        places = list(pool.map(lambda array: file.write(give(array)), arrays))
    for array, place in zip(arrays, places, strict=True):
        found = np.fromfile(place.file, np.float32, array.size, offset=place.offset)
        np.testing.assert_array_equal(found, array.reshape(-1))


def test_turned_integers_are_written_once(file):
    integers = (np.arange(300 * 302) % 15 - 7).astype(np.int8).reshape(300, 302)
    kept = put_integers(integers, 4)
    turned = kept.turn()
    np.testing.assert_array_equal(turned.read(), integers.T)
    assert kept.turn() is turned


def test_zeros_take_no_disk(file):
    kept = put_zeros((4000, 5000), 8)
    assert not kept.read().any()
    assert os.stat(find_place(kept.store("w")).file).st_blocks < 100
    assert find_place(put_zeros((400, 500), 8).store("w")).file == find_place(kept.store("w")).file


@pytest.mark.parametrize(("bits", "size"), [(8, 200_000), (4, 100_000), (3, 100_000), (2, 50_000)])
def test_zeros_and_integers_have_as_many_bytes_as_their_type(file, bits, size):
    zeros, ones = put_zeros((400, 500), bits), put_integers(np.ones((400, 500), np.int8), bits)
    assert find_place(zeros.store("w")).length == find_place(ones.store("w")).length == size


def test_edits_and_passes_leave_large_values_outside(file, build, draw):
    model = build(
        "g (float16[N, 300] x) => (float16[N, 301] y) { y = MatMul (x, w) }", w=draw(*LARGE).astype("float16")
    )
    before = read_values(model.graph.initializer[0])
    assert widen_float16(model) == 1
    assert is_outside(model.graph.initializer[0])
    np.testing.assert_array_equal(read_values(model.graph.initializer[0]), before.astype(np.float32))
    node = next(node for node in model.graph.node if node.op_type == "MatMul")
    node.name = "mul"
    write_operand(model.graph, Index(model.graph), node, 1, 2 * before.astype(np.float32))
    add_constant(model.graph, "v", before)
    assert all(map(is_outside, model.graph.initializer)) and len(model.graph.initializer) == 2
    np.testing.assert_array_equal(read_values(model.graph.initializer[0]), 2 * before.astype(np.float32))


def test_lifted_constants_and_typed_tensors_are_moved_out(file, build, draw):
    model = build("g (float[N, 301] x) => (float[N, 301] y) { w = Constant () y = Add (x, w) }")
    values = draw(*LARGE)
    model.graph.node[0].attribute.add(name="value", type=4, t=numpy_helper.from_array(values))
    assert lift_constants(model) == 1
    assert is_outside(model.graph.initializer[0])
    np.testing.assert_array_equal(read_values(model.graph.initializer[0]), values)
    typed = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=LARGE, float_data=values.reshape(-1))
    move_out(typed)
    assert is_outside(typed) and not typed.float_data
    np.testing.assert_array_equal(read_values(typed), values)


def test_a_large_model_in_memory_is_copied_without_its_large_weights(build, draw, monkeypatch):
    text = "g (float[N, 300] x) => (float[N, 301] y) { h = MatMul (x, w) y = Add (h, b) }"
    model = build(text, w=draw(*LARGE), b=draw(1))
    untouched = model.SerializeToString()
    file = WeightFile()
    with file.taking():
        assert load_model(model) == model and file.folder is None
        monkeypatch.setattr(values, "LEAST_LARGE_MODEL", 1)
        copy = load_model(model)
    assert [is_outside(tensor) for tensor in copy.graph.initializer] == [True, False]
    assert with_values(copy) == model and model.SerializeToString() == untouched
    assert load_model(model) == model  # outside of a run there is no file
    model.graph.initializer[0].raw_data = b"1"
    with file.taking(), pytest.raises(ModelError, match="tensor w: 1 bytes of raw_data found"):
        load_model(model)


def test_a_file_of_the_run_that_is_cut_off_is_told(file, draw):
    tensor = make_tensor("w", draw(*LARGE))
    place = find_place(tensor)
    os.truncate(place.file, 100)
    for read in (read_values, lambda each: list(read_pieces(each))):
        with pytest.raises(
            ModelError, match=r"the values of tensor w, bytes 0 to 361200, are no longer there; the files"
        ):
            read(tensor)
