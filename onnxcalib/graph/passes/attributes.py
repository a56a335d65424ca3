"""Write out the attributes that convolutions and pools may leave out, as not every runtime fills in the defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import GraphProto, ModelProto, NodeProto

from ..edit import write_attributes
from ..index import all_nodes, attribute_of, in_scope, is_op, subgraphs
from ..layout import window_of
from ..ops import CONVOLUTIONS, POOLS
from ..shapes import Shape, infer_shapes


def spell_attributes(model: ModelProto) -> int:
    """Give each convolution and pool its kernel_shape, strides, dilations, pads and group; returns how many changed.

    An AveragePool gets no dilations of 1, as its integer kernel in onnxruntime refuses the attribute. An auto_pad is
    replaced by pads if these are the same for every input: for VALID, for strides of 1, or for inputs of fixed size.
    Otherwise it stays, and no pads are written. In a ConvTranspose auto_pad and output_shape always stay. Nodes inside
    bodies get their attributes too.
    """
    if not any(is_op(node, *CONVOLUTIONS, *POOLS) for node in all_nodes(model.graph)):
        return 0
    return _spell_graph(model.graph, infer_shapes(model))


def _spell_graph(graph: GraphProto, shapes: Mapping[str, Shape]) -> int:
    count = 0
    for node in graph.node:
        if is_op(node, *CONVOLUTIONS, *POOLS):
            count += _spell_node(node, shapes)
        for body in subgraphs(node):
            own: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in body.initializer}
            count += _spell_graph(body, in_scope(body, shapes, own))
    return count


def _spell_node(node: NodeProto, shapes: Mapping[str, Shape]) -> bool:
    kernel = _kernel_of(node, shapes)
    if not kernel:
        return False
    ones = [1] * len(kernel)
    values: dict[str, float | str | Sequence[int]] = {
        "kernel_shape": kernel,
        "strides": attribute_of(node, "strides", ones),
    }
    dilations = attribute_of(node, "dilations", ones)
    if node.op_type != "AveragePool" or max(dilations) > 1:
        values["dilations"] = dilations
    if node.op_type in CONVOLUTIONS:
        values["group"] = attribute_of(node, "group", 1)
    pads = _find_pads(node, kernel, shapes.get(node.input[0], ())[2:])
    if pads is not None:
        values["pads"] = pads
    given = {attribute.name for attribute in node.attribute}
    replaced = {"dilations"} - values.keys() | ({"auto_pad"} if pads is not None else set())
    if given >= values.keys() and given.isdisjoint(replaced):
        return False
    write_attributes(node, values, drop=replaced)
    return True


def _kernel_of(node: NodeProto, shapes: Mapping[str, Shape]) -> Sequence[int] | None:
    """The kernel's size; None where neither the node nor a constant weight has it."""
    sizes: Sequence[int | None] | None = attribute_of(node, "kernel_shape", None)
    if sizes is None and node.op_type in CONVOLUTIONS:
        sizes = shapes.get(node.input[1], ())[2:]
    known = [size for size in sizes or () if size is not None]
    return known if sizes is not None and len(known) == len(sizes) else None


def _find_pads(node: NodeProto, kernel: Sequence[int], sizes: Shape) -> Sequence[int] | None:
    """Pads on every axis, begins and then ends; None where they depend on what is not known."""
    auto = attribute_of(node, "auto_pad", b"NOTSET")
    strides, dilations = (attribute_of(node, name, [1] * len(kernel)) for name in ("strides", "dilations"))
    if node.op_type == "ConvTranspose" and (auto != b"NOTSET" or attribute_of(node, "output_shape", None)):
        return None
    if not auto.startswith(b"SAME"):
        return window_of(node, tuple(kernel), ())["pads"]
    # With SAME onnxruntime's pools differ from the standard: they ignore dilations, and their pads may be negative.
    if node.op_type in POOLS and (max(dilations) > 1 or any(s > k for s, k in zip(strides, kernel, strict=True))):
        return None
    known = sizes if len(sizes) == len(kernel) else (None,) * len(kernel)
    if any(size is None and stride > 1 for size, stride in zip(known, strides, strict=True)):
        return None
    # With a stride of 1 any size has the same pads.
    return window_of(node, tuple(kernel), tuple(1 if size is None else size for size in known))["pads"]
