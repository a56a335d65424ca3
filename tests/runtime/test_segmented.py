"""A model that runs segment by segment gives what it gives as a whole."""

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from onnxcalib.errors import ModelError
from onnxcalib.graph.edit import copy_model
from onnxcalib.graph.values import describe_state, find_place, refer
from onnxcalib.runtime import memory, segmented
from onnxcalib.runtime import session as session_module
from onnxcalib.runtime.session import Session

BODIES = """g (float[N, 8] x, bool flag) => (float[N, 8] y, float[M, 4] z, bool flag2) {
    a = MatMul (x, w)  b = MatMul (a, v)  flag2 = Not (flag)
    i = If (flag) < then_branch = t () => (float[N, 8] u) { u = Add (a, c) },
                    else_branch = e () => (float[N, 8] o) { o = MatMul (b, w) }>
    y = MatMul (i, v)  p, q = Split <axis = 1> (y)  s = SequenceConstruct (p, q)  k = MatMul (y, w)
    r = SequenceAt (s, zero)  n = NonZero (k)  m = Shape (n)  f = Cast <to = 1> (m)  l = ReduceMax <keepdims = 0> (f)
    h = Add (r, l)  z = MatMul (h, small)
}"""


LAYERS = """g (float[N, 16] x) => (float[N, 16] y) {
    [a] a = MatMul (x, w)  [r] r = Relu (a)  [b] b = MatMul (r, v)  [y] y = Add (r, b)
}"""


def test_large_models_round_activations_in_blocks_as_users_files_do(build, draw, tmp_path):
    text = """g (float[N, 64] x) => (float[N, 32] y) {
        w = DequantizeLinear <axis = 0, block_size = 32> (q, s)  y = MatMul (x, w)
    }"""
    levels = np.random.default_rng(0).integers(-128, 128, (64, 32)).astype(np.int8)
    model = build(text, opset=21, ir=10, q=levels, s=draw(2, 32).astype(np.float32))
    large, feeds = outside(model, tmp_path / "weights"), {"x": draw(4, 64)}
    wanted, given, exact = (
        Session(each, deployed=deployed, threads=1).run(feeds)["y"]
        for each, deployed in ((model, True), (large, True), (large, False))
    )
    np.testing.assert_allclose(given, wanted, rtol=1e-6, atol=1e-6)
    assert np.abs(exact - wanted).max() > 1e-3 * np.abs(wanted).max()


@pytest.fixture
def bodies(build, draw, tmp_path):
    weights = {"w": draw(8, 8), "v": draw(8, 8), "c": draw(8), "small": draw(4, 4)}
    return outside(build(BODIES, zero=np.int64(0), **weights), tmp_path / "weights")


@pytest.fixture
def segments(monkeypatch):
    """Let sessions hold so many bytes of weights at most; gives the models of the segments that were opened."""

    def allow(most):
        opened = []
        take = segmented.take_segment

        def spy(*given):
            opened.append(take(*given))
            return opened[-1]

        monkeypatch.setattr(session_module, "SEGMENT_BYTES", most)
        monkeypatch.setattr(segmented, "take_segment", spy)
        return opened

    return allow


def outside(model, path):
    """A copy whose matrices lie in a file, each at an odd place."""
    copy, data = copy_model(model), bytearray(b"abc")
    for tensor in copy.graph.initializer:
        if len(tensor.dims) == 2:
            raw = numpy_helper.to_array(tensor).tobytes()
            entries = {"location": path, "offset": len(data), "length": len(raw)}
            data += raw
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(data)
    return copy


@pytest.mark.parametrize("most", [10**6, 1])
@pytest.mark.parametrize("level", [True, False])
def test_weights_outside_are_read_from_their_file(build, draw, tmp_path, segments, most, level):
    segments(most)
    model = build(
        "g (float[N, 8] x) => (float[N, 8] y) { a = MatMul (x, w) y = MatMul (a, v) }", w=draw(8, 8), v=draw(8, 8)
    )
    light = outside(model, tmp_path / "w")
    before = light.SerializeToString(deterministic=True)
    x = draw(3, 8)
    given = Session(light, optimize=level, also=["a"]).run({"x": x})
    assert light.SerializeToString(deterministic=True) == before
    wanted = Session(model, optimize=level, also=["a"]).run({"x": x})
    np.testing.assert_array_equal(given["y"], wanted["y"])
    np.testing.assert_array_equal(given["a"], wanted["a"])


@pytest.mark.parametrize("most", [10**6, 1])
@pytest.mark.parametrize("gone", [True, False])
def test_a_users_file_that_is_written_while_a_session_maps_it_ends_the_run(build, draw, tmp_path, segments, most, gone):
    segments(most)
    text = "g (float[N, 8] x) => (float[N, 8] y) { a = MatMul (x, w) y = MatMul (a, v) }"
    light, x = outside(build(text, w=draw(8, 8), v=draw(8, 8)), tmp_path / "w"), draw(3, 8)
    for tensor in light.graph.initializer:
        refer(tensor, find_place(tensor)._replace(state=describe_state(os.stat(tmp_path / "w"))))
    session = Session(light)
    session.run({"x": x})
    os.utime(tmp_path / "w", (1, 1))
    if gone:
        os.unlink(tmp_path / "w")
    with pytest.raises(ModelError, match="no such file" if gone else "was written since this run began to read it"):
        session.run({"x": x})


