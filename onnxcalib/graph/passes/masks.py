"""Attention masks as (1 - mask) x a finite number, for devices that have neither booleans nor infinities.

Exporters spell a mask by And, Where, Expand and Gather of booleans, and fill in the least float or minus infinity. A
mask is told by what it computes: its nodes are run on a few masks. The spelling plays no part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from ..edit import add_constant, drop_dead, refill, replace_names, take_name, write_attributes
from ..extract import extract, infer_types
from ..index import Index, constant, has_bodies, is_op, list_names, walk_back
from ..mask_values import reaches_softmax
from ..shapes import recorded_shape
from ..values import with_values

# What is added to a score that must not count. Scores of trained networks stay within some hundreds.
HIDDEN = -1e3
# The longest spelling that was met, of transformers 4.57 with its vmap, has 40 nodes once shapes are folded.
MOST_NODES = 64
# Values of a mask that is computed on a probe: one of 2,048 tokens for each of these has 2**22.
MOST_VALUES = 2**23
PROBES = 3
_Probed = tuple[np.ndarray, np.ndarray]  # a mask of tokens, and what the graph makes of it


def write_masks(model: ModelProto, far: float) -> int:
    """Add (1 - mask) x ``far`` to attention scores in place of what hides them; returns how many masks were replaced.

    far: negative. What else a mask hides whatever is fed, such as later tokens, is a constant that is added too. A
    mask stays where its input has free dimensions, or where it depends on anything but a mask of tokens and constants.
    Guards against rows of which all is hidden go, as ``far`` is finite.
    """
    finder, made = _Finder(model), dict[str, str]()
    taken = list_names(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        for position, tensor in (
            enumerate(node.input) if is_op(node, "Add") and reaches_softmax(finder.index, node) else ()
        ):
            mask = finder.read(tensor)
            if mask is not None:
                if tensor not in made:
                    nodes += _write(model, mask, far, taken)
                    made[tensor] = nodes[-1].output[0]
                node.input[position] = made[tensor]
                break
        if (
            is_op(node, "Where")
            and reaches_softmax(finder.index, node)
            and (found := finder.read_choice(node)) is not None
        ):
            mask, scores = found
            if node.input[0] not in made:
                nodes += _write(model, mask, far, taken)
                made[node.input[0]] = nodes[-1].output[0]
            node.CopyFrom(helper.make_node("Add", [scores, made[node.input[0]]], list(node.output), node.name))
        nodes.append(node)
    if made:
        refill(model.graph.node, nodes)
        _drop_guards(model)
        drop_dead(model)
    return len(made)


@dataclass(frozen=True)
class _Mask:
    """The input that says which tokens count, its element type and shape; and what the mask of scores is beside it.

    rank: of the mask of scores. hidden: what it hides whatever is fed, bool; added: numbers that it adds to scores.
    Either is None where there is nothing.
    """

    input: str
    type: int
    shape: tuple[int, int]
    rank: int
    hidden: np.ndarray | None
    added: np.ndarray | None


class _Finder:
    def __init__(self, model: ModelProto) -> None:
        self.model, self.index, self.types = model, Index(model.graph), infer_types(model)
        self._known: dict[tuple[str, bool | None], _Mask | None] = {}

    def read(self, tensor: str, hides: bool | None = None) -> _Mask | None:
        """The mask of scores that a tensor is: of floats that are added, or of booleans where ``hides`` hides."""
        if (tensor, hides) not in self._known:
            self._known[tensor, hides] = self._read(tensor, hides)
        return self._known[tensor, hides]

    def read_choice(self, node: NodeProto) -> tuple[_Mask, str] | None:
        """The mask by which a Where chooses between scores and a constant that hides them, and the scores."""
        if self.read(node.output[0]) is not None:  # no scores are chosen
            return None
        condition, *branches = node.input
        for number, branch in enumerate(branches):
            filling = constant(self.index, branch)
            if filling is not None and filling.dtype.kind == "f" and filling.size and filling.max() <= HIDDEN:
                found = self.read(condition, hides=number == 0)
                return None if found is None else (found, branches[1 - number])
        return None

    def _read(self, tensor: str, hides: bool | None) -> _Mask | None:
        nodes = list(walk_back(self.index, [tensor], lambda node: False))
        if not nodes or len(nodes) > MOST_NODES or any(has_bodies(node) or not node.name for node in nodes):
            return None
        fed = {name for node in nodes for name in node.input if name in self.index.inputs}
        shapes = [recorded_shape(self.types[name]) for name in fed]
        if len(fed) != 1 or shapes[0] is None or len(shapes[0]) != 2:
            return None
        (name,), (samples, tokens) = fed, shapes[0]
        if samples is None or tokens is None:
            return None
        found = list(self._probe(name, (samples, tokens), tensor))
        if hides is not None:
            found = [(mask, np.where(values == hides, -np.inf, 0)) for mask, values in found]
        return self._compare(name, (samples, tokens), found) if len(found) > PROBES else None

    def _probe(self, name: str, shape: tuple[int, int], tensor: str) -> Iterator[_Probed]:
        """Masks of tokens, the first of which hides nothing, and what the graph makes of each; none where it cannot."""
        kind = self.types[name].type.tensor_type.elem_type
        part = extract(self.model, self.types, inputs=[name], outputs=[tensor], index=self.index)
        value = self.types.get(tensor)
        sizes = None if value is None else recorded_shape(value)
        if sizes is None or math.prod(size or 1 for size in sizes) > MOST_VALUES:
            return
        draw = np.random.default_rng(0)
        masks = [np.ones(shape, bool), *(draw.random(shape) < share for share in np.linspace(0.3, 0.7, PROBES))]
        try:
            evaluator = ReferenceEvaluator(with_values(part))
            for mask in masks:
                mask[:, 0] = True
                with np.errstate(all="ignore"):
                    (values,) = evaluator.run(None, {name: mask.astype(helper.tensor_dtype_to_np_dtype(kind))})
                yield mask, np.asarray(values)
        except Exception:  # the evaluator lets through whatever numpy or its own operators raise
            return

    def _compare(self, name: str, shape: tuple[int, int], found: list[tuple[np.ndarray, np.ndarray]]) -> _Mask | None:
        """The mask, if it hides the tokens that do not count, and nothing else depends on the input."""
        _, first = found[0]
        if first.dtype.kind != "f" or first.ndim < 2 or np.isnan(first).any() or (first > -HIDDEN).any():
            return None
        always = first <= HIDDEN
        for mask, values in found:
            own = mask.reshape(shape[0], *[1] * (first.ndim - 2), shape[1])
            if values.shape != first.shape or not _broadcasts(own.shape, first.shape):
                return None
            hidden = always | ~own
            if ((values <= HIDDEN) != hidden).any() or (values != first)[~hidden].any():
                return None
        added = np.where(always, 0, first).astype(np.float32)
        return _Mask(
            name,
            self.types[name].type.tensor_type.elem_type,
            shape,
            first.ndim,
            always if always.any() else None,
            added if added.any() else None,
        )


def _broadcasts(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(a in (1, b) for a, b in zip(shape, other, strict=True))


def _write(model: ModelProto, mask: _Mask, far: float, taken: set[str]) -> list[NodeProto]:
    """The nodes that make (1 - mask) x far, of the rank of the mask of scores, with what is added to it."""
    graph, nodes = model.graph, list[NodeProto]()

    def take(name: str) -> str:
        return take_name(f"{mask.input}_{name}", taken)

    def add(op: str, name: str, *inputs: str) -> str:
        output = take(name)
        nodes.append(helper.make_node(op, list(inputs), [output], take(f"{name}_node")))
        return output

    tokens = mask.input
    if mask.type != TensorProto.FLOAT:
        tokens = add("Cast", "float", tokens)
        write_attributes(nodes[-1], {"to": TensorProto.FLOAT})
    hidden = add("Sub", "hidden", add_constant(graph, take("one"), np.float32(1)), tokens)
    scores = add("Mul", "scores", hidden, add_constant(graph, take("far"), np.float32(far)))
    sides = np.array([mask.shape[0], *[1] * (mask.rank - 2), mask.shape[1]], np.int64)
    scores = add("Reshape", "by_token", scores, add_constant(graph, take("shape"), sides))
    for name, value in (("always", mask.hidden), ("added", mask.added)):
        if value is not None:
            number = np.where(value, np.float32(far), np.float32(0)) if value.dtype == bool else value
            scores = add("Add", f"with_{name}", scores, add_constant(graph, take(name), number))
    return nodes


def _drop_guards(model: ModelProto) -> None:
    """Let what reads Where(IsNaN(p), constant, p) of a Softmax p read p, which is a number now."""
    index = Index(model.graph)
    names: dict[str, str] = {}
    for node in model.graph.node:
        maker = index.producer.get(node.input[0]) if is_op(node, "Where") else None
        if maker is None or not is_op(maker, "IsNaN") or maker.input[0] != node.input[2]:
            continue
        softmax = index.producer.get(node.input[2])
        if softmax is not None and is_op(softmax, "Softmax") and node.output[0] not in index.outputs:
            names[node.output[0]] = node.input[2]
    for node in model.graph.node:
        replace_names(node.input, names)
