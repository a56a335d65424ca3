"""Odd bodies of If, Loop and Scan: quantized, or left in float with a reason, and never computed wrong."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxcalib import OnnxCalibError, OnnxCalibWarning, QuantizeConfig, quantize
from onnxcalib.graph.passes.unsigned_weights import unsign_weights
from onnxcalib.quantization import placement
from tests.quantization.odd_bodies import ODD, SAMPLES

LEVELS = onnxruntime.GraphOptimizationLevel.__members__.values()
LEAST_SQNR = 30  # dB
# They are near to others, or quantized for tests of ``validate`` too; benchmarks/bodies.py --odd runs all.
ELSEWHERE = {
    "both branches", "a weight of a layer outside and of one inside", "nodes without names",
    "a branch that returns an outer tensor", "an outer tensor of layers outside and inside",
    "node names of outside and of the other branch", "a weight that is computed of an input outside",
    "branches of other sizes", "a product of activations inside", "a Loop with what each turn gives",
    "a Loop without nodes for its condition and a state", "a Loop with a count that is an input",
    "a Scan with a state", "a Scan without a state", "random values inside", "a body of whole numbers",
    "an If in a function", "an output that nothing reads", "a layer behind an If that reads what it chose",
    "two of them one behind the other", "a layer behind a Loop alone", "a weight of both branches",
    "a Scan that reads an outer tensor and an input", "a Loop that returns a state as it came",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _without_trials(monkeypatch):
    """Half of the time of so small a model goes into the trial of what 256 levels can hold."""
    monkeypatch.setattr(placement, "find_coarse_inputs", lambda *given, **more: {})


def quantize_odd(odd, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OnnxCalibWarning)  # of few samples, and of a file that did not become smaller
        return quantize(odd.build(), odd.samples(), QuantizeConfig(threads=1, reconstruct=False, **settings))


def run_all(model, odd, level):
    """What onnxruntime gives on each sample, output by output."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.intra_op_num_threads, options.log_severity_level = level, 1, 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    samples = odd.samples()
    runs = (session.run(None, {name: v[i : i + 1] for name, v in samples.items()}) for i in range(SAMPLES))
    return list(zip(*runs, strict=True))


def check_file(model, odd, least=LEAST_SQNR):
    """onnx's checker takes the file, and onnxruntime gives the float model's outputs at every level of optimization."""
    onnx.checker.check_model(model, full_check=True)
    wanted = run_all(odd.build(), odd, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    for level in LEVELS:
        for one, other in zip(wanted, run_all(model, odd, level), strict=True):
            assert [np.shape(value) for value in one] == [np.shape(value) for value in other], level
            one, other = (
                np.concatenate([np.ravel(value) for value in each]).astype(np.float64) for each in (one, other)
            )
            error = np.square(one - other).sum()
            assert error == 0 or 10 * np.log10(np.square(one).sum() / error) > least, level


@pytest.mark.parametrize("name", [name for name, odd in ODD.items() if not odd.refused and name not in ELSEWHERE])
def test_layers_of_bodies_are_quantized_or_left_in_float_with_a_reason(name):
    odd = ODD[name]
    result = quantize_odd(odd)
    found = [layer.name for layer in result.report.layers]
    assert len(found) == len(odd.quantized) and {*odd.quantized} - {"*"} <= {*found}
    left = {record.name: record.reason for record in result.report.in_float}
    for layer, reason in odd.left.items():
        assert reason in left[layer]
    check_file(result.model, odd)


@pytest.mark.parametrize("settings", [{"weight_bits": 8}, {"weight_bits": 4}, {"encoding": "matmulnbits"}])
def test_weights_alone_of_several_bodies_are_where_onnxruntime_looks_for_them(settings):
    """onnxruntime 1.32 loads no DequantizeLinear in front of a MatMul in a body whose integers are outside."""
    odd = ODD["a large weight of both branches"]
    model = quantize_odd(odd, activation_bits=32, **settings).model
    check_file(model, odd, 30 if "weight_bits" not in settings or settings["weight_bits"] == 8 else 15)


def test_unsigned_weights_of_bodies_give_the_same_outputs():
    """As a processor without VNNI runs them: in sums of two unsigned integers nothing saturates."""
    for name in ("a large weight of both branches", "an If in a Loop in an If"):
        model = quantize_odd(ODD[name], weight_range="full").model
        assert unsign_weights(model) is not model
        check_file(unsign_weights(model), ODD[name])


@pytest.mark.parametrize("name", [name for name, odd in ODD.items() if odd.refused])
def test_a_model_without_a_layer_to_quantize_is_refused_with_the_reasons_of_its_bodies(name):
    with pytest.raises(OnnxCalibError, match=ODD[name].refused):
        quantize_odd(ODD[name])
