"""What every emitted model has in common, on random models whose values all lie on the grids."""

from __future__ import annotations

import numpy as np
import onnxruntime
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, checker, helper

from onnxcalib.graph.edit import copy_model
from onnxcalib.graph.emit import emit_qdq
from onnxcalib.graph.index import Index, known_constant
from onnxcalib.graph.layer_params import LayerParams
from onnxcalib.graph.ops import DEQUANTIZE, QUANTIZE
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.spec import Grids, QParams, QuantScheme, QuantSpec
from tests.graph.strategies import SHAPE, quantizable_models, whole_numbers
from tests.small_models import run_model

ENCODINGS = st.sampled_from(("runtime", "standard"))


def measure(model: ModelProto, tensors: list[str], x: np.ndarray) -> dict[str, np.ndarray]:
    """The values of tensors in a run of the model; a graph input is ``x``."""
    opened = copy_model(model)
    known = {value.name for value in model.graph.output}
    made = [name for name in tensors if name != "x"]
    opened.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in made if name not in known)
    names = [value.name for value in opened.graph.output]
    return {"x": x, **dict(zip(names, run_model(opened, x), strict=True))}


def make_lossless_grid(values: list[np.ndarray], spec: QuantSpec) -> QParams:
    """A grid of scale 1 that holds all values, the largest at its top unless zero has to be at its bottom.

    The example is rejected where the values are too far apart.
    """
    low = min(0, *(int(array.min()) for array in values))
    high = max(0, *(int(array.max()) for array in values))
    assume(high - low <= spec.qmax)
    return QParams(np.float32(1), np.int32(spec.qmax - high if low else 0), spec)


def emit_losslessly(model: ModelProto, x: np.ndarray, encoding: str, bits: int) -> tuple[ModelProto, QuantScheme]:
    """The quantized model on grids that hold all values of the run on ``x``, and its scheme."""
    scheme, index = make_scheme(model, weight_bits=bits, activation_bits=bits, first_last_bits=bits), Index(model.graph)
    values = measure(model, list(scheme.activations), x)
    sets = {tensor: members for members in scheme.shared for tensor in members}
    activations = {
        tensor: make_lossless_grid([values[each] for each in sets.get(tensor, (tensor,))], spec)
        for tensor, spec in scheme.activations.items()
    }
    requantized = {tensor: make_lossless_grid([values[tensor]], spec) for tensor, spec in scheme.requantized.items()}
    layers = {}
    for layer in scheme.layers:
        weight = known_constant(index, layer.weight)
        grid = QParams(np.ones(len(weight), np.float32), np.zeros(len(weight), np.int32), layer.weight_spec)
        bias = known_constant(index, layer.bias) if layer.bias else None
        layers[layer.name] = LayerParams(weight.astype(np.int8), grid, bias)
    before = model.SerializeToString()
    emitted = [
        emit_qdq(model, scheme, Grids(activations, requantized), layers, encoding=encoding, keep_outputs=False)
        for _ in range(2)
    ]
    assert emitted[0].SerializeToString() == emitted[1].SerializeToString()
    assert model.SerializeToString() == before
    return emitted[0], scheme


def run_unoptimized(model: ModelProto, x: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


@settings(max_examples=60, deadline=None)
@given(model=quantizable_models(), x=whole_numbers(SHAPE, 3), encoding=ENCODINGS, bits=st.sampled_from((8, 4)))
def test_on_grids_that_hold_all_values_the_emitted_model_computes_the_same_to_the_bit(model, x, encoding, bits):
    emitted, _ = emit_losslessly(model, x, encoding, bits)
    checker.check_model(emitted, full_check=True)
    assert (emitted.graph.input, emitted.graph.output) == (model.graph.input, model.graph.output)
    expected = run_model(model, x)
    for run in (run_unoptimized, run_model):
        for one, other in zip(expected, run(emitted, x), strict=True):
            np.testing.assert_array_equal(one, other)


@settings(max_examples=60, deadline=None)
@given(model=quantizable_models(), x=whole_numbers(SHAPE, 3), encoding=ENCODINGS, bits=st.sampled_from((8, 4)))
def test_each_tensor_of_the_scheme_is_quantized_once_and_no_zero_point_is_shared(model, x, encoding, bits):
    emitted, scheme = emit_losslessly(model, x, encoding, bits)
    before, index = Index(model.graph), Index(emitted.graph)
    quantized = [node.input[0] for node in emitted.graph.node if node.op_type == QUANTIZE]
    assert len(set(quantized)) == len(quantized)
    # A graph output keeps its name behind its DequantizeLinear.
    source = {name: f"{name}_float" if f"{name}_float" in index.producer else name for name in scheme.activations}
    for name in scheme.activations:
        if any(node.name not in scheme.float_reads.get(name, ()) for node in before.readers(name)):
            assert source[name] in quantized
    again = {f"{name}{end}" for name in scheme.requantized for end in ("_requantized_identity", "_dequantized", "")}
    assert set(quantized) <= {*source.values(), *again}
    for node in emitted.graph.node:
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            assert [reader.name for reader in index.readers(node.input[2])] == [node.name]
