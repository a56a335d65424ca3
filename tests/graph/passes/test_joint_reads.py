import numpy as np
import onnx.parser

from onnxcalib.graph.passes.joint_reads import join_reads
from onnxcalib.graph.passes.normalise import normalise
from onnxcalib.runtime.session import Session

HEAD = """<ir_version: 8, opset_import: ["" : 13]> g (float[N, 4] x) => (float[N, 4] y)
<float scale = {0.05}, uint8 zero = {128}, float one = {1}, float half = {0.5}, float root = {1.4142135}>"""
LINEAR = "q = QuantizeLinear(x, scale, zero) f = DequantizeLinear(q, scale, zero)"
GELU = "a = Div(f, root) t = Erf(a) u = Add(t, one) h = Mul(f, u) y = Mul(h, half)"


def make(nodes):
    model = onnx.parser.parse_model(f"{HEAD} {{ {nodes} }}")
    normalise(model)
    return model


def run(model, path):
    x = np.random.default_rng(0).normal(0, 2, (3, 4)).astype(np.float32)
    y = Session(model, threads=1, dump=path).run({"x": x})["y"]
    return y, [node.op_type for node in onnx.load(path).graph.node]


def test_a_function_that_reads_a_dequantized_tensor_stays_one_kernel(tmp_path):
    model = make(f"{LINEAR} {GELU}")
    wanted, parted = run(model, tmp_path / "parted.onnx")
    assert join_reads(model) == 1 and "Erf" in parted
    onnx.checker.check_model(model, full_check=True)
    given, joined = run(model, tmp_path / "joined.onnx")
    assert joined == ["QuantizeLinear", "DequantizeLinear", "Max", "Gelu"]
    assert np.allclose(given, wanted, atol=1e-6)


def test_a_function_of_other_tensors_reads_them_itself():
    assert join_reads(make("f = Abs(x) " + GELU)) == 0


def test_one_operator_reads_the_dequantized_tensor_itself():
    assert join_reads(make(LINEAR + " y = Sigmoid(f)")) == 0


def test_operators_that_move_values_may_stand_in_between(tmp_path):
    moved = LINEAR.replace("f =", "d =") + " f = Transpose <perm = [0, 1]> (d) "
    model = make(moved + GELU)
    assert join_reads(model) == 1
    assert "Gelu" in run(model, tmp_path / "joined.onnx")[1]
