"""Make operators that draw random values compute values that follow from positions alone, the same in every run."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..draws import key_of, list_draws, name_draws
from ..edit import copy_model, refill, take_name
from ..index import all_graphs, attribute_of, is_op, list_names, subgraphs
from ..shapes import infer_graph
from .normalise import inline_functions, spell_domain
from .opset import opset_of, raise_opset

# The draws are values of a table, which a node reads from a place and with a step of its own. The size is a prime, so
# that every step visits every value before one comes again.
TABLE_SIZE = 65_537
# The operators of the replacement mean the same from this opset on.
LEAST_OPSET = 9
CAST_LIKE_OPSET = 15


def fix_draws(model: ModelProto) -> ModelProto:
    """The model itself where nothing draws; otherwise a copy in which standard operators compute the draws.

    They have the distribution that the operator asks for. A value depends on its flat position in the tensor, the
    iteration of the Loop around it and the node's key alone (see ``draws``). So samples of a batch differ, batches
    repeat, and two models of one net draw the same. Raises ModelError for an opset that cannot be raised.
    """
    if not list_draws(model):
        return model
    fixed = copy_model(model)
    spell_domain(fixed)
    inline_functions(fixed)
    name_draws(fixed)
    raise_opset(fixed, LEAST_OPSET)
    _Fixing(fixed).run()
    return fixed


class _Fixing:
    """The replacement of all draws of one model, whose graph is changed in place."""

    def __init__(self, model: ModelProto):
        self.model = model
        self.opset = opset_of(model)
        self.taken = list_names(model)
        self.types = _find_types(model) if self.opset < CAST_LIKE_OPSET else {}
        self.tables: dict[str, str] = {}

    def run(self) -> None:
        self._fix(self.model.graph)
        for name, table in self.tables.items():
            self.model.graph.initializer.append(numpy_helper.from_array(_tables()[name], table))

    def _fix(self, graph: GraphProto, iterations: tuple[str, ...] = ()) -> None:
        """iterations: the counters of the Loops around the graph."""
        nodes: list[NodeProto] = []
        for node in graph.node:
            for body in subgraphs(node):
                counter = (body.input[0].name,) if is_op(node, "Loop") else ()
                self._fix(body, (*iterations, *counter))
            if key_of(node) is None:
                nodes.append(node)
            else:
                nodes += _Replacement(self, node, iterations).nodes
        if len(nodes) > len(graph.node):
            refill(graph.node, nodes)

    def table(self, name: str) -> str:
        """The constant with these values, which is added to the model once."""
        return self.tables.setdefault(name, self.unused(f"{name}_draws"))

    def unused(self, name: str) -> str:
        return take_name(name, self.taken)


class _Replacement:
    """The nodes that stand for one node that draws; its outputs keep their names."""

    def __init__(self, fixing: _Fixing, node: NodeProto, iterations: tuple[str, ...]):
        self.fixing, self.node, self.iterations, self.nodes = fixing, node, iterations, list[NodeProto]()
        made = getattr(self, f"_{node.op_type}")()
        for name, value in zip(node.output, made, strict=False):
            if name:
                self.nodes.append(helper.make_node("Identity", [value], [name]))

    def _RandomNormal(self) -> Sequence[str]:
        return [self._typed(self._normal(self._given_shape()))]

    def _RandomNormalLike(self) -> Sequence[str]:
        return [self._typed(self._normal(self._add("Shape", self.node.input[0])), like=self.node.input[0])]

    def _RandomUniform(self) -> Sequence[str]:
        return [self._typed(self._between(self._given_shape()))]

    def _RandomUniformLike(self) -> Sequence[str]:
        return [self._typed(self._between(self._add("Shape", self.node.input[0])), like=self.node.input[0])]

    def _Bernoulli(self) -> Sequence[str]:
        chance = self._cast(self.node.input[0], TensorProto.FLOAT)
        drawn = self._add("Less", self._draw("uniform", self._add("Shape", chance)), chance)
        return [self._typed(drawn, like=self.node.input[0])]

    def _Multinomial(self) -> Sequence[str]:
        """The index of the largest sum of a logit and a Gumbel deviate, which has the distribution of the logits."""
        logits = self._cast(self.node.input[0], TensorProto.FLOAT)
        sizes = self._add("Shape", logits)
        rows, classes = (self._add("Gather", sizes, self._constant(np.array([axis]))) for axis in (0, 1))
        count, one = (self._constant(np.array([n])) for n in (attribute_of(self.node, "sample_size", 1), 1))
        uniform = self._draw("uniform", self._add("Concat", rows, count, classes, axis=0))
        surprise = self._add("Neg", self._add("Log", uniform))
        spread = self._add("Reshape", logits, self._add("Concat", rows, one, classes, axis=0))
        gumbel = self._add("Sub", spread, self._add("Log", surprise))
        drawn = self._add("ArgMax", gumbel, axis=2, keepdims=0)
        return [self._cast(drawn, attribute_of(self.node, "dtype", TensorProto.INT32))]

    def _Dropout(self) -> Sequence[str]:
        """Each value with the chance of the ratio 0, and otherwise as much larger, where the training mode is on."""
        x, ratio, mode = self.node.input[:3]
        ratio = self._cast(ratio, TensorProto.FLOAT) if ratio else self._constant(np.float32(0.5))
        dropped = self._add("Less", self._draw("uniform", self._add("Shape", x)), ratio)
        mask = self._add("Not", self._add("And", dropped, mode))
        one = self._constant(np.float32(1))
        larger = self._add("Where", mode, self._add("Div", one, self._add("Sub", one, ratio)), one)
        factor = self._like(self._add("Mul", self._cast(mask, TensorProto.FLOAT), larger), x)
        return [self._add("Mul", x, factor), mask]

    def _given_shape(self) -> str:
        return self._constant(np.array(attribute_of(self.node, "shape", ()), np.int64))

    def _normal(self, shape: str) -> str:
        scale = self._constant(np.float32(attribute_of(self.node, "scale", 1.0)))
        mean = self._constant(np.float32(attribute_of(self.node, "mean", 0.0)))
        return self._add("Add", self._add("Mul", self._draw("normal", shape), scale), mean)

    def _between(self, shape: str) -> str:
        low, high = attribute_of(self.node, "low", 0.0), attribute_of(self.node, "high", 1.0)
        width = self._add("Mul", self._draw("uniform", shape), self._constant(np.float32(high - low)))
        return self._add("Add", width, self._constant(np.float32(low)))

    def _draw(self, table: str, shape: str) -> str:
        """Values of the table in a tensor of this shape, which may have no values."""
        key = key_of(self.node) or ""
        place, step, jump, leap = (zlib.crc32(f"{key} {part}".encode()) % (TABLE_SIZE - 1) + 1 for part in range(4))
        # Reshape reads a 0 as the size that was there before, so that an empty tensor is made with values first.
        empty = self._add("Equal", shape, self._constant(np.int64(0)))
        filled = self._add("Where", empty, self._constant(np.int64(1)), shape)
        one = numpy_helper.from_array(np.array([1]))
        ones = self._add("Reshape", self._add("ConstantOfShape", filled, value=one), self._constant(np.array([-1])))
        position = self._add("Reshape", self._add("NonZero", ones), self._constant(np.array([-1])))
        size = self._constant(np.int64(TABLE_SIZE))
        rounds = self._add("Div", position, size)  # from 0 up, as tensors may be larger than the table
        within = self._add("Sub", position, self._add("Mul", rounds, size))
        moved = self._add("Mul", within, self._constant(np.int64(step)))
        moved = self._add("Add", moved, self._add("Mul", rounds, self._constant(np.int64(jump))))
        moved = self._add("Add", moved, self._constant(np.int64(place)))
        for depth, iteration in enumerate(self.iterations, 1):
            moved = self._add("Add", moved, self._add("Mul", iteration, self._constant(np.int64(depth * leap))))
        at = self._add("Sub", moved, self._add("Mul", self._add("Div", moved, size), size))
        values = self._add("Reshape", self._add("Gather", self.fixing.table(table), at), filled)
        return self._add("Add", values, self._add("ConstantOfShape", shape))  # a size of 1 with one of 0 gives 0

    def _typed(self, value: str, *, like: str = "") -> str:
        """The value in the type that the node's attribute asks for, else in that of another tensor, else as float."""
        kind = attribute_of(self.node, "dtype", 0)
        return self._cast(value, kind) if kind or not like else self._like(value, like)

    def _like(self, value: str, other: str) -> str:
        if self.fixing.opset >= CAST_LIKE_OPSET:
            return self._add("CastLike", value, other)
        return self._cast(value, self.fixing.types.get(other, TensorProto.FLOAT))

    def _cast(self, value: str, kind: int) -> str:
        return self._add("Cast", value, to=kind or TensorProto.FLOAT)

    def _constant(self, value: np.ndarray | np.generic) -> str:
        return self._add("Constant", value=numpy_helper.from_array(np.asarray(value)))

    def _add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = self.fixing.unused(f"{self.node.output[0]}.{op}")
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name


def _find_types(model: ModelProto) -> Mapping[str, int]:
    """Element types of all tensors whose type is known."""
    return {
        value.name: value.type.tensor_type.elem_type
        for source in (model.graph, infer_graph(model) or model.graph)
        for graph in all_graphs(source)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type
    }


@cache
def _tables() -> Mapping[str, np.ndarray]:
    """Values of each distribution, from numpy's first generator, whose numbers no version changes."""
    generator = np.random.RandomState(0)
    # Means of equal parts of the interval, so that no value is 0 or 1.
    uniform = (generator.permutation(TABLE_SIZE) + 0.5) / TABLE_SIZE
    return {"normal": generator.standard_normal(TABLE_SIZE).astype(np.float32), "uniform": uniform.astype(np.float32)}
