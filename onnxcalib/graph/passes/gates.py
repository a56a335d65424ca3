"""Fold a HardSigmoid into the layer whose output it alone reads, as in a squeeze-and-excite gate."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto

from ..edit import add_constant, drop_stale_shapes, take_name, write_operand
from ..fusion import HARD_ALPHA, HARD_BETA
from ..index import Index, attribute_of, constant, is_op, known_constant, list_names
from ..layers import count_channels


def fold_hardsigmoid(model: ModelProto) -> int:
    """Turn each HardSigmoid of a Conv or Gemm into a Clip to [0, 1]; returns the count.

    The layer's output, which holds other values then, has another name.

    ``clip(alpha (W x + b) + beta, 0, 1) = clip((alpha W) x + (alpha b + beta), 0, 1)``. HardSigmoid has no integer
    kernel, and a grid that ends inside of [0, 1] absorbs the Clip.
    """
    if not any(is_op(node, "HardSigmoid") for node in model.graph.node):
        return 0
    index = Index(model.graph)
    taken = list_names(model)
    ends: list[str] = []
    count = 0
    for node in model.graph.node:
        layer = _find_layer(index, node)
        if layer is None:
            continue
        alpha, beta = attribute_of(node, "alpha", HARD_ALPHA), attribute_of(node, "beta", HARD_BETA)
        weight = index.initializers[layer.input[1]]
        values = known_constant(index, layer.input[1])
        bias = constant(index, layer.input[2]) if len(layer.input) > 2 and layer.input[2] else None
        if bias is None:
            bias = np.zeros(count_channels(layer, weight.dims), np.float32)
        write_operand(model.graph, index, layer, 1, (alpha * values).astype(np.float32))
        write_operand(model.graph, index, layer, 2, (alpha * bias + beta).astype(np.float32))
        for end in () if ends else (0.0, 1.0):
            ends.append(add_constant(model.graph, take_name(f"gate_{end:.0f}", taken), np.float32(end)))
        scaled = take_name(f"{node.input[0]}_scaled", taken)
        layer.output[0] = node.input[0] = scaled
        node.op_type = "Clip"
        del node.attribute[:]
        node.input.extend(ends)
        count += 1
    if count:
        drop_stale_shapes(model.graph)
    return count


def _find_layer(index: Index, node: NodeProto) -> NodeProto | None:
    """The Conv or Gemm of constants of which a HardSigmoid alone reads the output; None where there is none."""
    if not is_op(node, "HardSigmoid") or attribute_of(node, "alpha", HARD_ALPHA) <= 0:
        return None
    source = node.input[0]
    layer = index.producer.get(source)
    if layer is None or not is_op(layer, "Conv", "Gemm") or source in index.outputs:
        return None
    operands = [name for name in layer.input[1:] if name]
    alone = [reader.name for reader in index.readers(source)] == [node.name]
    return layer if alone and index.initializers.keys() >= set(operands) else None
