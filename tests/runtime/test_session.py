import numpy as np
import onnx
import pytest

from onnxcalib.errors import ModelError, OutputError
from onnxcalib.runtime import session as session_module
from onnxcalib.runtime.session import Session


@pytest.fixture
def model(build, draw):
    return build(
        "g (float[N, 4] x, float[N, 4] unused) => (float[N, 3] y, float[N, 3] z) { y = MatMul (x, w) z = Relu (y) }",
        w=draw(4, 3),
    )


def test_outputs_come_by_name_and_feeds_that_are_not_read_are_left_out(model, draw):
    del model.graph.input[1]
    x = draw(2, 4)
    session = Session(model)
    assert session.inputs == ["x"] and session.outputs == ["y", "z"]
    values = session.run({"x": x, "other": x})
    np.testing.assert_array_equal(values["z"], np.maximum(values["y"], 0))
    assert list(session.run({"x": x}, ["z"])) == ["z"]
    assert session.run({"x": x}, []) == {}


def test_a_model_that_onnxruntime_refuses_is_a_model_error_of_one_line(model):
    model.graph.node[0].op_type = "MatMull"
    with pytest.raises(ModelError, match=r"onnxruntime cannot load the model: .*MatMull.*; check it") as caught:
        Session(model)
    assert "\n" not in str(caught.value)


def test_a_run_that_fails_is_a_model_error_of_one_line(model, draw):
    with pytest.raises(ModelError, match=r"onnxruntime cannot run the model: .*x") as caught:
        Session(model).run({"x": draw(2, 5), "unused": draw(2, 4)})
    assert "\n" not in str(caught.value)


def test_errors_name_what_was_run(model, draw):
    with pytest.raises(ModelError, match="onnxruntime cannot run block conv1: "):
        Session(model, name="block conv1").run({"x": draw(2, 4)})
    model.graph.node[0].op_type = "MatMull"
    with pytest.raises(ModelError, match="onnxruntime cannot load block conv1: "):
        Session(model, name="block conv1")


@pytest.mark.parametrize(("number", "kind"), [(16, "bfloat16"), (22, "int4"), (21, "uint4")])
def test_an_output_of_which_no_arrays_are_given_is_named(build, draw, number, kind):
    model = build(
        f"g (float[N] x) => (float[N] y, {kind}[N] z) {{ y = Relu (x) z = Cast <to = {number}> (x) }}", opset=21
    )
    session = Session(model)
    with pytest.raises(
        ModelError, match=rf"^onnxruntime cannot run the model: the output z is tensor\({kind}\); no array"
    ):
        session.run({"x": draw(3)})
    assert list(session.run({"x": draw(3)}, ["y"])) == ["y"]


def test_a_missing_feed_is_named(model, draw):
    with pytest.raises(ModelError, match=r"onnxruntime cannot run the model: .*unused"):
        Session(model).run({"x": draw(2, 4)})


def test_the_optimized_graph_is_written_where_asked_with_its_weights_beside_it(build, draw, tmp_path):
    model = build("g (float[N, 64] x) => (float[N, 64] y) { a = Identity (x) y = MatMul (a, w) }", w=draw(64, 64))
    path = tmp_path / "optimized.onnx"
    session = Session(model, dump=path)
    graph = onnx.load(path, load_external_data=False).graph
    assert [node.op_type for node in graph.node] == ["MatMul"]
    assert path.stat().st_size < 64 * 64 * 4 <= (tmp_path / "optimized.onnx.data").stat().st_size
    assert session.run({"x": draw(2, 64)})["y"].shape == (2, 64)


FULL = r"^{folder}: temporary files cannot be kept here \({reason}.*\); free space, set TMPDIR to another disk, or give"


def expect_full(folder, reason):
    return pytest.raises(OutputError, match=FULL.format(folder=folder, reason=reason))


def test_a_disk_without_room_for_the_optimized_graph_is_told_as_that(model, tmp_path, limited_files):
    with limited_files(10), expect_full(tmp_path, "onnxruntime cannot write its graph: "):
        Session(model, dump=tmp_path / "optimized.onnx")
    model.graph.node[0].op_type = "MatMull"
    with pytest.raises(ModelError, match="MatMull"):
        Session(model, dump=tmp_path / "optimized.onnx")


def test_a_disk_without_room_for_the_profile_is_told_as_that(model, draw, tmp_path, limited_files):
    session = Session(model, profile=tmp_path / "profile")
    session.run({"x": draw(2, 4), "unused": draw(2, 4)})
    with limited_files(10), expect_full(tmp_path, "onnxruntime's profile is not whole"):
        session.end_profile()


