"""What onnxruntime's CPU provider runs on integers: the rules by which a scheme places QuantizeLinear."""

from __future__ import annotations

import math

import numpy as np
from onnx import NodeProto, TensorProto

from .index import Index, attribute_of, constant, is_op, known_constant
from .ops import AVERAGES, INTEGER_OPS, LINEAR_OPS, MOVERS, NONNEGATIVE_OPS, SHAPE_READERS
from .values import read_values

# HardSigmoid has these where it names none, and HardSwish is x HardSigmoid(x) with another alpha (onnx specification).
HARD_ALPHA, HARD_BETA, HARD_SWISH_ALPHA = 0.2, 0.5, 1 / 6

BOUNDED = (
    "bounded"  # behind the name of what a Min gives that bounds each channel of a layer's output: see ``equalize``
)
HALF = 0.5  # what ``frexp`` gives as the fraction of a power of two


def moves_values(index: Index, node: NodeProto) -> bool:
    """Whether each value of the node's output is one of its first input's, or the zero of a Pad."""
    if is_op(node, "Resize"):
        crops = attribute_of(node, "coordinate_transformation_mode", b"") == b"tf_crop_and_resize"
        return attribute_of(node, "mode", b"nearest") == b"nearest" and not crops
    if is_op(node, "Pad"):
        return _pads_with_own_values(index, node)
    return is_op(node, *MOVERS)


def has_integer_kernel(index: Index, node: NodeProto) -> bool:
    """Whether onnxruntime computes a node between a DequantizeLinear and a QuantizeLinear on integers, and rightly.

    Its integer AveragePool refuses dilations, and divides by too much where ceil_mode adds a window (1.32). A
    HardSigmoid is written as an Add (see ``emit``), beside another reader of its input, as in a HardSwish.
    """
    if is_op(node, "HardSigmoid"):
        readers = [reader for reader in index.readers(node.input[0]) if not is_op(reader, *SHAPE_READERS)]
        return attribute_of(node, "alpha", HARD_ALPHA) > 0 and len(readers) > 1
    if is_op(node, "AveragePool"):
        beyond = attribute_of(node, "ceil_mode", 0) and attribute_of(node, "count_include_pad", 0)
        return not beyond and max(attribute_of(node, "dilations", None) or [1]) == 1
    return is_op(node, *INTEGER_OPS)


def _pads_with_own_values(index: Index, node: NodeProto) -> bool:
    if attribute_of(node, "mode", b"constant") != b"constant":
        return True
    if len(node.input) > 2 and node.input[2]:
        fill = constant(index, node.input[2])
        return fill is not None and not np.any(fill)
    return not attribute_of(node, "value", 0.0)


def moved_outputs(node: NodeProto) -> list[str]:
    """The outputs of a mover that hold values of its input, which the indices of a MaxPool do not."""
    return [t for t in (node.output[:1] if node.op_type == "MaxPool" else node.output) if t]


def data_inputs(node: NodeProto) -> list[str]:
    """The inputs of an integer operator or a mover that carry activations; the first one of other nodes."""
    return [t for t in (node.input if node.op_type in INTEGER_OPS else node.input[:1]) if t]


def upper_bound(index: Index, tensor: str) -> float | None:
    """The c of a Relu (infinity), Clip(0, c) or HardSigmoid (1) that makes ``tensor``; None where none does.

    A Mul by a power of two in front of a Concat multiplies it. A Relu behind the bounds of channels has the least one.
    """
    node = index.producer.get(tensor)
    if node is not None and is_op(node, "HardSigmoid"):
        return 1.0
    if node is not None and (factor := scale_of_joined(index, node)):
        bound = upper_bound(index, node.input[0])
        return None if bound is None else factor * bound
    if node is None or not is_op(node, "Relu", "Clip"):
        return None
    if node.op_type == "Relu":
        bounds = find_bounds(index, node.input[0])
        return math.inf if bounds is None else float(known_constant(index, bounds.input[1]).min())
    low, high = (_clip_end(index, node, number, name) for number, name in ((1, "min"), (2, "max")))
    return high if low == 0 and high > 0 else None


