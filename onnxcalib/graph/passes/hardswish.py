"""Split HardSwish into a HardSigmoid and a product, which has an integer kernel."""

from __future__ import annotations

from onnx import ModelProto, NodeProto, helper

from ..edit import refill, take_name
from ..fusion import HARD_BETA, HARD_SWISH_ALPHA
from ..index import is_op, list_names


def split_hardswish(model: ModelProto) -> int:
    """Write each HardSwish as the product of its input and a HardSigmoid; returns the count.

    onnxruntime does the same, but after it has looked for integer kernels, so that the product and what reads it stay
    float. The product has the name and the output of the HardSwish.
    """
    if not any(is_op(node, "HardSwish") for node in model.graph.node):
        return 0
    taken = list_names(model)
    nodes: list[NodeProto] = []
    count = 0
    for node in model.graph.node:
        if is_op(node, "HardSwish"):
            gate, name = (take_name(f"{name}_HardSigmoid", taken) for name in (node.output[0], node.name))
            nodes.append(
                helper.make_node(
                    "HardSigmoid", [node.input[0]], [gate], name=name, alpha=HARD_SWISH_ALPHA, beta=HARD_BETA
                )
            )
            node.op_type = "Mul"
            node.input.append(gate)
            count += 1
        nodes.append(node)
    if count:
        refill(model.graph.node, nodes)
    return count
