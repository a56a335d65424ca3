"""Fold BatchNormalization, and arithmetic with constants by channel, into the layer in front of it.

With ``y`` the layer's output on channel c, in float64:

    BatchNormalization   z = gamma (y - mean) / sqrt(var + eps) + beta = s y + t,
                         s = gamma / sqrt(var + eps),  t = beta - mean s
    Mul, Div, Add, Sub   z = s y + t with s or t the constant

and, as ``y = W * x + b`` is linear, ``z = (s W) * x + (s b + t)``: s multiplies the weight along its output channels,
which are axis 0 of a Conv, axis 1 within each group of a ConvTranspose (C, M / g, ...), the columns of a Gemm (its rows
with transB). A Gemm's ``alpha A B + beta C`` becomes ``alpha A (s B) + (s beta C + t)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto

from ..edit import remove_nodes, write_attributes, write_operand
from ..finite import is_weight
from ..index import Index, attribute_of, constant, is_op, known_constant
from ..layers import channel_axis, count_channels
from ..ops import CHANNEL_LAYERS
from ..shapes import infer_shapes

# Defaults of the operator's attributes (onnx operator specification).
DEFAULT_EPSILON = 1e-5
INFERENCE_MODE, SPATIAL = 0, 1


@dataclass(frozen=True, eq=False)
class _Affine:
    """``z = scale y + shift`` by channel, in float64; both have one value, or one a channel."""

    scale: np.ndarray
    shift: np.ndarray


def fold_batchnorm(model: ModelProto) -> int:
    """Fold each inference-mode BatchNormalization that alone reads a layer's output, which the layer then gives.

    Layers are Conv, ConvTranspose, Gemm, and MatMul of a two-dimensional tensor, which becomes a Gemm. A weight that
    other nodes read too is copied first. Each node needs a name of its own. Returns the count.
    """
    _matmuls_to_gemm(model)
    index = Index(model.graph)
    spent = []
    for node in model.graph.node:
        layer = _layer_before(index, node, 0) if is_op(node, "BatchNormalization") else None
        affine = None if layer is None else _norm_affine(index, node)
        if layer is None or affine is None or not _absorb(model, index, layer, affine):
            continue
        _take_over(index, layer, node)
        spent.append(node.name)
    remove_nodes(model, spent)
    return len(spent)


def fold_affine(model: ModelProto) -> int:
    """Fold each Mul, Div, Add or Sub of a layer's output with a constant by channel into the layer; returns the count.

    Some exporters write a BatchNormalization as these. The conditions are those of ``fold_batchnorm``.
    """
    index = Index(model.graph)
    spent = []
    for node in model.graph.node:
        if not is_op(node, "Mul", "Div", "Add", "Sub"):
            continue
        for number in (0, 1):
            layer = _layer_before(index, node, number)
            affine = None if layer is None else _arithmetic_affine(index, node, number, layer)
            if layer is not None and affine is not None and _absorb(model, index, layer, affine):
                _take_over(index, layer, node)
                spent.append(node.name)
                break
    remove_nodes(model, spent)
    return len(spent)


def _layer_before(index: Index, node: NodeProto, number: int) -> NodeProto | None:
    """The layer that makes the node's input of this number, if the node alone reads it, once."""
    tensor = node.input[number]
    layer = index.producer.get(tensor)
    if layer is None or not is_op(layer, *CHANNEL_LAYERS) or tensor in index.outputs:
        return None
    alone = len(index.readers(tensor)) == 1 and list(node.input).count(tensor) == 1
    return layer if alone else None


def _take_over(index: Index, layer: NodeProto, node: NodeProto) -> None:
    layer.output[0] = node.output[0]
    index.producer[node.output[0]] = layer


def _norm_affine(index: Index, node: NodeProto) -> _Affine | None:
    if attribute_of(node, "training_mode", INFERENCE_MODE) != INFERENCE_MODE:
        return None
    if attribute_of(node, "spatial", SPATIAL) != SPATIAL or any(name for name in node.output[1:]):
        return None
    if not index.initializers.keys() >= set(node.input[1:5]):
        return None
    gamma, beta, mean, var = (known_constant(index, name).astype(np.float64) for name in node.input[1:5])
    with np.errstate(all="ignore"):  # _absorb refuses what is not finite
        scale = gamma / np.sqrt(var + attribute_of(node, "epsilon", DEFAULT_EPSILON))
    return _Affine(scale, beta - mean * scale)


