"""The reconstruction of a small model, its calibration set stored, before the first block."""

from dataclasses import replace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from onnxcalib.config import DataConfig, QuantizeConfig
from onnxcalib.data import open_calibration
from onnxcalib.graph.load import inputs_of, load_model
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.quantization.calibrate import choose_grids, collect_statistics
from onnxcalib.quantization.padding_mask import PaddingMask
from onnxcalib.quantization.rewrite import rewrite
from onnxcalib.quantization.state import Problem, ReconstructionState, StoredActivations
from onnxcalib.quantization.views import ImageViews
from onnxcalib.report import Observer
from onnxcalib.runtime.store import Store
from onnxcalib.spec import QuantSpec

RESIDUAL = """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
    [c1] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  [r1] r = Relu (a)
    [c2] c = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)  [s] s = Add (c, r)  [r2] t = Relu (s)
    [p] p = GlobalAveragePool (t)  [f] f = Flatten (p)  [fc] y = Gemm (f, w3, b3)
}"""


@pytest.fixture
def tokenizer(tmp_path):
    """Settings of texts whose words are the numbers below ten."""
    tokenizer = Tokenizer(models.WordLevel({str(number): number for number in range(10)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return DataConfig(tokenizer=tmp_path / "tokenizer.json")


@pytest.fixture
def residual(build, weigh):
    """Two convolutions with their Add, and a Gemm."""
    weights = {"w1": weigh(6, 3, 3, 3), "w2": weigh(6, 6, 3, 3), "w3": weigh(6, 5)}
    return build(RESIDUAL, **weights, b1=weigh(6), b2=weigh(6), b3=weigh(5))


@pytest.fixture
def restrict():
    """Makes the scheme one of symmetric int8 and powers of two, with one scale for a weight unless ``channels``."""

    def make(scheme, channels=False):
        spec = QuantSpec(8, signed=True, symmetric=True, power_of_two=True)
        layers = [
            replace(
                layer,
                activation_spec=spec,
                weight_spec=replace(spec, axis=layer.axis if channels else None, bits=layer.weight_spec.bits),
            )
            for layer in scheme.layers
        ]
        return replace(scheme, layers=tuple(layers), activations=dict.fromkeys(scheme.activations, spec))

    return make


@pytest.fixture
def state_of():
    """Makes the state of a model and a calibration array.

    size: samples in a stored batch; axes: of images; restrict: what the target makes of the scheme.
    """
    stores = []

    def make(model, data, *, size=8, axes=None, restrict=lambda scheme: scheme, **settings):
        config = QuantizeConfig(**settings)
        samples = open_calibration(data, inputs_of(model), config.data)
        prepared = rewrite(load_model(model), config).model
        bits = ("weight_bits", "activation_bits", "first_last_bits")
        dynamic = config.activations == "dynamic"
        scheme = restrict(make_scheme(prepared, **{name: getattr(config, name) for name in bits}, dynamic=dynamic))
        padding = PaddingMask(prepared)
        statistics = collect_statistics(prepared, list(scheme.activations), samples, padding)
        problem = Problem.of(prepared, scheme, config, padding)
        stores.append(Store())
        stored = StoredActivations(stores[-1], padding, problem.types)
        views = config.count_views(scheme.least_weight_bits) if axes else 0
        stored.fill(
            samples, samples.fixed_batch or size, views=ImageViews(views, axes) if views else None, seed=config.seed
        )
        return ReconstructionState(problem, stored, choose_grids(scheme, statistics.histograms, config))

    yield make
    for store in stores:
        store.__exit__()


class Listener(Observer):
    def __init__(self):
        self.heard = []

    def stage(self, name):
        self.heard.append(("stage", name))

    def note(self, text):
        self.heard.append(("note", text))

    def warn(self, text):
        self.heard.append(("warn", text))


@pytest.fixture
def listen():
    """Makes an observer that keeps what it hears."""
    return Listener
