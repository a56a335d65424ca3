"""The last convolutions in front of the parts of an output, which cost next to nothing in float.

A convolution gives integers to onnxruntime, so that 256 levels hold the logits of all classes, of which a few decide. A
matrix product gives float. The convolutions in front of boxes and scores are small, and nothing reads them on integers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from onnx import ModelProto, NodeProto

from ..graph.index import Index, walk_back
from ..graph.kernel_times import Shapes
from ..graph.layers import count_macs
from ..graph.ops import LAYERS
from ..graph.parts import Part

# The convolutions that are left in float have no more than this share of the products and of the weights of the model.
MOST_SHARE = 0.02


def find_last_layers(model: ModelProto, parts: Mapping[str, tuple[Part, ...]], shapes: Shapes) -> dict[str, str]:
    """Maps the last convolutions in front of parts of outputs to why they stay in float, as far as they cost little.

    parts: see ``find_parts``; shapes: of all tensors in one run.
    """
    index = Index(model.graph)
    nearest = {
        output: {name for part in found for t in part.tensors for name in find_nearest(index, t)}
        for output, found in parts.items()
    }
    if not any(nearest.values()):
        return {}
    costs = count_costs(model, index, shapes)
    total = [sum(each) for each in zip(*costs.values(), strict=True)]
    chosen: dict[str, str] = {}
    for output, names in nearest.items():
        own = [sum(each) for each in zip(*(costs[name] for name in names if name in costs), strict=True)]
        if own and all(mine <= MOST_SHARE * most for mine, most in zip(own, total, strict=True)):
            share = f"{100 * own[0] / total[0]:.1f}% of the model's products"
            reason = f"the last layers in front of the parts of {output}, which 256 levels would hold badly; {share}"
            chosen |= {name: reason for name in names if index.nodes[name].op_type == "Conv"}
    return {node.name: chosen[node.name] for node in model.graph.node if node.name in chosen}


def find_nearest(index: Index, tensor: str) -> set[str]:
    """Names of the layers on the ways back from a tensor, of each way the first."""

    def is_layer(node: NodeProto) -> bool:
        return node.op_type in LAYERS and node.input[1] in index.initializers

    return {node.name for node in walk_back(index, [tensor], is_layer) if is_layer(node)}


def count_costs(model: ModelProto, index: Index, shapes: Shapes) -> dict[str, tuple[int, int]]:
    """For each layer with a constant weight its multiplications in one run, and its number of weights."""
    found = {}
    for node in model.graph.node:
        if node.op_type in LAYERS and node.input[1] in index.initializers and node.output[0] in shapes:
            weight = index.initializers[node.input[1]].dims
            macs = count_macs(node, weight, shapes.get(node.input[0], ()), shapes[node.output[0]])
            found[node.name] = (macs, math.prod(weight))
    return found
