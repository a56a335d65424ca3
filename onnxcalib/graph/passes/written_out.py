"""Write each function that a model spells out as one operator, or in the one spelling that onnxruntime fuses.

onnxruntime runs a LayerNormalization, a Gelu or a Softmax as one kernel. Of the spellings that exporters use it knows
a few. Where the model's opset has no operator, the nodes are written as onnxruntime knows them.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import ModelProto, NodeProto, helper

from ..edit import add_constant, drop_dead, refill, take_name, write_attributes
from ..fusion import HARD_BETA
from ..index import list_names
from ..patterns import (
    GELU,
    HARD_SIGMOID,
    HARD_SWISH,
    INSTANCE_NORM,
    LAYER_NORM,
    NORMS,
    RMS_NORM,
    SIGMOID,
    SOFTMAX,
    SWISH,
    Function,
    Pattern,
    find_patterns,
)
from .opset import opset_of

# Opsets that brought the operators, and that made the axes of ReduceMean an input (onnx changelog).
LAYER_NORM_OPSET, GELU_OPSET, RMS_NORM_OPSET, REDUCE_AXES_OPSET = 17, 20, 23, 18
# Nodes of the shortest spelling of functions that have no operator or are written as two.
SHORTEST = {SWISH: 2, HARD_SWISH: 2}


def write_patterns(model: ModelProto) -> int:
    """Replace what ``find_patterns`` finds; returns how many functions were replaced.

    The last node of each keeps its name and its output. These stay as they are: what is in its shortest form, a norm
    over axes that no operator has or whose sizes are unknown, and Gelu by Tanh below opset 20, which nothing fuses.
    """
    patterns = find_patterns(model)
    taken = list_names(model) if patterns else set()
    written: dict[str, list[NodeProto]] = {}
    for pattern in patterns:
        writer = _Writer(model, pattern, taken)
        if _write(writer, pattern, opset_of(model)):
            written[pattern.nodes[-1]] = writer.finish()
    if written:
        refill(model.graph.node, [new for node in model.graph.node for new in written.get(node.name, [node])])
        drop_dead(model)
    return len(written)


class _Writer:
    """Collects the nodes that take the place of a pattern's."""

    def __init__(self, model: ModelProto, pattern: Pattern, taken: set[str]) -> None:
        self.graph, self.pattern, self.taken = model.graph, pattern, taken
        self.nodes: list[NodeProto] = []

    def add(self, op: str, *operands: str | float | np.ndarray, **attributes: float | str | tuple[int, ...]) -> str:
        """Add a node, of tensors and of constants; returns the name of its output."""
        inputs = [name if isinstance(name, str) else self._constant(op, name) for name in operands]
        output = self._unused(f"{self.pattern.output}_{op}")
        node = helper.make_node(op, inputs, [output], self._unused(f"{self.pattern.nodes[-1]}_{op}"))
        write_attributes(node, attributes)
        self.nodes.append(node)
        return output

    def _constant(self, op: str, value: float | np.ndarray) -> str:
        array = np.float32(value) if isinstance(value, float) else value
        return add_constant(self.graph, self._unused(f"{self.pattern.output}_{op}_constant"), array)

    def _unused(self, name: str) -> str:
        return take_name(name, self.taken)

    def finish(self) -> list[NodeProto]:
        """The nodes, of which the last takes the name and the output of the pattern's last."""
        self.nodes[-1].name, self.nodes[-1].output[0] = self.pattern.nodes[-1], self.pattern.output
        return self.nodes


def _write(writer: _Writer, pattern: Pattern, opset: int) -> bool:
    """Add the nodes that compute the pattern; returns False, and adds none, where its own are as good."""
    x, function = pattern.source, pattern.function
    kind, alpha = function.kind, function.alpha
    if len(pattern.nodes) <= SHORTEST.get(kind, 1):
        return False
    if kind in NORMS:
        return _write_norm(writer, x, function, opset)
    if kind == GELU:
        return _write_gelu(writer, x, function.approximate, opset)
    if kind == SOFTMAX:
        writer.add(SOFTMAX, x, axis=function.axes[0])
    elif kind == SIGMOID:
        writer.add(SIGMOID, x)
    elif kind in (HARD_SIGMOID, HARD_SWISH):
        gate = writer.add(HARD_SIGMOID, x, alpha=alpha, beta=HARD_BETA)
        if kind == HARD_SWISH:
            writer.add("Mul", x, gate)
    else:
        writer.add("Mul", x, writer.add(SIGMOID, x if alpha == 1 else writer.add("Mul", x, alpha)))
    return True


def _write_gelu(writer: _Writer, x: str, approximate: str, opset: int) -> bool:
    if opset >= GELU_OPSET:
        writer.add(GELU, x, approximate=approximate)
        return True
    if approximate != "none":
        return False
    erf = writer.add("Erf", writer.add("Div", x, math.sqrt(2)))
    writer.add("Mul", writer.add("Mul", x, writer.add("Add", erf, 1.0)), 0.5)
    return True


def _write_norm(writer: _Writer, x: str, norm: Function, opset: int) -> bool:
    kind, scale, bias, first = norm.kind, norm.scale, norm.bias, -len(norm.axes)
    if scale is None or bias is None:
        return False
    if kind == INSTANCE_NORM:
        writer.add(INSTANCE_NORM, x, scale, bias, epsilon=norm.epsilon)
        return True
    if norm.axes != tuple(range(first, 0)):
        return False
    if kind == LAYER_NORM and opset >= LAYER_NORM_OPSET:
        writer.add(LAYER_NORM, x, scale, bias, axis=first, epsilon=norm.epsilon)
        return True
    if kind == RMS_NORM and opset >= RMS_NORM_OPSET:
        y = writer.add(RMS_NORM, x, scale, axis=first, epsilon=norm.epsilon)
    else:
        centred = writer.add("Sub", x, _add_mean(writer, x, norm.axes, opset)) if kind == LAYER_NORM else x
        variance = _add_mean(writer, writer.add("Pow", centred, 2.0), norm.axes, opset)
        deviation = writer.add("Sqrt", writer.add("Add", variance, norm.epsilon))
        y = writer.add("Mul", writer.add("Div", centred, deviation), scale)
    if kind == LAYER_NORM or bias.any():
        writer.add("Add", y, bias)
    return True


def _add_mean(writer: _Writer, x: str, axes: tuple[int, ...], opset: int) -> str:
    if opset >= REDUCE_AXES_OPSET:
        return writer.add("ReduceMean", x, np.array(axes, np.int64), keepdims=1)
    return writer.add("ReduceMean", x, axes=axes, keepdims=1)
