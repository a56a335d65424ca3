"""LSTMs on integers: onnxruntime's DynamicQuantizeLSTM, which quantizes what it reads and its own states as it runs.

Its weights are those of an LSTM, transposed, as int8 with a scale a channel. A channel is a row of a gate.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto

from ..spec import LayerScheme
from .edit import write_attributes
from .index import Index, constant
from .layer_params import LayerParams
from .new_nodes import NewNodes
from .packed import DOMAIN
from .recurrent import BIAS, STATES, WEIGHT, input_of

DYNAMIC_LSTM = "DynamicQuantizeLSTM"
PEEPHOLES = 7
# Input of the operator on integers: the scale of the first weight, before its zero point.
SCALE = 8
# Below so many hidden values it is no faster than the LSTM of floats: on one thread of a Zen 4 it takes 1.1 times as
# long at 32, and 0.7 to 0.8 at 64, in 16 steps or more of one sample.
LEAST_HIDDEN = 48


def explain_slow(layer: LayerScheme, index: Index) -> str | None:
    """Why the operator would be slower than the LSTM of floats; None where it is faster."""
    hidden = index.initializers[index.nodes[layer.name].input[STATES]].dims[2]
    if hidden >= LEAST_HIDDEN:
        return None
    return f"with {hidden} hidden values {DYNAMIC_LSTM} is slower than float; --placement all takes it"


def is_dynamic(node: NodeProto) -> bool:
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


def write_dynamic(new: NewNodes, node: NodeProto, params: LayerParams) -> None:
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