@pytest.mark.parametrize("room", [10, 300])
def test_a_disk_without_room_for_a_large_model_is_told_as_that(build, draw, room, limited_files, monkeypatch, tmp_path):
    monkeypatch.setattr(session_module, "MOST_BYTES", 10)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = build("g (float[N, 64] x) => (float[N, 64] y) { y = MatMul (x, w) }", w=draw(64, 64))
    with limited_files(room), expect_full(rf"{tmp_path}/onnxcalib-\w+", "File too large"):
        Session(model)
    assert not list(tmp_path.iterdir())


def test_optimizations_can_be_left_out(build, draw, tmp_path):
    model = build("g (float[N, 4] x) => (float[N, 4] y) { a = Identity (x) y = Relu (a) }")
    Session(model, optimize=False, dump=tmp_path / "plain.onnx")
    assert [node.op_type for node in onnx.load(tmp_path / "plain.onnx").graph.node] == ["Identity", "Relu"]


def test_a_model_too_large_for_one_message_goes_through_a_file_and_keeps_its_weights(
    model, draw, monkeypatch, tmp_path
):
    monkeypatch.setattr(session_module, "MOST_BYTES", 10)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = model.SerializeToString(deterministic=True)
    x = draw(2, 4)
    values = Session(model).run({"x": x, "unused": x})
    np.testing.assert_allclose(values["y"], x @ onnx.numpy_helper.to_array(model.graph.initializer[0]), rtol=1e-5)
    assert model.SerializeToString(deterministic=True) == before
    assert list(tmp_path.iterdir()) == []


def test_files_that_a_session_maps_stay_as_long_as_the_session(build, draw, monkeypatch, tmp_path):
    model = build("g (float[N, 64] x) => (float[N, 64] y) { y = MatMul (x, w) }", w=draw(64, 64))
    monkeypatch.setattr(session_module, "MOST_BYTES", 10)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session = Session(model)
    assert sorted(path.name.partition(".onnx")[2][-5:] for path in tmp_path.glob("*/*")) == ["", ".data"]
    assert session.run({"x": draw(2, 64)})["y"].shape == (2, 64)
    del session
    assert list(tmp_path.iterdir()) == []


def test_files_of_a_model_that_is_refused_go_at_once(model, monkeypatch, tmp_path):
    monkeypatch.setattr(session_module, "MOST_BYTES", 10)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model.graph.node[0].op_type = "MatMull"
    with pytest.raises(ModelError, match="cannot load the model") as caught:
        Session(model)
    assert list(tmp_path.iterdir()) == [] and caught.value.__cause__ is not None


@pytest.mark.parametrize("most", [session_module.MOST_BYTES, 10])
def test_tensors_inside_are_given_beside_the_outputs_and_the_model_stays_as_it_is(model, draw, monkeypatch, most):
    monkeypatch.setattr(session_module, "MOST_BYTES", most)
    del model.graph.output[0]
    before = model.SerializeToString(deterministic=True)
    session = Session(model, also=["y", "x", "z", "y", "nowhere"])
    assert session.outputs == ["z", "y"]
    values = session.run({"x": draw(2, 4), "unused": draw(2, 4)})
    np.testing.assert_array_equal(values["z"], np.maximum(values["y"], 0))
    assert model.SerializeToString(deterministic=True) == before


SHARED = """g (float[N, 8] x) => (float[N, 8] y) {
    xq = QuantizeLinear (x, one, low) xd = DequantizeLinear (xq, one, low)
    w1 = DequantizeLinear <axis = 1> (v, ones, zeros) a = MatMul (xd, w1)
    aq = QuantizeLinear (a, step, low) ad = DequantizeLinear (aq, step, low)
    w2 = DequantizeLinear <axis = 1> (v, ones, zeros) b = MatMul (ad, w2)
    bq = QuantizeLinear (b, far, low) y = DequantizeLinear (bq, far, low) }"""
SIZE = 127 * 8 * 255
CONSTANTS = {"one": np.float32(1), "low": np.uint8(0), "ones": np.ones(8, np.float32)}
CONSTANTS |= {"step": np.float32(SIZE / 100), "far": np.float32(SIZE * 127 * 8 / 100)}


@pytest.fixture(params=["shared", "left out"])
def foreign(request, build):
    """Two layers whose every pair saturates; they share weight and zero point, or have none."""
    wide = np.full((8, 8), 127, np.int8)
    if request.param == "shared":
        return build(SHARED, v=wide, zeros=np.zeros(8, np.int8), **CONSTANTS)
    text = SHARED.replace(", zeros)", ")").replace(
        "w2 = DequantizeLinear <axis = 1> (v", "w2 = DequantizeLinear <axis = 1> (u"
    )
    return build(text, v=wide, u=wide.copy(), **CONSTANTS)


