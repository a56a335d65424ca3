"""Operators whose output may jump where their input hardly changes, and the part of a graph that such jumps reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from .edit import copy_model, reroute, take_name
from .extract import extract, infer_types
from .index import (
    Index,
    all_nodes,
    attribute_of,
    has_bodies,
    is_op,
    list_names,
    reads,
    subgraphs,
    tensors_behind,
    walk_back,
)
from .load import FLOAT_TYPES
from .ops import LAYERS, ORDERS, STEPS

# Steps of which small differences pass through beside the jumps.
MIXED = ("Mod", "ThresholdedRelu", "Shrink")


def is_step(node: NodeProto) -> bool:
    """Whether the node's output may jump where its input hardly changes."""
    inside = (inner for body in subgraphs(node) for inner in all_nodes(body))
    rounds = node.op_type == "Cast" and attribute_of(node, "to", TensorProto.FLOAT) not in FLOAT_TYPES
    return node.op_type in STEPS or rounds or any(is_step(each) for each in inside)


class Step(NamedTuple):
    """A node whose output may jump, and the float tensors that it reads, no constants.

    output: that in which jumps are seen. mixed: small differences pass through it beside the jumps.
    """

    name: str
    op: str
    tensors: tuple[str, ...]
    output: str
    mixed: bool


class Tail(NamedTuple):
    """What steps reach: a model of its own.

    model: from the tensors ``given`` and the steps' own copies of what they read, ``copies``, (step, tensor) -> input,
    to the outputs of steps and of the graph.
    """

    model: ModelProto
    given: tuple[str, ...]
    copies: dict[tuple[str, str], str]
    outputs: tuple[str, ...]


def find_steps(model: ModelProto, index: Index, types: dict[str, ValueInfoProto]) -> list[Step]:
    """The steps of a graph on which an output depends, in its order; nodes are told apart by name."""
    found = []
    for node in model.graph.node:
        floats = tuple(
            name
            for name in (reads(node) if is_step(node) else ())
            if name not in index.initializers
            and name in types
            and types[name].type.tensor_type.elem_type == TensorProto.FLOAT
        )
        if floats:
            output = next(filter(None, reversed(node.output) if is_op(node, *ORDERS) else node.output))
            found.append(Step(node.name, node.op_type, floats, output, has_bodies(node) or is_op(node, *MIXED)))
    return found


def find_layers_before(index: Index, step: Step) -> list[str]:
    """The nearest nodes with a weight behind what a step reads, by name."""

    def is_layer(node: NodeProto) -> bool:
        return is_op(node, *LAYERS) and not index.initializers.keys().isdisjoint(node.input)

    return [node.name for node in walk_back(index, step.tensors, is_layer) if is_layer(node)]


def cut_tail(model: ModelProto, steps: Sequence[Step]) -> Tail:
    """The part of a graph behind its steps, with inputs in place of what these read."""
    model = copy_model(model)
    index, types, taken = Index(model.graph), infer_types(model), list_names(model)
    copies: dict[tuple[str, str], str] = {}
    for step in steps:
        for tensor in step.tensors:
            name = copies[step.name, tensor] = take_name(f"{tensor}_of_{step.name}", taken)
            reroute(index.nodes[step.name], tensor, name)
            types[name] = _renamed(types[tensor], name)
    made = tensors_behind(index, [step.name for step in steps])
    inner = [node for node in model.graph.node if not made.isdisjoint(node.output)]
    read = dict.fromkeys(name for node in inner for name in reads(node))
    own = {*copies.values()}
    given = tuple(t for t in read if t not in made | own and t not in index.initializers)
    ends = [name for name in index.outputs if name in made]
    wanted = list(dict.fromkeys((*ends, *(step.output for step in steps))))
    tail = extract(model, types, inputs=[*given, *copies.values()], outputs=wanted)
    return Tail(tail, given, copies, tuple(ends))


def _renamed(value: ValueInfoProto, name: str) -> ValueInfoProto:
    copy = ValueInfoProto()
    copy.CopyFrom(value)
    copy.name = name
    copy.type.tensor_type.ClearField("shape")
    return copy
