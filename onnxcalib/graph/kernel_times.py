"""How long onnxruntime's kernels take in float and on integers: a model of time with stated constants, in nanoseconds.

The constants were fitted to profiles of single operators on one thread of an x86 processor with AVX512-VNNI, and where
AVX2 alone is much slower they lie between the two. They are constants, so that a model's file is the same wherever it
is made. What counts is which side is faster, and by how much more than a QuantizeLinear and DequantizeLinear cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from .index import Index, attribute_of, is_op
from .ops import POOLS

Shapes = Mapping[str, tuple[int, ...]]

# What each node costs, whatever its size, and how much more an integer layer does.
NODE, INTEGER_LAYER = 2000.0, 1000.0
# An element through QuantizeLinear or DequantizeLinear, and through the change of layout that stands beside one where
# a convolution or a pool in float is on the other side.
QUANTIZED, DEQUANTIZED, LAID_OUT = 0.15, 0.105, 0.4
# An element of what a dynamic layer reads, divided by the peak of its row and rounded by RANGING nodes, and one of what
# it gives, multiplied by that peak.
RANGED, RANGING, UNRANGED = 0.75, 5, 0.3
# A multiplication and addition of a layer. With one row a matrix product waits for its weight.
FLOAT_MAC, INTEGER_MAC = 0.0175, 0.0065
FLOAT_ROW_MAC, INTEGER_ROW_MAC = 0.052, 0.02
# Float kernels compute output channels in blocks of so many. Fewer input channels than that are read one by one, but
# for the few of an image, which have a kernel of their own.
CHANNEL_BLOCK, IMAGE_CHANNELS = 16, 3
NARROW_MAC, IMAGE_MAC = 0.045, 0.034
# A position of a convolution on integers, each of its output's elements, and each window element that is copied first.
POSITION, OUTPUT, COPIED = 6.0, 0.04, 2.0
# Depthwise convolutions: a multiplication in float, where the channels are a multiple of DEPTHWISE_BLOCK and where they
# are not; on integers a window element of all channels, and each of its multiplications, where the channels are a
# multiple of CHANNEL_BLOCK and where they are not.
DEPTHWISE_BLOCK, FLOAT_DEPTHWISE, FLOAT_UNBLOCKED = 8, 0.03, 0.22
WINDOW, EVEN_DEPTHWISE, ODD_DEPTHWISE = 1.5, 0.04, 0.085
# Packing an element of the second operand of a product of activations.
PACKED = 0.3
# A pixel of a Mul by a value a channel, whose integer kernel runs once for each of them.
PIXEL = 25.0


@dataclass(frozen=True)
class Rate:
    """Nanoseconds an element of the output, in float and on integers; of pools, an element of the windows."""

    in_float: float
    on_integers: float


RATES = {
    "Add": Rate(0.19, 0.145),
    "Mul": Rate(0.2, 0.22),
    "Concat": Rate(0.2, 0.25),
    "Sigmoid": Rate(0.29, 0.245),
    "HardSigmoid": Rate(0.14, 0.12),
    "LeakyRelu": Rate(0.16, 0.245),
    "Softmax": Rate(0.42, 2.7),
    "AveragePool": Rate(0.1, 2.1),
    "MaxPool": Rate(0.07, 0.03),
    "GlobalAveragePool": Rate(0.18, 0.035),
    "Transpose": Rate(0.25, 0.15),
}
COPY = Rate(0.1, 0.03)
# A window element of a MaxPool on integers that no integer kernel gives it, so that the channels do not come last.
PLAIN_POOL = 8.0
# These only change how a tensor's dimensions are read.
VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class KernelTime:
    """Nanoseconds of one node in float and on integers."""

    in_float: float
    on_integers: float


def time_node(index: Index, node: NodeProto, shapes: Shapes) -> KernelTime:
    """Times of a node on tensors of these shapes; those that are not known count as empty."""
    if is_op(node, "Conv"):
        return _time_conv(index, node, shapes)
    if is_op(node, "Gemm", "MatMul"):
        return _time_product(index, node, shapes)
    if is_op(node, *VIEWS):
        return KernelTime(NODE, NODE)
    rate = RATES.get(node.op_type) or COPY
    size = count(shapes, node.input[0] if node.op_type == "GlobalAveragePool" else node.output[0])
    if is_op(node, *POOLS):
        size = count_windows(node, shapes)
    in_float, on_integers = NODE + size * rate.in_float, NODE + size * rate.on_integers
    if is_op(node, "Mul"):
        on_integers += _count_pixels(node, shapes) * PIXEL
    return KernelTime(in_float, on_integers)


def count(shapes: Shapes, tensor: str) -> int:
    """Elements of a tensor; none where its shape is not known."""
    return math.prod(shapes[tensor]) if tensor in shapes else 0


def count_windows(node: NodeProto, shapes: Shapes) -> int:
    """Elements of all windows of a pool."""
    return count(shapes, node.output[0]) * math.prod(attribute_of(node, "kernel_shape", [1]))


def _count_pixels(node: NodeProto, shapes: Shapes) -> int:
    """Pixels of the output of a node with an operand of one value a channel; 0 for others."""
    shape = shapes.get(node.output[0], ())
    small = [s for t in node.input if len(s := shapes.get(t, ())) == len(shape) > 2 and math.prod(s[2:]) == 1]
    return shape[0] * math.prod(shape[2:]) if small and math.prod(shape[2:]) > 1 else 0


def _time_conv(index: Index, node: NodeProto, shapes: Shapes) -> KernelTime:
    weight: Sequence[int] = index.initializers[node.input[1]].dims
    shape, groups = shapes.get(node.output[0], ()), attribute_of(node, "group", 1)
    window = math.prod(weight[2:])
    positions = count(shapes, node.output[0]) // weight[0] if shape else 0
    if groups == weight[0] > 1:
        products = positions * window * weight[0]
        rate = ODD_DEPTHWISE if weight[0] % CHANNEL_BLOCK else EVEN_DEPTHWISE
        in_float = products * FLOAT_UNBLOCKED
        if weight[0] % DEPTHWISE_BLOCK == 0:
            in_float = products / weight[0] * _in_blocks(weight[0]) * FLOAT_DEPTHWISE
        on_integers = positions * window * WINDOW + products * rate
    else:
        mac = FLOAT_MAC if weight[1] >= CHANNEL_BLOCK else NARROW_MAC if weight[1] > IMAGE_CHANNELS else IMAGE_MAC
        in_float = positions * window * weight[1] * _in_blocks(weight[0]) * mac
        on_integers = positions * (window * math.prod(weight[:2]) * INTEGER_MAC + POSITION + weight[0] * OUTPUT)
        on_integers += positions * window * groups * COPIED if window > 1 else 0.0
    return KernelTime(NODE + in_float, NODE + INTEGER_LAYER + on_integers)


def _in_blocks(channels: int) -> int:
    return -(-channels // CHANNEL_BLOCK) * CHANNEL_BLOCK


def _time_product(index: Index, node: NodeProto, shapes: Shapes) -> KernelTime:
    left = shapes.get(node.input[0], ())
    size, inner = count(shapes, node.output[0]), left[-1] if left else 0
    one_row = size == (shapes.get(node.output[0], ()) or (0,))[-1]
    in_float, on_integers = (FLOAT_ROW_MAC, INTEGER_ROW_MAC) if one_row else (FLOAT_MAC, INTEGER_MAC)
    packed = 0 if node.input[1] in index.initializers else count(shapes, node.input[1])
    macs = size * inner
    return KernelTime(
        NODE + macs * in_float, NODE + INTEGER_LAYER + macs * on_integers + size * OUTPUT + packed * PACKED
    )
