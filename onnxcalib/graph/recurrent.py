"""LSTM, GRU and RNN: which of them have weights that become integers, and how these are written.

Such a layer reads floats, and its weights are integers times scales, see ``scaled_weights``. An LSTM can also become an
operator on integers, see ``dynamic_lstm``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from ..config import FULL_BITS
from ..errors import ConfigError
from ..spec import FLOAT_BITS, INT16_MAX, LayerScheme, QParams, QuantSpec, Requirements
from .index import Index, attribute_of, is_op
from .layer_params import LayerParams
from .names import Selection
from .new_nodes import NewNodes
from .ops import RECURRENT
from .scaled_weights import write_scaled
from .weight_file import put_zeros

LSTM, GRU = "LSTM", "GRU"
# Inputs of the operators: what is read, the weight W of that, the weight R of the states, the biases of both, ...
INPUT, WEIGHT, STATES, BIAS, LENGTHS, FIRST_STATE = range(6)


def find_recurrent(
    model: ModelProto,
    index: Index,
    weight_bits: int,
    selection: Selection,
    requirements: Requirements,
    *,
    dynamic: bool,
    limits: bool,
) -> tuple[LayerScheme, ...]:
    """The recurrent layers with integers as weights, excluded ones too, each described as a layer of its W (D, C, K).

    R (D, C, H) has the same specs. D directions, C rows of gates, K inputs, H hidden values. An LSTM rounds what it
    reads as it runs where ``dynamic``, or its own settings, ask for it, and the target has the operator; others read
    float, with weights of ``weight_bits``. limits: see ``pair_limits`` of ``make_scheme``.
    """
    limit = INT16_MAX // QuantSpec(FULL_BITS).qmax if limits else None
    runs = QuantSpec(FULL_BITS, signed=True, symmetric=True, axis=1, pair_limit=limit)
    found = []
    for node in model.graph.node:
        if not is_op(node, *RECURRENT) or explain_float(node, index) is not None:
            continue
        own = selection.settings(node.name)
        asked = (own.activations or ("dynamic" if dynamic else "static")) == "dynamic"
        on_integers = asked and is_op(node, LSTM) and requirements.recurrent and own.activation_bits != FLOAT_BITS
        if not on_integers and not requirements.recurrent_weights:
            continue
        layer = LayerScheme(
            name=node.name,
            op=node.op_type,
            input=node.input[INPUT],
            weight=node.input[WEIGHT],
            bias=input_of(node, BIAS) or None,
            output=next(filter(None, node.output)),
            weight_spec=runs if on_integers else QuantSpec(weight_bits, signed=True, symmetric=True, axis=1),
            activation_spec=QuantSpec(FULL_BITS if on_integers else FLOAT_BITS),
            groups=index.initializers[node.input[WEIGHT]].dims[0],
            channel_axis=1,
            dynamic=on_integers,
        )
        found.append(layer)
    return tuple(found)


def refuse_settings(selection: Selection, layers: Sequence[LayerScheme]) -> None:
    """Raise ConfigError for settings that recurrent layers cannot have, or that other layers have no use for."""
    recurrent = {layer.name: layer for layer in layers}
    for name, own in selection.layers:
        layer = recurrent.get(name)
        if own.activations is not None and (layer is None or layer.op != LSTM):
            raise ConfigError(
                f"layers: {name!r}: activations: found {own.activations!r}; an LSTM has it, and all layers together;"
                " leave it out"
            )
        if layer is None:
            continue
        if own.activations == "dynamic" and not layer.dynamic:
            raise ConfigError(
                f"layers: {name!r}: activations: found 'dynamic'; that is for files for onnxruntime with operators of"
                " its own, and for activations of 8 bits; leave it out"
            )
        taken = (None, FULL_BITS) if layer.dynamic else (None, FLOAT_BITS)
        if layer.dynamic and own.weight_bits not in taken:
            raise ConfigError(
                f"layers: {name!r}: weight_bits: found {own.weight_bits}; an LSTM has {FULL_BITS} bits beside"
                " activations 'dynamic', as its kernel takes no others; leave it out, or give activations 'static'"
            )
        if own.activation_bits not in taken:
            reads = "8 beside activations 'dynamic'" if layer.dynamic else "32, as it reads float"
            raise ConfigError(
                f"layers: {name!r}: activation_bits: found {own.activation_bits}; this {layer.op} has {reads}; leave it"
                " out"
            )


def explain_all_float(model: ModelProto, index: Index) -> dict[str, str]:
    """Maps the recurrent layers whose weights cannot become integers to the reasons."""
    reasons = ((node.name, explain_float(node, index)) for node in model.graph.node if is_op(node, *RECURRENT))
    return {name: reason for name, reason in reasons if reason is not None}


def explain_float(node: NodeProto, index: Index) -> str | None:
    """Why the weights of a recurrent layer cannot become integers; None where they can."""
    if attribute_of(node, "layout", 0):
        return "it has layout 1, which onnxruntime does not run; export it with time as the first axis"
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


WrittenWeights = dict[tuple[str, str, bytes, bytes], str]  # a weight, its spec, integers and scales -> who has it


def write_weights(new: NewNodes, node: NodeProto, params: LayerParams, written: WrittenWeights) -> list[NodeProto]:
    """Let a recurrent layer read these parameters, whose ``states`` are those of R; returns the nodes for that.

    written: what layers before it read, to which its own is added; equal values of one weight are written once.
    """
    assert params.states is not None
    nodes: list[NodeProto] = []
    for number, each in ((WEIGHT, params), (STATES, params.states)):
        name = f"{node.input[number]}_{node.name}"
        key = node.input[number], repr(each.grid.spec), each.read().tobytes(), each.grid.scale.tobytes()
        if key not in written:
            written[key] = new.name(f"{name}_dequantized")
            nodes += write_scaled(new, name, written[key], each.integers, each.grid)
        node.input[number] = written[key]
    if params.bias is not None:
        node.input.extend([""] * (BIAS + 1 - len(node.input)))
        node.input[BIAS] = new.constant(f"{node.name}_bias", params.bias.astype(np.float32))
    return nodes


def zeros_of_recurrent(layer: LayerScheme, index: Index) -> LayerParams:
    """Parameters of a recurrent layer that hold no values of its weights."""
    found: LayerParams | None = None
    spec = layer.weight_spec
    for number in (STATES, WEIGHT):
        dims = tuple(index.initializers[index.nodes[layer.name].input[number]].dims)
        shape = dims[:2] if spec.block is None else (*dims[:2], -(-dims[2] // spec.block))
        grid = QParams(np.ones(shape, np.float32), np.zeros(shape, np.int32), spec)
        bias = np.zeros((dims[0], 2 * dims[1]), np.float32)
        found = LayerParams(put_zeros(dims, spec.bits), grid, bias, states=found)
    assert found is not None
    return found


def input_of(node: NodeProto, number: int) -> str:
    """The tensor that a node reads as this input, or an empty text."""
    name: str = node.input[number] if number < len(node.input) else ""
    return name
