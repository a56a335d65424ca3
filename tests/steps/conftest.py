"""A walk through a small model, its calibration set stored, before the first block."""

import pytest

from onnxcalib.config import QuantizeConfig
from onnxcalib.data import open_calibration
from onnxcalib.graph.extract import infer_types
from onnxcalib.graph.load import inputs_of, load_model
from onnxcalib.graph.plan import make_plan
from onnxcalib.runtime.store import Store
from onnxcalib.steps.calibrate import choose_grids, collect_histograms
from onnxcalib.steps.prepare import prepare
from onnxcalib.steps.walk import Walk


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
