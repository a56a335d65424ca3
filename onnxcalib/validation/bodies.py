"""Bodies of If, Loop and Scan of two models, each as models of their own, with samples of what they read in runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby

from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from ..data import CalibrationSet
from ..errors import DataError, ModelError
from ..graph.bodies import Body, extract_body, holds_layers, list_bodies
from ..graph.edit import refill, rename
from ..graph.index import Index, all_nodes, is_op
from ..graph.inspect.integers import is_linear
from ..graph.load import is_quantized_op
from ..graph.ops import DYNAMIC_QUANTIZE, LINEAR_OPS
from ..quantization.body_samples import BodySamples
from ..runtime.bodies import tensor_type
from ..runtime.store import Store

# Runs of a model that are followed into its bodies.
MOST_RUNS = 32
# What puts a tensor on a grid.
QUANTIZERS, CARRIERS = (*LINEAR_OPS, DYNAMIC_QUANTIZE), ("Cast", "Clip", "Identity")
# A name that was taken already where ``put_back`` gave it to a tensor of a body.
NUMBERED = re.compile(r"(.+)_\d+")


@dataclass(frozen=True)
class OpenBody:
    """A body as a model, and what it reads in runs of the model that it is of."""

    path: str
    model: ModelProto
    samples: CalibrationSet


@dataclass(frozen=True)
class BodyPair:
    """A body of the float model, and the same of the quantized model, with the float one's names of what both read."""

    original: OpenBody
    quantized: ModelProto


def holds_quantized(graph: GraphProto) -> bool:
    """Whether a body has layers, or operators that only quantized models hold."""
    return holds_layers(graph) or any(is_quantized_op(node) for node in all_nodes(graph))


def open_bodies(
    model: ModelProto, samples: CalibrationSet, stack: ExitStack, *, threads: int = 0
) -> Iterator[OpenBody | str]:
    """The bodies of a tidy model with something quantized or to quantize, or a line that says why one has no samples.

    stack: keeps what samples are read from.
    """
    yield from _open(model, list_bodies(model, holds_quantized), samples, stack, threads)


def pair_bodies(
    original: ModelProto, quantized: ModelProto, samples: CalibrationSet, stack: ExitStack, *, threads: int = 0
) -> Iterator[BodyPair | str]:
    """The bodies of two tidy models with the same path, on samples of the float one, or why there is no pair."""
    others = {body.path: body for body in list_bodies(quantized, holds_quantized)}
    bodies = list_bodies(original, lambda graph: True)
    shared = [body for body in bodies if body.path in others]
    paths = {body.path for body in shared}
    yield from (f"{path}: the float model has no such body" for path in others if path not in paths)
    for each in _open(original, shared, samples, stack, threads):
        part = each if isinstance(each, str) else _match(each, original, quantized, others[each.path])
        yield part if isinstance(each, str) or isinstance(part, str) else BodyPair(each, part)


def _open(
    model: ModelProto, bodies: Sequence[Body], samples: CalibrationSet, stack: ExitStack, threads: int
) -> Iterator[OpenBody | str]:
    for _, group in groupby(bodies, key=lambda body: body.owner):
        own = list(group)
        few = [index for run in samples.split(1)[:MOST_RUNS] for index in run]
        try:
            store = stack.enter_context(Store())
            runs = BodySamples(model, model, own, samples.take(few), store=store, threads=threads)
        except ModelError as error:
            yield from (f"{body.path}: {error}" for body in own)
            continue
        for body in own:
            try:
                given = runs.open(body)
            except DataError as error:
                yield f"{body.path}: {str(error).partition('; ')[0]}"  # what follows is about quantizing it
                continue
            types = {spec.name: tensor_type(spec.dtype, spec.shape) for spec in given.inputs}
            yield OpenBody(body.path, extract_body(model, body, types), given)


def _match(found: OpenBody, original: ModelProto, quantized: ModelProto, body: Body) -> ModelProto | str:
    """The body of the quantized model that reads what the float one does, under its names; else why there is none."""
    part = extract_body(quantized, body, {})
    own, graph = Index(found.model.graph), part.graph
    captured = [value.name for value in graph.input if value.name in body.captured]
    count = len(graph.input) - len(captured)
    names = {new.name: old.name for new, old in zip([*graph.input][:count], found.model.graph.input, strict=False)}
    names |= {new.name: old.name for new, old in zip(graph.output, found.model.graph.output, strict=False)}
    del graph.input[count:]
    outside = _bring_in(graph, Index(quantized.graph), captured, Index(original.graph))
    if missing := [name for name in outside if name not in own]:
        return f"{body.path}: it reads {missing[0]}, which the body of the float model does not"
    graph.input.extend(ValueInfoProto(name=name) for name in outside)
    rename_all = names | _numbered(graph, own, names)
    rename(graph, rename_all)
    for value in (*graph.input, *graph.output):
        value.name = rename_all.get(value.name, value.name)
    types = {value.name: value.type for value in found.model.graph.input}
    for value in graph.input:
        value.type.CopyFrom(types[value.name])
    return part


def _bring_in(graph: GraphProto, around: Index, tensors: Sequence[str], known: Index) -> list[str]:
    """Copy the nodes to the graph that put tensors of the float model on the grids on which it reads them.

    Returns those tensors, and what is none.
    """
    waiting, seen, nodes = list(tensors), set[str](), dict[str, NodeProto]()
    outside: list[str] = []
    for tensor in waiting:  # which grows
        if tensor in seen or not tensor:
            continue
        seen.add(tensor)
        node = around.producer.get(tensor)
        if tensor in around.initializers:
            graph.initializer.add().CopyFrom(around.initializers[tensor])
        elif tensor in known or node is None or not (is_linear(node, *QUANTIZERS) or is_op(node, *CARRIERS)):
            outside.append(tensor)
        else:
            nodes[node.name] = node
            waiting += node.input
    ordered = sorted(nodes.values(), key=lambda node: around.position[node.name])
    refill(graph.node, [*ordered, *graph.node])
    return outside


def _numbered(graph: GraphProto, own: Index, names: Mapping[str, str]) -> dict[str, str]:
    """Tensors that have a number behind the float model's name, as another body has that name too."""
    made = {name for node in graph.node for name in node.output if name}
    matches = {name: match[1] for name in made - names.keys() if (match := NUMBERED.fullmatch(name)) is not None}
    taken = made.union(names.values())
    return {name: base for name, base in matches.items() if name not in own and base in own and base not in taken}
