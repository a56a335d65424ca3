"""A walk through a small model, its calibration set stored, before the first block; models of another tool."""

import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

from onnxcalib.config import QuantizeConfig
from onnxcalib.data import open_calibration
from onnxcalib.graph.extract import infer_types
from onnxcalib.graph.load import inputs_of, load_model
from onnxcalib.graph.plan import make_plan
from onnxcalib.runtime.store import Store
from onnxcalib.steps.calibrate import choose_grids, collect_histograms
from onnxcalib.steps.prepare import prepare
from onnxcalib.steps.walk import Walk

RESIDUAL = """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
    [c1] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  [r1] r = Relu (a)
    [c2] c = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)  [s] s = Add (c, r)  [r2] t = Relu (s)
    [p] p = GlobalAveragePool (t)  [f] f = Flatten (p)  [fc] y = Gemm (f, w3, b3)
}"""


@pytest.fixture
def residual(build, weigh):
    """Two convolutions with their Add, and a Gemm."""
    weights = {"w1": weigh(6, 3, 3, 3), "w2": weigh(6, 6, 3, 3), "w3": weigh(6, 5)}
    return build(RESIDUAL, **weights, b1=weigh(6), b2=weigh(6), b3=weigh(5))


@pytest.fixture
def walk_of():
    """Makes a Walk of a model and a calibration array; ``size``: samples in a stored batch; ``axes``: of images."""
    stores = []

    def make(model, data, *, size=8, axes=None, **settings):
        config = QuantizeConfig(**settings)
        samples = open_calibration(data, inputs_of(model), config.data)
        prepared = prepare(load_model(model), config).model
        bits = ("weight_bits", "activation_bits", "first_last_bits")
        plan = make_plan(prepared, **{name: getattr(config, name) for name in bits})
        grids = choose_grids(plan, collect_histograms(prepared, list(plan.activations), samples), config)
        stores.append(Store())
        walk = Walk(prepared, infer_types(prepared), plan, config, stores[-1], [], *grids)
        walk.fill(samples, samples.fixed_batch or size, axes)
        return walk

    yield make
    for store in stores:
        store.__exit__()


class Reader(CalibrationDataReader):
    def __init__(self, *samples):
        self.samples = iter(samples)

    def get_next(self):
        return next(self.samples, None)


@pytest.fixture
def by_tool(draw, tmp_path):
    """Models that onnxruntime's own tool has quantized: statically, by format and types, or dynamically."""
    source, target = tmp_path / "float.onnx", tmp_path / "tool.onnx"

    def make(model, form, activations=QuantType.QUInt8, weights=QuantType.QInt8, *, data=None, narrow=False, **extra):
        onnx.save(model, source)
        if form == "dynamic":
            quantize_dynamic(source, target, weight_type=weights)
        else:
            shape = [dim.dim_value or 8 for dim in model.graph.input[0].type.tensor_type.shape.dim]
            types = {"activation_type": activations, "weight_type": weights, "extra_options": extra}
            reader = Reader({"x": draw(*shape) if data is None else data})
            quantize_static(source, target, reader, quant_format=form, reduce_range=narrow, **types)
        return onnx.load(target)

    return make
