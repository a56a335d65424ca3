"""Operators that draw random values, and a key for each, by which two models of one net have equal draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from .index import all_nodes, attribute_of, in_scope, own_constants, subgraphs
from .ops import RANDOM_OPS
from .values import read_values

# The node's metadata under which its key stands, in the written file too, so that ``validate`` finds it there.
DRAW_KEY = "onnxcalib.draw"
TRAINING_MODE = 2  # the input of Dropout that turns it on


def list_draws(model: ModelProto) -> list[NodeProto]:
    """The nodes that draw random values in each run, those in bodies and in the model's own functions included."""
    inside = (node for function in model.functions for node in all_nodes(function) if _may_draw(node, {}))
    return [*_find_draws(model.graph, {}), *inside]


def _find_draws(graph: GraphProto, outer: Mapping[str, TensorProto]) -> Iterator[NodeProto]:
    constants = None
    for node in graph.node:
        if _is_random(node) or any(True for _ in subgraphs(node)):
            constants = constants or in_scope(graph, outer, own_constants(graph))
            if _may_draw(node, constants):
                yield node
            for body in subgraphs(node):
                yield from _find_draws(body, constants)


def _is_random(node: NodeProto) -> bool:
    return node.op_type in RANDOM_OPS and node.domain in ("", "ai.onnx")


def _may_draw(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Whether the node draws; a Dropout does unless its training mode is left out or known to be off."""
    if not _is_random(node):
        return False
    if node.op_type != "Dropout":
        return True
    mode = node.input[TRAINING_MODE] if len(node.input) > TRAINING_MODE else ""
    known = constants.get(mode)
    return bool(mode) and (known is None or bool(read_values(known).any()))


def name_draws(model: ModelProto) -> int:
    """Give every node that draws its key, unless it has one; returns how many got one.

    The key is the node's rank among those that draw, or its seed, as nodes with one seed draw the same values.
    Functions must be inlined before, and neither order nor number of nodes changed.
    """
    count = 0
    for rank, node in enumerate(list_draws(model)):
        if key_of(node) is None:
            seed = attribute_of(node, "seed", None)
            node.metadata_props.add(key=DRAW_KEY, value=str(rank) if seed is None else f"seed {seed:g}")
            count += 1
    return count


def key_of(node: NodeProto) -> str | None:
    """The key that ``name_draws`` gave the node."""
    return next((entry.value for entry in node.metadata_props if entry.key == DRAW_KEY), None)


def spell_draws(model: ModelProto) -> str:
    """Such as ``2 operators (Dropout, RandomNormalLike) draw random values``; an empty text where none does."""
    found = list_draws(model)
    kinds = ", ".join(sorted({node.op_type for node in found}))
    return (
        f"{len(found)} operator{'s' * (len(found) > 1)} ({kinds}) draw{'s' * (len(found) == 1)} random values"
        if found
        else ""
    )
