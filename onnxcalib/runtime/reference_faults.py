"""What onnx's reference evaluator computes otherwise than the ONNX specification says, so that it is no judge of it.

Found with onnx 1.23, by 3,800 runs of nodes of some 140 operators beside onnxruntime, and read in the evaluator's
source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from onnx import NodeProto, TensorProto

from ..graph.index import attribute_of
from ..graph.values import read_values

# Opsets from which on the evaluator computes what the operator says.
NORMALISES_WITH_ITS_STATISTICS, TAKES_ONE_AXIS = 14, 13
# The functions that recurrent layers have where nothing is said; the evaluator has no others.
DEFAULT_ACTIVATIONS = {"LSTM": (b"Sigmoid", b"Tanh", b"Tanh"), "GRU": (b"Sigmoid", b"Tanh"), "RNN": (b"Tanh",)}
LENGTHS = 4  # the input of recurrent layers that has the length of each sample
SCALES = 2  # the input of Resize


def find_fault(node: NodeProto, opset: int, constants: Mapping[str, TensorProto]) -> str:
    """What the evaluator computes wrong of this standard operator, in a few words; empty where nothing is known.

    constants: the initializers of the graph.
    """
    rule = _RULES.get(node.op_type)
    return rule(node, opset, constants) if rule and not node.domain else ""


def _is_same_lower(node: NodeProto) -> bool:
    return bool(attribute_of(node, "auto_pad", b"NOTSET") == b"SAME_LOWER")


def _max_pool(node: NodeProto, opset: int, constants: Mapping[str, TensorProto]) -> str:
    if _is_same_lower(node):
        return "auto_pad SAME_LOWER is padded as SAME_UPPER"
    steps = (*attribute_of(node, "strides", [1]), *attribute_of(node, "dilations", [1]))
    pads = set(attribute_of(node, "pads", [0]))
    if set(steps) == {1} and (len(pads) > 1 or (pads != {0} and attribute_of(node, "ceil_mode", 0))):
        return "pads of unlike sizes, or with ceil_mode, are put on wrong sides where the stride is 1"
    return ""


def _average_pool(node: NodeProto, opset: int, constants: Mapping[str, TensorProto]) -> str:
    return "ceil_mode moves the windows" if attribute_of(node, "ceil_mode", 0) else ""


def _softmax(node: NodeProto, opset: int, constants: Mapping[str, TensorProto]) -> str:
    if opset < TAKES_ONE_AXIS and attribute_of(node, "axis", 1) != -1:
        return f"below opset {TAKES_ONE_AXIS} it takes the values of one axis, not of all from that axis on"
    return ""


def _batch_norm(node: NodeProto, opset: int, constants: Mapping[str, TensorProto]) -> str:
    if opset < NORMALISES_WITH_ITS_STATISTICS:
        return f"below opset {NORMALISES_WITH_ITS_STATISTICS} it takes the statistics of the samples, not its own"
    return ""


def _lrn(node: NodeProto, opset: int, constants: Mapping[str, TensorProto]) -> str:
    return "squares are summed for as many channels as there are samples"


def _lp_pool(node: NodeProto, opset: int, constants: Mapping[str, TensorProto]) -> str:
    return "windows and pads are moved"


def _lp_norm(node: NodeProto, opset: int, constants: Mapping[str, TensorProto]) -> str:
    return "p = 1 sums values with their signs" if attribute_of(node, "p", 2) == 1 else ""


def _recurrent(node: NodeProto, opset: int, constants: Mapping[str, TensorProto]) -> str:
    if len(node.input) > LENGTHS and node.input[LENGTHS]:
        return "the lengths of the samples are not looked at"
    default = DEFAULT_ACTIVATIONS[node.op_type]
    given = tuple(attribute_of(node, "activations", default))
    if given != default * (len(given) // len(default)):
        return "activations of its own are not looked at"
    names = ("clip", "input_forget", "layout")
    ignored = next((name for name in names if attribute_of(node, name, 0)), "")
    return f"{ignored} is not looked at" if ignored else ""


def _resize(node: NodeProto, opset: int, constants: Mapping[str, TensorProto]) -> str:
    if attribute_of(node, "coordinate_transformation_mode", b"half_pixel") != b"align_corners":
        return ""
    name = node.input[SCALES] if len(node.input) > SCALES else ""
    scales = read_values(constants[name]) if name in constants else None
    if not name or (scales is not None and bool((scales == np.round(scales)).all())):
        return ""
    return "with align_corners, sizes that are no whole multiples are computed from a fraction of a pixel"


_RULES: dict[str, Callable[[NodeProto, int, Mapping[str, TensorProto]], str]] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "GRU": _recurrent,
    "Hardmax": _softmax,
    "LRN": _lrn,
    "LSTM": _recurrent,
    "LogSoftmax": _softmax,
    "LpNormalization": _lp_norm,
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
    "RNN": _recurrent,
    "Resize": _resize,
    "Softmax": _softmax,
}
