"""Write transposed convolutions that multiply the size as convolutions, which have integer kernels.

With stride s in each of the spatial axes, pad p in front, kernel K, and o = q s + r, where r is a phase (0 <= r < s):

    y[q s + r] = sum_k W[k] x[q + (r + p - k) / s]    over the k for which the division leaves no rest
               = sum_j W[r + p - j s] x[q + j]        over j from -b to e
    b = floor((K - 1 - p) / s),  e = floor((s - 1 + p) / s)

So each phase is a convolution of kernel b + 1 + e of the input padded by b and e. All phases are channels of one Conv,
(channel, phase), and a DepthToSpace puts them side by side. Where W has no element, its own is 0.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from itertools import product

import numpy as np
from onnx import ModelProto, NodeProto, helper

from ..edit import drop_stale_shapes, refill, take_name, write_attributes, write_operand
from ..fusion import rectified
from ..index import Index, attribute_of, constant, is_op, list_names

# All products, those with the zeros that fill up the kernels too, to those of the ConvTranspose: 2.25 for a kernel of 4
# with stride 2. By more than that an integer Conv is faster than a float ConvTranspose in onnxruntime.
MOST_WORK = 2.25


def write_as_convolutions(model: ModelProto, keep: Collection[str] = ()) -> list[str]:
    """Turn each ConvTranspose of two spatial axes whose output has a stride times the input's size into a Conv.

    The Conv has the node's name. A Relu or Clip behind it comes in front of the DepthToSpace. Weight and bias have to
    be constants, and both strides the same. Nodes of the names in ``keep`` stay. Returns the names of the others.
    """
    if not any(is_op(node, "ConvTranspose") for node in model.graph.node):
        return []
    index = Index(model.graph)
    taken = list_names(model)
    behind: dict[str, NodeProto] = {}
    made: list[str] = []
    for node in model.graph.node:
        wanted = is_op(node, "ConvTranspose") and node.name not in keep
        stride = _stride_of(index, node) if wanted else None
        if stride is None:
            continue
        last = index.producer[rectified(index, node.output[0])]
        _write_conv(model, index, node, stride)
        made.append(node.name)
        if stride > 1:
            output = take_name(f"{node.output[0]}_phases", taken)
            name = take_name(f"{node.name}_DepthToSpace", taken)
            move = helper.make_node("DepthToSpace", [output], [last.output[0]], name, blocksize=stride, mode="CRD")
            behind[last.name] = move
            if last is not node:
                inner = take_name(f"{output}_before_{last.op_type}", taken)
                node.output[0] = last.input[0] = inner
            last.output[0] = output
    if made:
        refill(
            model.graph.node, [n for node in model.graph.node for n in (node, behind.get(node.name)) if n is not None]
        )
        drop_stale_shapes(model.graph)
    return made


def _stride_of(index: Index, node: NodeProto) -> int | None:
    """The stride of a ConvTranspose that can be written as a Conv; None for others."""
    weight = constant(index, node.input[1])
    bias = constant(index, node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(0, np.float32)
    if weight is None or weight.ndim != 4 or bias is None or weight.dtype != np.float32:
        return None
    (stride, other), dilations = _pair(node, "strides", 1), _pair(node, "dilations", 1)
    if stride != other or dilations != [1, 1] or attribute_of(node, "output_shape", None):
        return None
    if attribute_of(node, "auto_pad", b"NOTSET") != b"NOTSET":
        return None
    pads, more, kernel = list(attribute_of(node, "pads", [0] * 4)), _pair(node, "output_padding", 0), weight.shape[2:]
    for size, begin, end, extra in zip(kernel, pads[:2], pads[2:], more, strict=True):
        before, after = _reach(size, begin, stride)
        if extra + size - begin - end != stride or before < 0 or after < 0:
            return None
    work = math.prod(sum(_reach(k, p, stride)) + 1 for k, p in zip(kernel, pads, strict=False)) * stride**2
    return stride if work <= MOST_WORK * math.prod(kernel) else None


def _pair(node: NodeProto, name: str, default: int) -> list[int]:
    return list(attribute_of(node, name, [default, default]))


def _reach(kernel: int, pad: int, stride: int) -> tuple[int, int]:
    """b and e of the formula."""
    return (kernel - 1 - pad) // stride, (stride - 1 + pad) // stride


def _write_conv(model: ModelProto, index: Index, node: NodeProto, stride: int) -> None:
    weight, group = constant(index, node.input[1]), attribute_of(node, "group", 1)
    assert weight is not None
    pads, kernel = list(attribute_of(node, "pads", [0] * 4)), weight.shape[2:]
    before, after = zip(*(_reach(k, p, stride) for k, p in zip(kernel, pads, strict=False)), strict=True)
    sizes = [b + 1 + e for b, e in zip(before, after, strict=True)]
    inputs, outputs = weight.shape[0] // group, weight.shape[1]
    # (group, outputs, phases, phases, inputs, kernel, kernel)
    written = np.zeros((group, outputs, stride, stride, inputs, *sizes), np.float32)
    given = weight.reshape(group, inputs, outputs, *kernel).swapaxes(1, 2)
    for (r, s), (j, i) in product(product(range(stride), repeat=2), product(*map(range, sizes))):
        y, x = (phase + pad - (u - b) * stride for phase, pad, u, b in zip((r, s), pads, (j, i), before, strict=False))
        if 0 <= y < kernel[0] and 0 <= x < kernel[1]:
            written[:, :, r, s, :, j, i] = given[..., y, x]
    node.op_type = "Conv"
    write_operand(model.graph, index, node, 1, written.reshape(-1, inputs, *sizes))
    if len(node.input) > 2 and node.input[2]:
        bias = constant(index, node.input[2])
        assert bias is not None
        write_operand(model.graph, index, node, 2, bias.repeat(stride**2))
    write_attributes(
        node,
        {"kernel_shape": sizes, "strides": [1, 1], "pads": [*before, *after], "dilations": [1, 1], "group": group},
        drop=("output_padding", "auto_pad"),
    )
