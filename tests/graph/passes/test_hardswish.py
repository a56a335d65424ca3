import numpy as np
import onnx
import onnxruntime
from onnx import checker

from onnxcalib.graph.passes.hardswish import split_hardswish
from onnxcalib.graph.passes.normalise import name_nodes

TEXT = """g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) {
    [one] c = Conv (x, w)  [swish] s = HardSwish (c)  [other] c_HardSigmoid = HardSwish (s)  y = Conv (c_HardSigmoid, w)
}"""


def test_a_hardswish_becomes_a_product_of_its_name(build, run, draw):
    model = build(TEXT, w=draw(3, 3, 1, 1))
    name_nodes(model)
    x = 3 * draw(2, 3, 8, 8)
    (before,) = run(model, x)
    assert split_hardswish(model) == 2
    checker.check_model(model, full_check=True)
    assert [n.op_type for n in model.graph.node] == ["Conv", "HardSigmoid", "Mul", "HardSigmoid", "Mul", "Conv"]
    nodes = {node.name: node for node in model.graph.node}
    assert nodes["swish"].output == ["s"] and nodes["other"].output == ["c_HardSigmoid"]
    np.testing.assert_allclose(run(model, x)[0], before, rtol=1e-5, atol=1e-5)
    assert split_hardswish(model) == 0


def test_the_whole_function_runs_on_integers(build, rough, draw, tmp_path):
    model = build(TEXT, w=draw(3, 3, 1, 1))
    name_nodes(model)
    split_hardswish(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    quantized = rough(model, draw(2, 3, 8, 8)).SerializeToString()
    onnxruntime.InferenceSession(quantized, options, providers=["CPUExecutionProvider"])
    found = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert found.count("QLinearMul") == found.count("QLinearAdd") == 2
    assert {"Mul", "HardSigmoid"}.isdisjoint(found)
