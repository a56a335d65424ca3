"""LSTMs on integers: onnxruntime's DynamicQuantizeLSTM, which quantizes what it reads and its own states as it runs.

Its weights are those of an LSTM, transposed, as int8 with a scale a channel. A channel is a row of a gate.
"""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from ..spec import INT16_MAX, LayerScheme, QParams, QuantSpec
from .edit import write_attributes
from .index import Index, attribute_of, constant, is_op
from .layer_params import LayerParams
from .new_nodes import NewNodes
from .packed import DOMAIN
from .weight_file import put_zeros

LSTM, DYNAMIC_LSTM = "LSTM", "DynamicQuantizeLSTM"
# Inputs of both operators: what is read, the weight of that, that of the states, the biases, ...
INPUT, WEIGHT, STATES, BIAS, LENGTHS, FIRST_STATE, PEEPHOLES = (0, 1, 2, 3, 4, 5, 7)
# Input of the operator on integers: the scale of the first weight, before its zero point.
SCALE = 8
GATES = 4
# The kernel has no others.
BITS = 8
# Below so many hidden values it is no faster than the LSTM of floats: on one thread of a Zen 4 it takes 1.1 times as
# long at 32, and 0.7 to 0.8 at 64, in 16 steps or more of one sample.
LEAST_HIDDEN = 48


def find_recurrent(model: ModelProto, index: Index, *, pair_limits: bool = True) -> tuple[LayerScheme, ...]:
    """The LSTMs that the operator can stand for, each described as a layer of its input's weight (D, 4 H, K).

    The weight of its states (D, 4 H, H) has the same specs; D directions, H hidden values. pair_limits: see
    ``make_scheme``.
    """
    found = (node for node in model.graph.node if is_op(node, LSTM) and explain_float(node, index) is None)
    limit = INT16_MAX // QuantSpec(BITS).qmax if pair_limits else None
    return tuple(
        LayerScheme(
            name=node.name,
            op=node.op_type,
            input=node.input[INPUT],
            weight=node.input[WEIGHT],
            bias=input_of(node, BIAS) or None,
            output=next(filter(None, node.output)),
            weight_spec=QuantSpec(BITS, signed=True, symmetric=True, axis=1, pair_limit=limit),
            activation_spec=QuantSpec(BITS),
            groups=index.initializers[node.input[WEIGHT]].dims[0],
            channel_axis=1,
            dynamic=True,
        )
        for node in found
    )


def explain_unfit(graph: GraphProto, index: Index) -> dict[str, str]:
    """Maps the LSTMs that the operator cannot stand for to the reasons."""
    reasons = ((node.name, explain_float(node, index)) for node in graph.node if is_op(node, LSTM))
    return {name: reason for name, reason in reasons if reason is not None}


def explain_float(node: NodeProto, index: Index) -> str | None:
    """Why an LSTM cannot become a DynamicQuantizeLSTM; None where it can."""
    if attribute_of(node, "layout", 0):
        return f"it has layout 1, and {DYNAMIC_LSTM} has layout 0 alone"
    if input_of(node, INPUT) in index.initializers:
        return "its input is a constant"
    given = [input_of(node, number) for number in (WEIGHT, STATES, BIAS)]
    stored = [index.initializers.get(name) for name in given]
    if any(tensor is None for name, tensor in zip(given, stored, strict=True) if name):
        return "its weights are computed, not stored"
    tensors = [tensor for tensor in stored if tensor is not None]
    if any(tensor.data_type != TensorProto.FLOAT for tensor in tensors):
        return "its weights are not of type float; export the model in float32"
    if any(0 in tensor.dims or len(tensor.dims) != 3 for tensor in tensors[:2]):
        return "its weights have no values, or not three dimensions"
    return None


def explain_slow(layer: LayerScheme, index: Index) -> str | None:
    """Why the operator would be slower than the LSTM of floats; None where it is faster."""
    hidden = index.initializers[index.nodes[layer.name].input[STATES]].dims[2]
    if hidden >= LEAST_HIDDEN:
        return None
    return f"with {hidden} hidden values {DYNAMIC_LSTM} is slower than float; --placement all quantizes it"


def is_recurrent(node: NodeProto) -> bool:
    """Whether a node is a DynamicQuantizeLSTM."""
    return bool(node.op_type == DYNAMIC_LSTM and node.domain == DOMAIN)


def scales_of(index: Index, node: NodeProto, weight: TensorProto) -> list[np.ndarray] | None:
    """Scale and zero point of the weight (D, K, 4 H) of what a DynamicQuantizeLSTM reads, which broadcast to it.

    None where they are no constants of one value or one a channel for each direction.
    """
    if len(weight.dims) != 3:
        return None
    directions, _, channels = weight.dims
    found = [constant(index, input_of(node, number)) for number in (SCALE, SCALE + 1)]
    fit = [each for each in found if each is not None and each.size in (directions, directions * channels)]
    return [each.reshape(directions, 1, -1) for each in fit] if len(fit) == len(found) else None


def write_recurrent(new: NewNodes, node: NodeProto, params: LayerParams) -> None:
    """Make an LSTM a DynamicQuantizeLSTM of these parameters, whose ``states`` are those of the other weight."""
    assert params.states is not None and params.bias is not None
    scales: list[str] = []
    inputs = [*node.input, *[""] * (PEEPHOLES + 1 - len(node.input))]
    for number, each in ((WEIGHT, params), (STATES, params.states)):
        name = f"{node.input[number]}_{node.name}"
        turned = each.read().astype(np.int8).transpose(0, 2, 1)
        inputs[number] = new.constant(f"{name}_quantized", turned)
        scales.append(new.constant(f"{name}_scale", each.grid.scale.astype(np.float32)))
        scales.append(new.constant(f"{name}_zero_point", each.grid.zero_point.astype(np.int8)))
    inputs[BIAS] = new.constant(f"{node.name}_bias", params.bias.astype(np.float32))
    node.op_type, node.domain = DYNAMIC_LSTM, DOMAIN
    del node.input[:]
    node.input.extend([*inputs, *scales])
    write_attributes(node, {}, drop=("layout",))


def zeros_of_recurrent(layer: LayerScheme, index: Index) -> LayerParams:
    """Parameters of an LSTM that hold no values of its weights."""
    found: LayerParams | None = None
    for number in (STATES, WEIGHT):
        dims = tuple(index.initializers[index.nodes[layer.name].input[number]].dims)
        shape = dims[:2]
        grid = QParams(np.ones(shape, np.float32), np.zeros(shape, np.int32), layer.weight_spec)
        bias = np.zeros((dims[0], 2 * dims[1]), np.float32)
        found = LayerParams(put_zeros(dims, BITS), grid, bias, states=found)
    assert found is not None
    return found


def input_of(node: NodeProto, number: int) -> str:
    """The tensor that a node reads as this input, or an empty text."""
    name: str = node.input[number] if number < len(node.input) else ""
    return name