def _arithmetic_affine(index: Index, node: NodeProto, number: int, layer: NodeProto) -> _Affine | None:
    """What a Mul, Div, Add or Sub does to the layer's output, which is its input of this number."""
    value = constant(index, node.input[1 - number])
    weight = constant(index, layer.input[1])
    if value is None or weight is None or value.dtype.kind != "f" or not is_weight(value):
        return None
    if node.op_type == "Div" and number == 1:
        return None
    # A Gemm's output has two dimensions, and a Conv's as many as its weight.
    value = _by_channel(value.astype(np.float64), weight.ndim, count_channels(layer, weight.shape))
    if value is None:
        return None
    one, zero = np.ones_like(value), np.zeros_like(value)
    if node.op_type == "Mul":
        return _Affine(value, zero)
    if node.op_type == "Div":
        with np.errstate(all="ignore"):
            return _Affine(1.0 / value, zero)
    if node.op_type == "Add":
        return _Affine(one, value)
    return _Affine(one, -value) if number == 0 else _Affine(-one, value)


def _by_channel(value: np.ndarray, rank: int, channels: int) -> np.ndarray | None:
    """The constant as one value, or one a channel, if it differs along axis 1 of the output alone."""
    if value.ndim > rank:
        return None
    shape = (1,) * (rank - value.ndim) + value.shape
    if any(size != 1 for axis, size in enumerate(shape) if axis != 1) or shape[1] not in (1, channels):
        return None
    return value.reshape(-1)


def _absorb(model: ModelProto, index: Index, layer: NodeProto, affine: _Affine) -> bool:
    """Write ``s W`` and ``s b + t`` into the layer; returns False, and writes nothing, where that is not possible."""
    weight = constant(index, layer.input[1])
    if weight is None or weight.dtype.kind != "f":
        return False
    channels = count_channels(layer, weight.shape)
    bias = np.zeros(channels)
    if len(layer.input) > 2 and layer.input[2]:
        stored = constant(index, layer.input[2])
        # A Gemm may add a constant of several rows, which is no bias.
        if stored is None or stored.size not in (1, channels) or stored.shape[:-1] not in ((), (1,)):
            return False
        bias = bias + stored.reshape(-1) * attribute_of(layer, "beta", 1.0)
    if affine.scale.size not in (1, channels) or affine.shift.size not in (1, channels):
        return False
    if not (np.isfinite(affine.scale).all() and np.isfinite(affine.shift).all()):
        return False
    scale = np.broadcast_to(affine.scale, (channels,))
    with np.errstate(over="ignore"):  # values beyond the weight's own type are refused below
        new_weight = _scale_weight(layer, weight.astype(np.float64), scale).astype(weight.dtype)
        new_bias = (scale * bias + affine.shift).astype(weight.dtype)
    if not (np.isfinite(new_weight).all() and np.isfinite(new_bias).all()):
        return False
    if not np.all(scale == 1.0):
        write_operand(model.graph, index, layer, 1, new_weight)
    has_bias = len(layer.input) > 2 and layer.input[2]
    if has_bias or new_bias.any():
        write_operand(model.graph, index, layer, 2, new_bias)
    write_attributes(layer, {}, drop=("beta",))
    return True


def _scale_weight(layer: NodeProto, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The weight with each output channel multiplied by its scale, (channels,)."""
    group = attribute_of(layer, "group", 1) if layer.op_type == "ConvTranspose" else 1
    axis = channel_axis(layer)
    # The channels of a ConvTranspose lie group by group in front of those of a group.
    grouped = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
    factors = scale.reshape(group, *(weight.shape[axis] if each == axis else 1 for each in range(weight.ndim)))
    scaled: np.ndarray = (grouped * factors).reshape(weight.shape)
    return scaled


def _matmuls_to_gemm(model: ModelProto) -> None:
    """Turn a MatMul whose output of two dimensions a BatchNormalization reads into a Gemm, which can carry a bias."""
    index = Index(model.graph)
    shapes = None
    for norm in [node for node in model.graph.node if is_op(node, "BatchNormalization")]:
        node = index.producer.get(norm.input[0])
        if node is None or not is_op(node, "MatMul") or len(index.readers(norm.input[0])) != 1:
            continue
        weight = constant(index, node.input[1])
        if weight is None or weight.ndim != 2:
            continue
        shapes = infer_shapes(model) if shapes is None else shapes
        if len(shapes.get(node.input[0], ())) == 2:
            node.op_type = "Gemm"
