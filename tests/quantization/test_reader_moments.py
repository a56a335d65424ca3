"""Layers of one graph that read one weight: it is solved on what all of them read, and the file stores it once."""

from collections import Counter

import numpy as np
import pytest
from onnx import numpy_helper

from onnxcalib import QuantizeConfig, quantize
from onnxcalib.data import open_calibration
from onnxcalib.graph.index import Index
from onnxcalib.graph.load import inputs_of
from onnxcalib.quantization.reader_moments import measure_readers
from onnxcalib.report import Observer
from onnxcalib.runtime.session import Session

TURNS = 3
TURN = """[up{i}] h{i} = Gemm <transB = 1> (s{i}, w1, b1) r{i} = Relu (h{i})
    [down{i}] g{i} = Gemm <transB = 1> (r{i}, w2, b2) s{j} = Add (s{i}, g{i})"""
NET = f"""g (float[N, 32] s0) => (float[N, 32] y) {{
    {" ".join(TURN.format(i=i, j=i + 1) for i in range(TURNS))} y = Relu (s{TURNS})
}}"""
DATA = {"s0": np.random.default_rng(3).normal(size=(48, 32)).astype(np.float32)}
SETTINGS = {"effort": "fast", "threads": 1, "first_last_bits": 8}
MATRICES = ([48, 32], [32, 48])


@pytest.fixture
def net(build, weigh):
    return build(NET, w1=weigh(48, 32), b1=weigh(48), w2=weigh(32, 48) / 7, b2=weigh(32))


class Listener(Observer):
    def __init__(self):
        self.heard = []

    def note(self, text):
        self.heard.append(text)


def count_readers(model, position):
    """Constant -> the DequantizeLinears that read it as the input of this number."""
    found = Counter(n.input[position] for n in model.graph.node if n.op_type == "DequantizeLinear")
    return {t.name: found[t.name] for t in model.graph.initializer if found[t.name]}


@pytest.mark.parametrize("more", [{}, {"pipeline": "parallel", "jobs": 1}, {"reconstruct": False}])
def test_a_file_stores_the_integers_of_one_weight_once_and_each_layer_keeps_its_kernel_and_bias(net, more):
    result = quantize(net, DATA, QuantizeConfig(**SETTINGS, **more), observer=(listener := Listener()))
    index = Index(result.model.graph)
    matrices = [t.name for t in result.model.graph.initializer if list(t.dims) in MATRICES]
    assert len(matrices) == 2 and [count_readers(result.model, 0)[name] for name in matrices] == [TURNS, TURNS]
    assert set(count_readers(result.model, 2).values()) == {1}  # zero points
    assert result.report.saturation.kernels == 2 * TURNS and result.report.outputs[0].sqnr_db > 25
    if not more:
        biases = [t for t in index.initializers.values() if t.name.endswith("bias_quantized")]
        assert len({numpy_helper.to_array(t).tobytes() for t in biases}) == 2 * TURNS
        assert "w1: up0, up1, up2 have one set of integers" in listener.heard


def test_onnxruntime_reads_shared_weights_alone_as_matmulnbits_and_integers_of_each_layer_elsewhere(net):
    settings = {**SETTINGS, "activation_bits": 32, "weight_bits": 4, "first_last_bits": 4}
    packed = quantize(net, DATA, QuantizeConfig(**settings, encoding="matmulnbits")).model
    products = [n for n in packed.graph.node if n.op_type == "MatMulNBits"]
    assert len(products) == 2 * TURNS and len({n.input[1] for n in products}) == 2
    plain = quantize(net, DATA, QuantizeConfig(**settings)).model
    assert sum(list(t.dims) in MATRICES for t in plain.graph.initializer) == 2 * TURNS


def test_later_readers_are_measured_in_the_float_model(net, state_of):
    problem = state_of(net, DATA["s0"]).problem
    samples = open_calibration(DATA["s0"], inputs_of(net))
    fitted, held_out = measure_readers(problem, samples, 48)["up0"]
    assert (fitted.columns, held_out.columns) == (2 * 36, 2 * 12)
    session = Session(problem.model, also=["s1", "s2"])
    values = session.run({"s0": DATA["s0"]}, ["s1", "s2"])
    rows = np.concatenate([x[np.arange(48) % 4 == 3] for x in values.values()])
    np.testing.assert_allclose(held_out.total(centred=False)[0], rows.T.astype(float) @ rows, rtol=1e-3, atol=1e-3)
    assert set(measure_readers(problem, samples, 48, {"down0"})) == {"up0"}
    assert not measure_readers(problem, samples, 48, {"up0", "down0"})
