"""Ifs whose condition is known before a run: constants and the sizes that the model declares decide it.

Exporters write some for shapes that they do not know: is there a batch, is this axis of size 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from ..bodies import put_in_place
from ..index import attribute_of, is_op
from ..shapes import Shape, infer_shapes
from ..values import read_values
from ..weightless import held_bytes
from .normalise import lift_constants

# Larger constants are no sizes.
MOST_BYTES = 1024
Values = np.ndarray  # of objects: numbers and truths, and None where one is not known


def take_branches(model: ModelProto) -> int:
    """Put the branch that is taken in the place of each If whose condition is known; returns their number."""
    count = 0
    while any(is_op(node, "If") for node in model.graph.node):
        known = _Known(model)
        found = next((each for each in enumerate(map(known.take, model.graph.node)) if each[1]), None)
        if found is None:
            break
        put_in_place(model, *found)
        lift_constants(model)
        count += 1
    return count


class _Known:
    """Values of small tensors as far as they are known, computed when they are asked for."""

    def __init__(self, model: ModelProto) -> None:
        self._shapes: Mapping[str, Shape] = infer_shapes(model)
        self._made = {name: node for node in model.graph.node for name in node.output if name}
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._values: dict[str, Values | None] = {}

    def take(self, node: NodeProto) -> str:
        """The branch that an If takes; an empty text for one that is not known, and for other nodes."""
        value = self.read(node.input[0]) if is_op(node, "If") else None
        if value is None or value.size != 1 or value.item() is None:
            return ""
        return "then_branch" if value.item() else "else_branch"

    def read(self, name: str) -> Values | None:
        if name not in self._values:
            self._values[name] = None  # for the time being; graphs have no cycles
            self._values[name] = self._compute(name)
        return self._values[name]

    def _compute(self, name: str) -> Values | None:
        tensor, node = self._constants.get(name), self._made.get(name)
        if tensor is not None:
            small = tensor.data_type != TensorProto.STRING and held_bytes(tensor) <= MOST_BYTES
            return np.asarray(read_values(tensor)).astype(object) if small else None
        if node is None or node.domain or len(node.output) != 1:
            return None
        if node.op_type == "Shape":
            shape = self._shapes.get(node.input[0])
            ends = slice(attribute_of(node, "start", 0), attribute_of(node, "end", None))
            return None if shape is None else _array(list(shape[ends]))
        if node.op_type == "Size":
            return self._count(node.input[0])
        compute = COMPUTED.get(node.op_type)
        inputs = [self.read(each) if each else None for each in node.input] if compute else []
        given = [value for value in inputs if value is not None]
        if compute is None or not given or len(given) < len(inputs):
            return None
        try:
            return compute(node, given)
        except (IndexError, OverflowError, TypeError, ValueError):  # onnxruntime's to compute or refuse
            return None

    def _count(self, name: str) -> Values | None:
        shape = self._shapes.get(name)
        value = self.read(name)
        if value is not None:
            return _array(value.size)
        if shape is None or None in shape:
            return None
        return _array(int(np.prod([side or 0 for side in shape])))


def _array(value: Any) -> Values:
    found = np.empty(np.shape(value), object)
    found[...] = value
    return found


def _apply(function: Callable[..., Any], *inputs: Values) -> Values:
    """A function of single values, None where one of them is not known."""

    def each(*values: Any) -> Any:
        return None if any(value is None for value in values) else function(*values)

    return _array(np.frompyfunc(each, len(inputs), 1)(*inputs))


def _cast(node: NodeProto, inputs: list[Values]) -> Values:
    to = attribute_of(node, "to", 0)
    if to == TensorProto.BOOL:
        return _apply(bool, inputs[0])
    if to in (TensorProto.INT32, TensorProto.INT64):
        return _apply(int, inputs[0])
    raise ValueError("no type of sizes")


def _gather(node: NodeProto, inputs: list[Values]) -> Values:
    return _array(np.take(inputs[0], inputs[1].astype(np.int64), axis=attribute_of(node, "axis", 0)))


def _reshape(node: NodeProto, inputs: list[Values]) -> Values:
    """Squeeze and Unsqueeze, of whose result the number of axes does not matter here where there is one value."""
    if inputs[0].size != 1:
        raise ValueError("several values")
    return inputs[0].reshape(()) if node.op_type == "Squeeze" else inputs[0].reshape(1)


def _elementwise(function: Callable[..., Any]) -> Callable[[NodeProto, list[Values]], Values]:
    return lambda _node, inputs: _apply(function, *inputs)


COMPUTED: dict[str, Callable[[NodeProto, list[Values]], Values]] = {
    "Cast": _cast,
    "Gather": _gather,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Identity": lambda _node, inputs: inputs[0],
    "Not": _elementwise(lambda a: not a),
    "Equal": _elementwise(lambda a, b: a == b),
    "Greater": _elementwise(lambda a, b: a > b),
    "Less": _elementwise(lambda a, b: a < b),
    "GreaterOrEqual": _elementwise(lambda a, b: a >= b),
    "LessOrEqual": _elementwise(lambda a, b: a <= b),
    "And": _elementwise(lambda a, b: a and b),
    "Or": _elementwise(lambda a, b: a or b),
}