def test_what_lies_between_a_gemm_and_a_transpose_is_given_too(build, weigh):
    model = build(
        "g (float[2, 3] x) => (float[4, 2] y) { a = Gemm (x, w)  y = Transpose <perm = [1, 0]> (a) }", w=weigh(3, 4)
    )
    values = Session(model, also=["a"], threads=1).run({"x": np.ones((2, 3), np.float32)})
    assert np.array_equal(values["a"].T, values["y"])


@pytest.mark.parametrize("assumed", [None, True])
def test_sums_are_exact_in_files_of_other_tools_on_every_processor(foreign, assumed, monkeypatch):
    """Also where the session option that makes them so refuses the file, whether it is needed here or not."""
    if assumed is not None:
        monkeypatch.setattr(session_module, "saturates", lambda: assumed)
    feeds = {"x": np.full((3, 8), 255, np.float32)}
    wanted, given = (Session(foreign, optimize=optimize).run(feeds)["y"] for optimize in (False, True))
    np.testing.assert_array_equal(wanted, given)
    deployed = Session(foreign, deployed=True).run(feeds)["y"]
    monkeypatch.undo()
    assert np.array_equal(wanted, deployed) is not session_module.saturates()


def test_a_model_that_no_session_takes_is_a_model_error_where_sums_saturate_too(model, monkeypatch):
    monkeypatch.setattr(session_module, "saturates", lambda: True)
    model.graph.node[0].op_type = "MatMull"
    with pytest.raises(ModelError, match=r"onnxruntime cannot load the model: .*MatMull"):
        Session(model)


QUANTIZED_HERE = """g (float[N, 8] x) => (float[N, 8] y) {
    xq = QuantizeLinear (x, one, low) xd = DequantizeLinear (xq, one, low)
    k = QuantizeLinear <axis = 1> (f, ones, zeros) w = DequantizeLinear <axis = 1> (k, ones, zeros)
    a = MatMul (xd, w) aq = QuantizeLinear (a, step, low) y = DequantizeLinear (aq, step, low) }"""
IN_INTEGERS = """g (float[N, 8] x) => (float[N, 8] y) {
    q = QuantizeLinear (x, one, low) p = MatMulInteger (q, v, low) y = Cast <to = 1> (p) }"""


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("text", [QUANTIZED_HERE, IN_INTEGERS], ids=["a weight quantized in the session", "integers"])
def test_sums_are_exact_whatever_form_the_integers_have(build, text, optimize):
    constants = {
        "f": np.full((8, 8), 127, np.float32),
        "v": np.full((8, 8), 127, np.int8),
        "zeros": np.zeros(8, np.int8),
    }
    model = build(text, **CONSTANTS, **constants)
    given = Session(model, optimize=optimize).run({"x": np.full((3, 8), 255, np.float32)})["y"]
    np.testing.assert_allclose(given, SIZE, rtol=0.01)


def test_all_lines_of_what_onnxruntime_says_are_told_in_one(build, draw):
    model = build("g (float[0, 4] x) => (float[0, 4] y) { y = Relu (x) }")
    with pytest.raises(ModelError, match=r"Got: 2 Expected: 0 .*; check it, or export it again$") as caught:
        Session(model).run({"x": draw(2, 4)})
    assert "\n" not in str(caught.value)


def test_draws_are_the_same_in_every_run_and_session_unless_their_own_are_asked_for(build, draw):
    model = build("g (float[N, 4] x) => (float[N, 4] y) { z = RandomNormalLike (x) y = Add (x, z) }")
    x = draw(6, 4)
    one, other = (Session(model, optimize=optimize) for optimize in (False, True))
    values = [session.run({"x": x})["y"] for session in (one, one, other)]
    np.testing.assert_array_equal(values[0], values[1])
    np.testing.assert_array_equal(values[0], values[2])
    own = Session(model, draws=True)
    assert (own.run({"x": x})["y"] != own.run({"x": x})["y"]).all()
    assert Session(model, also=["z"]).outputs == ["y", "z"]


def test_sums_are_exact_where_a_matmulnbits_rounds_what_users_get(build, draw):
    text = """g (float[N, 64] x) => (float[N, 8] y) {
        y = com.microsoft.MatMulNBits <K = 64, N = 8, bits = 8, block_size = 32, accuracy_level = 4> (x, b, s) }"""
    integers = np.random.default_rng(0).integers(0, 256, (8, 64)).astype(np.uint8)
    model = build(text, opset=21, ir=10, b=integers.reshape(8, 2, 32), s=np.full((8, 2), 0.01, np.float32))
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    x = draw(5, 64)
    exact, given = (Session(model, deployed=each).run({"x": x})["y"] for each in (False, True))
    wanted = x @ (0.01 * (integers.T.astype(np.float32) - 128))
    np.testing.assert_allclose(exact, wanted, rtol=1e-4, atol=1e-4)
    assert np.abs(given - wanted).max() > 1e-2
