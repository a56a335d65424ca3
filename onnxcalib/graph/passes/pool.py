"""Write every mean over all spatial axes as the one operator that has an integer kernel in onnxruntime."""

from __future__ import annotations

import math

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from ..edit import take_name
from ..extract import infer_types
from ..index import Index, attribute_of, constant, is_op, list_names
from ..patterns import whole_nodes


def globalise_pools(model: ModelProto) -> int:
    """Turn AveragePool and ReduceMean over all of every spatial axis into GlobalAveragePool; returns the count.

    ReduceMean has no integer kernel, and from opset 19 on AveragePool's float kernel is several times slower. A mean
    that removes its axes gets a Flatten behind it. Those of a normalisation stay, as onnxruntime fuses it. Nodes keep
    their names and outputs.
    """
    nodes = [node for node in model.graph.node if is_op(node, "AveragePool", "ReduceMean")]
    whole = whole_nodes(model) if nodes else frozenset()
    nodes = [node for node in nodes if node.name not in whole]
    if not nodes:
        return 0
    types = infer_types(model)
    index = Index(model.graph)
    taken = list_names(model)
    count = 0
    for node in nodes:
        dims = _dims(types.get(node.input[0]))
        if dims is None or not (_pools_all(node, dims) or _reduces_all(index, node, len(dims))):
            continue
        drops_axes = node.op_type == "ReduceMean" and not attribute_of(node, "keepdims", 1)
        node.op_type = "GlobalAveragePool"
        del node.attribute[:]
        del node.input[1:]
        if drops_axes:
            _flatten_after(model, node, taken)
        count += 1
    return count


def _dims(value: ValueInfoProto | None) -> list[int | None] | None:
    """Dimensions (batch, channels, space) of a float32 image tensor, each None if it is not fixed; None for others."""
    if value is None or value.type.tensor_type.elem_type != TensorProto.FLOAT:
        return None
    tensor = value.type.tensor_type
    known = tensor.HasField("shape") and len(tensor.shape.dim) > 2
    return [d.dim_value or None for d in tensor.shape.dim] if known else None


def _pools_all(node: NodeProto, dims: list[int | None]) -> bool:
    if node.op_type != "AveragePool" or any(attribute_of(node, "pads", [])):
        return False
    if attribute_of(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return False
    dilated = math.prod(attribute_of(node, "dilations", [1])) != 1
    return not dilated and list(attribute_of(node, "kernel_shape", [])) == dims[2:]


def _reduces_all(index: Index, node: NodeProto, rank: int) -> bool:
    if node.op_type != "ReduceMean":
        return False
    axes = attribute_of(node, "axes", None)
    if axes is None and len(node.input) > 1:
        axes = constant(index, node.input[1])
    return axes is not None and sorted(int(a) % rank for a in axes) == list(range(2, rank))


def _flatten_after(model: ModelProto, node: NodeProto, taken: set[str]) -> None:
    output = node.output[0]
    node.output[0] = take_name(f"{output}_pooled", taken)
    name = take_name(f"{node.name}_Flatten", taken)
    position = next(i for i, other in enumerate(model.graph.node) if other.name == node.name)
    model.graph.node.insert(position + 1, helper.make_node("Flatten", [node.output[0]], [output], name=name, axis=1))
