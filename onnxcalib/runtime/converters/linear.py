"""Linear: our own operator, to which a Gemm or MatMul with a constant weight is rewritten in the copy of a block.

onnx2torch makes the constant operand of a MatMul a buffer, which cannot be trained.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import NodeProto, TensorProto, helper
from torch import nn

from .layer import fill, read_weight
from .registry import OWN_DOMAIN, OWN_VERSION, Converted, OnnxGraph, OnnxNode, initializer, register


def rewrite_linear(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Rewrite ``node`` in place to a Linear, ``Y = X W + C``; False, and no change, where it is not one.

    It is one if it is a MatMul with a constant 2-D W, or a Gemm with alpha = beta = 1, X not transposed and a constant
    C that is the same for all rows. constants: initializers by name.
    """
    if node.domain or node.op_type not in ("Gemm", "MatMul") or node.input[0] in constants:
        return False
    weight = constants.get(node.input[1])
    if weight is None or len(weight.dims) != 2:
        return False
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1 or attributes.get("beta", 1.0) != 1:
        return False
    transposed = not attributes.get("transB", 0)
    if len(node.input) == 3 and node.input[2]:
        bias = constants.get(node.input[2])
        features = weight.dims[1 if transposed else 0]
        if bias is None or not _is_row(list(bias.dims), features):
            return False
    del node.attribute[:]
    node.domain, node.op_type = OWN_DOMAIN, "Linear"
    node.attribute.append(helper.make_attribute("transposed", int(transposed)))
    return True


def _is_row(dims: list[int], features: int) -> bool:
    """Whether a shape is that of a scalar or of one row."""
    return all(size == 1 for size in dims[:-1]) and dims[-1:] in ([], [1], [features])


@register("Linear", OWN_VERSION, domain=OWN_DOMAIN)
def build_linear(node: OnnxNode, graph: OnnxGraph) -> Converted:
    """``nn.Linear``; the node's weight is (out, in), or (in, out) where its attribute ``transposed`` is 1."""
    weight, bias = read_weight(graph, node), initializer(graph, node, 2)
    if node.attributes["transposed"]:
        weight = weight.T
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    fill(layer, weight, None if bias is None else bias.reshape(-1).expand(weight.shape[0]))
    return Converted(layer, node.input_values[:1])
