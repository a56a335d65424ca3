"""Small models from text, and onnxruntime to compare them with."""

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto, helper, numpy_helper, parser

from onnxcalib.graph.emit import emit_qdq
from onnxcalib.graph.index import Index, constant
from onnxcalib.graph.layer_params import LayerParams
from onnxcalib.graph.layout import summing_order, to_rows
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.numeric.pairs import pair_sums
from onnxcalib.numeric.ranges import make_grid
from onnxcalib.numeric.rounding import quantize
from onnxcalib.spec import Grids, LayerScheme, QParams


def build_model(text: str, *, opset: int = 17, ir: int = 8, **weights: np.ndarray) -> ModelProto:
    """The model of a graph in ONNX text, with these initializers added; ``a__b`` in a keyword stands for ``a.b``."""
    model = parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]>\n{text}')
    for name, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name.replace("__", ".")))
    return model


def change_constant(model: ModelProto, name: str, make) -> ModelProto:
    """A copy of the model with one initializer made anew."""
    changed = ModelProto.FromString(model.SerializeToString())
    tensor = next(t for t in changed.graph.initializer if t.name == name)
    value = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(make(value), value.dtype), name))
    return changed


def run_model(model: ModelProto, *inputs: np.ndarray) -> list[np.ndarray]:
    """Outputs in onnxruntime, inputs in the order of those that are no initializers."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: array for value, array in zip(session.get_inputs(), inputs, strict=True)})


def round_layer(layer: LayerScheme, index: Index) -> LayerParams:
    """The layer's weight rounded on the grid over its channels' largest values or pairs, its bias as it is.

    Every second scale is negative where scales may be, and every third channel has half steps where it may.
    """
    weight, axis = constant(index, layer.weight), layer.weight_spec.axis
    if layer.weight_spec.block is not None:
        return round_in_blocks(layer, weight, constant(index, layer.bias) if layer.bias else None)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.maximum(np.abs(weight).max(axis=others), 1e-6).astype(np.float32) / layer.weight_spec.qmax
    if limit := layer.weight_spec.pair_limit:
        rows = to_rows(weight, layer)[..., summing_order(layer, weight.shape)]
        largest = pair_sums(torch.from_numpy(rows)).amax(-1).flatten().numpy()
        scale = np.maximum(scale, largest / (limit - 1))  # as each of a pair may be rounded up
    if layer.weight_spec.signed_scale:
        scale[::2] *= -1
    zero = np.zeros(len(scale), np.int32)
    if layer.weight_spec.half_steps:
        zero = np.where(np.arange(len(scale)) % 3, 0, -0.5).astype(np.float32)
    positions = weight + np.expand_dims(zero * scale, others)
    integers = quantize(positions, np.expand_dims(scale, others), 0, layer.weight_spec)
    grid = QParams(scale, zero, layer.weight_spec)
    return LayerParams(integers.astype(np.int8), grid, constant(index, layer.bias) if layer.bias else None)


def round_in_blocks(layer: LayerScheme, weight: np.ndarray, bias: np.ndarray | None) -> LayerParams:
    """As ``round_layer``, on a grid for each block of a matrix."""
    spec, along = layer.weight_spec, 1 - layer.weight_spec.axis
    starts = np.arange(0, weight.shape[along], spec.block)
    scale = np.maximum(np.maximum.reduceat(np.abs(weight), starts, axis=along), 1e-6).astype(np.float32) / spec.qmax
    spread = scale.repeat(spec.block, along).take(range(weight.shape[along]), along)
    integers = quantize(weight, spread, 0, spec).astype(np.int8)
    return LayerParams(integers, QParams(scale, np.zeros(scale.shape, np.int32), spec), bias)


def quantize_roughly(model: ModelProto, *inputs: np.ndarray, encoding: str = "runtime", **bits: int) -> ModelProto:
    """The model planned and emitted with min-max grids measured on one batch."""
    scheme, index = make_scheme(model, **bits), Index(model.graph)
    opened = ModelProto()
    opened.CopyFrom(model)
    names = [t for t in scheme.activations if t in index.producer]
    opened.graph.output.extend(helper.make_empty_tensor_value_info(t) for t in names if t not in index.outputs)
    outputs = [value.name for value in opened.graph.output]
    values = dict(zip([*index.inputs, *outputs], [*inputs, *run_model(opened, *inputs)], strict=True))
    sets = {t: members for members in scheme.shared for t in members}

    def measure(tensors, spec):
        low, high = min(values[t].min() for t in tensors), max(values[t].max() for t in tensors)
        bounds = [scheme.nonnegative[t] for t in tensors if t in scheme.nonnegative]
        return make_grid(float(low), float(high), spec, bound=min(bounds, default=None))

    activations = {t: measure(sets.get(t, (t,)), spec) for t, spec in scheme.activations.items()}
    requantized = {t: measure((t,), spec) for t, spec in scheme.requantized.items()}
    layers = {layer.name: round_layer(layer, index) for layer in (*scheme.layers, *scheme.embeddings)}
    return emit_qdq(model, scheme, Grids(activations, requantized), layers, encoding=encoding, keep_outputs=False)