def find_bounds(index: Index, tensor: str) -> NodeProto | None:
    """The Min that bounds each channel of a tensor, which ``passes.equalize`` has written; None for others."""
    node = index.producer.get(tensor)
    if node is None or not is_op(node, "Min") or not tensor.startswith(f"{node.input[0]}_{BOUNDED}"):
        return None
    return node if len(node.input) == 2 and node.input[1] in index.initializers else None


def scale_of_joined(index: Index, node: NodeProto) -> float | None:
    """The factor of a Mul by one power of two in front of a Concat, which a scale can take instead; None for others."""
    tensor = index.initializers.get(node.input[1]) if is_op(node, "Mul") else None
    if tensor is None or tensor.dims or tensor.data_type != TensorProto.FLOAT:
        return None
    factor = float(read_values(tensor))
    return factor if is_power_of_two(factor) and leads_to_concat(index, node.output[0]) else None


def is_power_of_two(factor: float) -> bool:
    return factor > 0 and math.isfinite(factor) and math.frexp(factor)[0] == HALF


def leads_to_concat(index: Index, tensor: str) -> bool:
    """Whether a Concat alone reads a tensor, or what operators that only move values make of it, or their Q/DQ."""
    readers = index.readers(tensor)
    if len(readers) != 1 or tensor in index.outputs:
        return False
    (node,) = readers
    moves = is_op(node, *LINEAR_OPS) or (moves_values(index, node) and len(node.output) == 1)
    return is_op(node, "Concat") or (moves and node.input[0] == tensor and leads_to_concat(index, node.output[0]))


def is_nonnegative(index: Index, tensor: str) -> bool:
    """Whether the operators that make ``tensor`` give no negative values."""
    node = index.producer.get(tensor)
    if node is None:
        return False
    if upper_bound(index, tensor) is not None or is_op(node, *NONNEGATIVE_OPS):
        return True
    return (moves_values(index, node) or is_op(node, *AVERAGES)) and is_nonnegative(index, node.input[0])


def _clip_end(index: Index, node: NodeProto, number: int, name: str) -> float:
    """One end of a Clip, an input or an attribute by its opset: infinite if left out, NaN if it is no constant."""
    if len(node.input) > number and node.input[number]:
        value = constant(index, node.input[number])
        return math.nan if value is None else float(value.reshape(-1)[0])
    return float(attribute_of(node, name, -math.inf if name == "min" else math.inf))


def rectified(index: Index, tensor: str) -> str:
    """The output of the Relu or Clip(0, c) that alone reads ``tensor``, or else ``tensor`` itself.

    The bounds of channels in front of a Relu belong to it.
    """
    readers = index.readers(tensor)
    if len(readers) == 1 and find_bounds(index, readers[0].output[0]) is not None:
        after = rectified(index, readers[0].output[0])
        return tensor if after == readers[0].output[0] else after
    if len(readers) != 1 or tensor in index.outputs or not is_op(readers[0], "Relu", "Clip"):
        return tensor
    after = readers[0].output[0]
    return after if readers[0].input[:1] == [tensor] and upper_bound(index, after) is not None else tensor


def carried_outputs(index: Index, node: NodeProto) -> list[str]:
    """The tensors that are quantized for a node's outputs: those of the Relus behind it where these are absorbed.

    Both sides of a mover have one grid. A Relu behind a mover is absorbed only if the mover has one output, and if its
    input has no other reader, which might need negative values.
    """
    if not moves_values(index, node):
        return [rectified(index, t) for t in node.output[:1]]
    outputs = moved_outputs(node)
    source = node.input[0]
    before = index.producer.get(source)
    alone = len(index.readers(source)) == 1 and source not in index.outputs and len(outputs) == 1
    if alone and before is not None and not moves_values(index, before):
        return [rectified(index, t) for t in outputs]
    return outputs
