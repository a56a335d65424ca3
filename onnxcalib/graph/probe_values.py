"""Compute nodes on probe values in float64: enough operators for the functions that exporters write out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto

from .fusion import HARD_ALPHA, HARD_BETA, HARD_SWISH_ALPHA
from .index import Index, attribute_of, constant, is_op

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
REDUCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "ReduceMean": np.mean,
    "ReduceSum": np.sum,
    "ReduceMax": np.max,
    "ReduceSumSquare": lambda x, **options: np.sum(x * x, **options),
    "ReduceL2": lambda x, **options: np.sqrt(np.sum(x * x, **options)),
}
_ELEMENTWISE: dict[str, Callable[..., np.ndarray]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Min": np.minimum,
    "Max": np.maximum,
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
    "Neg": np.negative,
    "Abs": np.abs,
    "Exp": np.exp,
    "Tanh": np.tanh,
    "Relu": lambda x: np.maximum(x, 0),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Erf": np.vectorize(math.erf, otypes=[np.float64]),
    "Identity": lambda x: x,
    "Cast": lambda x: x,
}
_BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max")


def is_computable(index: Index, node: NodeProto) -> bool:
    """Whether ``compute`` knows the operator in this form; bounds, axes and exponents may have to be constant."""
    if node.domain or len(node.output) != 1:
        return False
    if is_op(node, *REDUCTIONS):
        return bool(axes_of(index, node)) and bool(attribute_of(node, "keepdims", 1))
    if is_op(node, "Cast"):
        return attribute_of(node, "to", 0) in FLOATS
    if is_op(node, "Clip"):
        return all(not name or name in index.initializers for name in node.input[1:])
    if is_op(node, "HardSigmoid", "HardSwish"):
        return True
    return node.op_type in _ELEMENTWISE and len(node.input) == (2 if node.op_type in _BINARY else 1)


def axes_of(index: Index, node: NodeProto) -> list[int] | None:
    """The axes of a reduction, an attribute or an input by its opset; None where they are left out or computed."""
    if len(node.input) > 1 and node.input[1]:
        axes = constant(index, node.input[1])
        return None if axes is None else [int(axis) for axis in axes.reshape(-1)]
    axes = attribute_of(node, "axes", None)
    return None if axes is None else list(axes)


def variables(index: Index, node: NodeProto) -> list[str]:
    """The tensors that a computable node reads and that are no constants."""
    return [name for name in node.input if name and name not in index.initializers]


def compute(index: Index, nodes: Sequence[NodeProto], values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``values`` and what the nodes, in order, make of them; a node whose operands do not fit makes nothing."""
    known = dict(values)
    for node in nodes:
        try:
            with np.errstate(all="ignore"):
                known[node.output[0]] = np.asarray(_compute(index, node, known), np.float64)
        except (KeyError, ValueError, IndexError):  # an operand is missing, or of a shape that does not broadcast
            continue
    return known


def _compute(index: Index, node: NodeProto, known: Mapping[str, np.ndarray]) -> Any:
    first = _operand(index, node.input[0], known)
    if node.op_type in REDUCTIONS:
        return REDUCTIONS[node.op_type](first, axis=tuple(axes_of(index, node) or ()), keepdims=True)
    if node.op_type == "Clip":
        low, high = (
            _operand(index, name, known) if name else attribute_of(node, key, edge)
            for name, key, edge in zip([*node.input[1:], "", ""], ("min", "max"), (-np.inf, np.inf), strict=False)
        )
        return np.minimum(np.maximum(first, low), high)
    if node.op_type in ("HardSigmoid", "HardSwish"):
        swish = node.op_type == "HardSwish"
        alpha = HARD_SWISH_ALPHA if swish else attribute_of(node, "alpha", HARD_ALPHA)
        gate = np.clip(alpha * first + attribute_of(node, "beta", HARD_BETA), 0, 1)
        return first * gate if swish else gate
    others = [_operand(index, name, known) for name in node.input[1:]]
    return _ELEMENTWISE[node.op_type](first, *others)


def _operand(index: Index, name: str, known: Mapping[str, np.ndarray]) -> np.ndarray:
    if name in known:
        return known[name]
    value = constant(index, name)
    if value is None:
        raise KeyError(name)
    return value.astype(np.float64)
