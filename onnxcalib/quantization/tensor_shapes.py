"""The shapes of all tensors of a model, as a run gives them: inference does not know them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper

from ..graph.edit import add_constant, replace_names
from ..graph.extract import extract
from ..graph.index import Index, attribute_of, is_op, reads
from ..graph.packed import spell_shapes
from ..graph.shapes import infer_graph
from ..graph.weightless import copy_without_weights
from ..runtime.session import Session

Fixed = dict[str, tuple[int, ...]]
# After so many looks at what inference lacks next, all the rest is run at once.
MOST_ROUNDS = 8
INTEGERS = (TensorProto.INT64, TensorProto.INT32)


def measure_shapes(model: ModelProto, feeds: Mapping[str, Any], threads: int = 0) -> Fixed:
    """Shapes of the graph's inputs and constants, and of all that its nodes make in a run on ``feeds``."""
    return _run(model, _list_made(model, infer_graph(model)), feeds, threads) | _list_given(model, feeds)


def tell_shapes(model: ModelProto, feeds: Mapping[str, Any]) -> Fixed:
    """The same by the rules of the operators, which for inputs of these sizes leave little to run.

    Where a rule needs to know computed sizes, these alone are computed. A node without a rule is run, with all that it
    depends on. Each node needs a name of its own.
    """
    return _Inference(model, feeds).tell()


class _Inference:
    """light: a copy without weights, in which what was computed is a constant or an input. found: the shapes."""

    def __init__(self, model: ModelProto, feeds: Mapping[str, Any]) -> None:
        self.model, self.index, self.feeds = model, Index(model.graph), feeds
        self.light = copy_without_weights(model)
        for value in self.light.graph.input:
            if value.name in feeds:
                kind, sizes = value.type.tensor_type.elem_type, np.shape(feeds[value.name])
                value.CopyFrom(helper.make_tensor_value_info(value.name, kind, sizes))
        spell_shapes(self.light)
        self.found = _list_given(model, feeds)
        self.kinds: dict[str, int] = {}
        self.sizes: dict[str, np.ndarray] = {}  # tensor -> its integers

    def tell(self) -> Fixed:
        made: list[str] = []
        for rounds in range(1, MOST_ROUNDS + 1):
            types = infer_graph(self.light)
            self._take(types)
            made = made or _list_made(self.model, types)
            lacking = [t for t in made if t not in self.found]
            if not lacking:
                break
            first = [t for t in lacking if all(t in self.found for t in reads(self.index.producer[t]))]
            if not first or rounds == MOST_ROUNDS:
                self._run(lacking)
            elif needed := self._list_sizes(first):
                self._compute(needed)
            else:
                self._run(first)
        return {t: self.found[t] for t in made} | _list_given(self.model, self.feeds)

    def _take(self, types: GraphProto | None) -> None:
        """The shapes of which inference knows every size; 0 is one, as all inputs are known."""
        for value in () if types is None else (*types.value_info, *types.output):
            tensor = value.type.tensor_type
            self.kinds[value.name] = tensor.elem_type
            if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
                self.found[value.name] = tuple(d.dim_value for d in tensor.shape.dim)

    def _list_sizes(self, tensors: Sequence[str]) -> list[str]:
        """The short integers, not yet known, that the nodes of these tensors read."""
        given = dict.fromkeys(t for tensor in tensors for t in reads(self.index.producer[tensor]))
        short = (t for t in given if t in self.index.producer and len(self.found[t]) < 2)
        return [t for t in short if self.kinds.get(t) in INTEGERS and t not in self.sizes]

    def _compute(self, tensors: Sequence[str]) -> None:
        """Make constants of integers, from the shapes that are known and whatever else they depend on."""
        self.sizes |= compute_sizes(self.model, self.index, tensors, self.feeds, self.found)
        self._set_free(tensors)
        for name in tensors:
            add_constant(self.light.graph, name, self.sizes[name])

    def _run(self, tensors: Sequence[str]) -> None:
        part, feeds = _cut_out(self.model, self.index, tensors, self.feeds, self.found)
        del part.graph.output[:]  # their shapes will be its outputs
        self.found |= _run(part, tensors, feeds, 0)
        self._set_free(tensors)
        for name in tensors:
            kind = self.kinds.get(name, 0) or TensorProto.FLOAT
            self.light.graph.input.append(helper.make_tensor_value_info(name, kind, self.found[name]))

    def _set_free(self, tensors: Sequence[str]) -> None:
        """Let no node of the copy make them any more."""
        others = {name: f"{name}:made" for name in tensors}
        for node in self.light.graph.node:
            replace_names(node.output, others)


def compute_sizes(
    model: ModelProto, index: Index, tensors: Sequence[str], feeds: Mapping[str, Any], shapes: Fixed
) -> dict[str, np.ndarray]:
    """The values of tensors that nodes make, for which what is computed from ``shapes`` alone is not run."""
    part, feeds = _cut_out(model, index, tensors, feeds, shapes)
    given = {t: feeds[t] for t in tensors if t in feeds}
    return given | (Session(part).run(feeds) if part.graph.output else {})


def _cut_out(
    model: ModelProto, index: Index, tensors: Sequence[str], feeds: Mapping[str, Any], shapes: Fixed
) -> tuple[ModelProto, dict[str, Any]]:
    """What makes these tensors of the inputs and of the shapes that are known, and what to feed it."""
    types, sizes = {value.name: value for value in model.graph.input}, dict[str, np.ndarray]()
    for node in model.graph.node:
        if is_op(node, "Shape") and node.input[0] in shapes:
            start, end = attribute_of(node, "start", 0), attribute_of(node, "end", None)
            value = np.array(shapes[node.input[0]][start:end], np.int64)
            sizes[node.output[0]] = value
            types[node.output[0]] = helper.make_tensor_value_info(node.output[0], TensorProto.INT64, value.shape)
    wanted = [t for t in tensors if t not in sizes]
    return extract(model, types, inputs=[*index.inputs, *sizes], outputs=wanted, index=index), {**feeds, **sizes}


def _list_made(model: ModelProto, types: GraphProto | None) -> list[str]:
    """What the nodes make, but sequences, which have no shape."""
    values = () if types is None else (*types.value_info, *types.output)
    shapeless = {value.name for value in values if not value.type.HasField("tensor_type")}
    return [t for node in model.graph.node for t in node.output if t and t not in shapeless]


def _list_given(model: ModelProto, feeds: Mapping[str, Any]) -> Fixed:
    given = {name: np.shape(value) for name, value in feeds.items()}
    return given | {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def _run(model: ModelProto, tensors: Sequence[str], feeds: Mapping[str, Any], threads: int) -> Fixed:
    """Their shapes in a run."""
    graph = model.graph
    nodes, outputs = len(graph.node), len(graph.output)
    names = {f"{t}:shape": t for t in tensors}
    try:
        graph.node.extend(helper.make_node("Shape", [t], [name]) for name, t in names.items())
        session = Session(model, also=list(names), optimize=False, threads=threads)
    finally:
        del graph.node[nodes:], graph.output[outputs:]
    found = session.run(feeds, [name for name in session.outputs if name in names])
    return {names[name]: tuple(int(n) for n in value) for name, value in found.items()}
