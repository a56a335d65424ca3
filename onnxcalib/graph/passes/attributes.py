"""Write out the attributes that convolutions and pools may leave to their defaults: not every runtime fills them in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import GraphProto, ModelProto, NodeProto, helper

from ..index import all_nodes, attribute_of, is_op, subgraphs
from ..layout import window_of
from ..ops import CONVOLUTIONS, POOLS
from ..shapes import Shape, infer_shapes


def spell_attributes(model: ModelProto) -> int:
    """Give each convolution and pool its kernel_shape, strides, dilations, pads and group; returns how many changed.

    An AveragePool gets no dilations of 1, as its integer kernel in onnxruntime refuses the attribute. An auto_pad
    becomes pads where these are the same for every input: VALID, strides of 1, or fixed sizes. Elsewhere it stays, and
    no pads are written; so it does in a ConvTranspose, as does output_shape. Nodes inside bodies are treated alike.
    """
    if not any(is_op(node, *CONVOLUTIONS, *POOLS) for node in all_nodes(model.graph)):
        return 0
    return _spell_graph(model.graph, infer_shapes(model))


def _spell_graph(graph: GraphProto, outer: Mapping[str, Shape]) -> int:
    shapes = {**outer, **{tensor.name: tuple(tensor.dims) for tensor in graph.initializer}}
    count = 0
    for node in graph.node:
        if is_op(node, *CONVOLUTIONS, *POOLS):
            count += _spell_node(node, shapes)
        count += sum(_spell_graph(body, shapes) for body in subgraphs(node))
    return count


def _spell_node(node: NodeProto, shapes: Mapping[str, Shape]) -> bool:
    kernel = _kernel_of(node, shapes)
    if not kernel:
        return False
    ones = [1] * len(kernel)
    values = {"kernel_shape": kernel, "strides": attribute_of(node, "strides", ones)}
    dilations = attribute_of(node, "dilations", ones)
    if node.op_type != "AveragePool" or max(dilations) > 1:
        values["dilations"] = dilations
    if node.op_type in CONVOLUTIONS:
        values["group"] = attribute_of(node, "group", 1)
    pads = _find_pads(node, kernel, shapes.get(node.input[0], ())[2:])
    if pads is not None:
        values["pads"] = pads
    given = {attribute.name for attribute in node.attribute}
    spent = {"dilations"} - values.keys() | ({"auto_pad"} if pads is not None else set())
    if given >= values.keys() and given.isdisjoint(spent):
        return False
    kept = [attribute for attribute in node.attribute if attribute.name not in values.keys() | spent]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in values.items())])
    return True


def _kernel_of(node: NodeProto, shapes: Mapping[str, Shape]) -> Sequence[int] | None:
    """The kernel's size, None where neither the node nor a constant weight tells it."""
    told = attribute_of(node, "kernel_shape", None)
    if told is None and node.op_type in CONVOLUTIONS:
        told = shapes.get(node.input[1], ())[2:]
    return None if told is None or None in told else told


def _find_pads(node: NodeProto, kernel: Sequence[int], sizes: Shape) -> Sequence[int] | None:
    """Pads on every axis, begins and then ends; None where they depend on what is not known."""
    auto = attribute_of(node, "auto_pad", b"NOTSET")
    strides, dilations = (attribute_of(node, name, [1] * len(kernel)) for name in ("strides", "dilations"))
    if node.op_type == "ConvTranspose" and (auto != b"NOTSET" or attribute_of(node, "output_shape", None)):
        return None
    if not auto.startswith(b"SAME"):
        return window_of(node, tuple(kernel), ())["pads"]
    # There onnxruntime's pools differ from the standard: they ignore dilations, and pad by less than nothing.
    if node.op_type in POOLS and (max(dilations) > 1 or any(s > k for s, k in zip(strides, kernel, strict=True))):
        return None
    known = sizes if len(sizes) == len(kernel) else [None] * len(kernel)
    if any(size is None and stride > 1 for size, stride in zip(known, strides, strict=True)):
        return None
    # With a stride of 1 any size has the same pads.
    return window_of(node, tuple(kernel), tuple(1 if size is None else size for size in known))["pads"]