@pytest.mark.parametrize("flag", [True, False])
def test_a_model_in_segments_gives_what_the_whole_gives(bodies, draw, segments, flag):
    feeds = {"x": draw(3, 8), "flag": np.array(flag)}
    also = ["a", "k", "n", "nowhere"]
    wanted = Session(bodies, also=also)
    values = wanted.run(feeds)
    opened = segments(4 * 8 * 8)
    given = Session(bodies, also=also)
    assert len(opened) > 3
    assert (given.inputs, given.outputs) == (wanted.inputs, wanted.outputs)
    found = given.run(feeds)
    assert list(found) == list(values)
    for name, value in values.items():
        np.testing.assert_array_equal(found[name], value)
    assert list(given.run(feeds, ["flag2"])) == ["flag2"]


def test_no_sequence_passes_from_one_segment_to_another(bodies, draw, segments):
    opened = segments(1)
    session = Session(bodies)
    assert all(value.type.HasField("tensor_type") for segment in opened for value in segment.graph.input)
    session.run({"x": draw(3, 8), "flag": np.array(True)})


def test_segments_on_which_nothing_that_is_asked_for_depends_are_not_opened(
    build, draw, segments, monkeypatch, tmp_path
):
    segments(1)
    model = build(
        "g (float[N, 8] x) => (float[N, 8] y) { a = MatMul (x, w) b = MatMul (a, v) y = MatMul (b, w) }",
        w=draw(8, 8),
        v=draw(8, 8),
    )
    session = Session(outside(model, tmp_path / "weights"), also=["a"])
    opened = []
    original = session_module._load
    monkeypatch.setattr(
        session_module, "_load", lambda segment, *given: opened.append(segment) or original(segment, *given)
    )
    session.run({"x": draw(2, 8)}, ["a"])
    assert len(opened) == 1


def test_a_session_that_is_to_be_whole_has_no_segments(bodies, draw, segments):
    opened = segments(1)
    assert Session(bodies, whole=True).outputs == ["y", "z", "flag2"] and not opened


def test_faults_of_a_segment_are_those_of_the_model(bodies, build, draw, segments):
    segments(1)
    with pytest.raises(ModelError, match=r"onnxruntime cannot run the net: .*x"):
        Session(bodies, name="the net").run({"x": draw(2, 7), "flag": np.array(True)})
    with pytest.raises(ModelError, match=r"onnxruntime cannot run the model: .*flag"):
        Session(bodies).run({"x": draw(2, 8)})
    bodies.graph.node[1].op_type = "MatMull"
    with pytest.raises(ModelError, match=r"onnxruntime cannot load the net: .*MatMull"):
        Session(bodies, name="the net")


def test_the_optimized_graphs_of_segments_are_written_as_one(rough, build, weigh, draw, tmp_path, segments):
    model = rough(build(LAYERS, w=weigh(16, 16), v=weigh(16, 16)), draw(8, 16))
    model = outside(model, tmp_path / "weights")
    whole = Session(model, deployed=True, dump=tmp_path / "whole.onnx")
    opened = segments(2 * 16 * 16)
    session = Session(model, deployed=True, dump=tmp_path / "segments.onnx")
    assert len(opened) == 2
    kinds = [
        sorted(node.op_type for node in onnx.load(tmp_path / f"{name}.onnx").graph.node)
        for name in ("whole", "segments")
    ]
    assert kinds[0] == kinds[1] and "DequantizeLinear" in kinds[0]
    x = draw(4, 16)
    np.testing.assert_array_equal(session.run({"x": x})["y"], whole.run({"x": x})["y"])


def test_sums_are_exact_in_every_segment(rough, build, weigh, draw, segments, monkeypatch, tmp_path):
    model = rough(build(LAYERS, w=weigh(16, 16), v=weigh(16, 16)), draw(8, 16))
    model = outside(model, tmp_path / "weights")
    feeds = {"x": draw(4, 16)}
    wanted = Session(model).run(feeds)["y"]
    monkeypatch.setattr(session_module, "saturates", lambda: True)
    segments(16 * 16)
    np.testing.assert_array_equal(Session(model).run(feeds)["y"], wanted)


def test_what_is_freed_can_be_given_back():
    held = [bytes(10**5) for _ in range(300)]
    del held[::2]
    before = memory.measure_resident()
    memory.release()
    assert memory.measure_resident() <= before


def test_memory_is_what_is_free_of_the_machine(monkeypatch):
    monkeypatch.setattr(memory, "LIMITS", [])
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 2**20 < memory.measure_resident() <= memory.measure_peak()
    assert 2**20 < memory.find_free() < machine
    monkeypatch.setattr(memory, "MEMINFO", "/nowhere")
    assert memory.find_free() == int(memory.SHARE_OF_FREE * machine)


def test_the_limit_of_a_container_counts_without_its_cached_pages(monkeypatch, tmp_path):
    files = {"limit": "1000000", "usage": "700000", "stat": "anon 5\ninactive_file 100000\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(
        memory,
        "LIMITS",
        [(tmp_path / "no", tmp_path / "no", tmp_path / "no"), tuple(tmp_path / name for name in files)],
    )
    assert memory.find_free() == int(memory.SHARE_OF_FREE * 400_000)
    (tmp_path / "limit").write_text("max")
    assert memory.find_free() > 2**20
