"""Bodies of If, Loop and Scan as models of their own: taken out of a model, and put back in their place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, helper

from .edit import copy_model, refill, remove_at, rename, replace_names, take_name, unused_name
from .index import BODY, all_graphs, all_nodes, captured_by, is_op, reads, subgraphs
from .ops import DEQUANTIZE, LAYERS, QUANTIZE, RECURRENT
from .structure import STANDARD
from .values import bring_in, find_place, is_outside, read_pieces
from .weightless import held_bytes

# Smaller constants stay in their body: to share them would save no more than their names take.
LEAST_SHARED_BYTES = 1024


@dataclass(frozen=True)
class Body:
    """A body by the node that has it, the node's operator and the attribute. captured: outer tensors that it reads."""

    owner: str
    op: str
    attribute: str
    captured: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        return f"{self.owner}/{self.attribute}"


def holds_layers(graph: GraphProto) -> bool:
    """Whether a body has operators that are layers where their weight is constant, which folding decides."""
    return any(is_op(node, *LAYERS, *RECURRENT) for node in all_nodes(graph))


def list_bodies(model: ModelProto, chosen: Callable[[GraphProto], bool] = holds_layers) -> list[Body]:
    """The bodies of the graph's own nodes that are chosen, by what they or bodies in them hold, in graph order."""
    return [
        Body(node.name, node.op_type, attribute.name, tuple(sorted(captured_by(attribute.g))))
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.type == BODY and is_op(node, "If", "Loop", "Scan") and chosen(attribute.g)
    ]


def tensors_in_bodies(model: ModelProto) -> set[str]:
    """The inputs of all bodies, and what nodes in them give."""
    _, *inner = all_graphs(model.graph)
    made = {name for graph in inner for node in graph.node for name in node.output if name}
    return made.union(value.name for graph in inner for value in graph.input)


def find_graph(model: ModelProto, body: Body) -> GraphProto:
    """The body's graph in a model that has its owner."""
    return _find_attribute(_find_node(model, body.owner), body.attribute).g


def extract_body(model: ModelProto, body: Body, types: Mapping[str, TypeProto]) -> ModelProto:
    """The body as a model.

    Its inputs are its own, and after them the tensors that it captures; constants among these become its initializers.
    types: of inputs, in place of what the body declares. Outputs that no node makes are made by an Identity.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    part = helper.make_model(
        find_graph(model, body),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
        functions=[*model.functions],
    )
    graph = part.graph
    graph.name = body.path
    del graph.value_info[:]
    for name in body.captured:
        if name in constants:
            graph.initializer.add().CopyFrom(constants[name])
        else:
            graph.input.append(ValueInfoProto(name=name))
    for value in graph.input:
        if value.name in types:
            value.type.CopyFrom(types[value.name])
    _make_outputs(graph)
    return part


def match_captured(old: GraphProto, new: GraphProto) -> dict[str, str]:
    """What a body reads in a rewritten model under the names of the model before; the nodes of both are the same."""
    names = {name: name for name in sorted(captured_by(old))}
    for before, after in zip(all_nodes(old), all_nodes(new), strict=True):
        names.update((a, b) for a, b in zip(before.input, after.input, strict=True) if a in names and a != b)
    return names


def put_back(model: ModelProto, body: Body, part: ModelProto, names: Mapping[str, str]) -> None:
    """Replace a body by the model that was made of it; mutates ``model``.

    names: captured tensor -> its name in ``model``. Tensors and nodes get names that ``model`` does not have; large
    constants go to the model's own graph, where those of equal values are one.
    """
    attribute = _find_attribute(_find_node(model, body.owner), body.attribute)
    old, new = GraphProto(), copy_model(part).graph
    old.CopyFrom(attribute.g)
    new.name, count = old.name, len(old.input)
    attribute.g.Clear()
    taken = _Taken(model, new)
    outer = {value.name: names.get(value.name, value.name) for value in new.input[count:]}
    del new.input[count:]
    _rename_all(new, outer, taken)
    for value, before in zip((*new.input, *new.output), (*old.input, *old.output), strict=True):
        value.type.CopyFrom(before.type)
    attribute.g.CopyFrom(new)
    _import_domains(model, part)
    model.ir_version = max(model.ir_version, part.ir_version)
    hoist_constants(model, attribute.g)


def put_in_place(model: ModelProto, position: int, attribute: str) -> None:
    """Replace the If at this position of the graph by the nodes of one of its branches; mutates ``model``."""
    graph, node = model.graph, model.graph.node[position]
    branch = GraphProto()
    branch.CopyFrom(_find_attribute(node, attribute).g)
    wanted = list(node.output)
    del graph.node[position]
    _make_outputs(branch)
    taken = _Taken(model, branch)
    _rename_all(branch, {}, taken)
    names = {value.name: name for value, name in zip(branch.output, wanted, strict=False) if name}
    rename(branch, names)
    refill(graph.node, [*graph.node[:position], *branch.node, *graph.node[position:]])
    graph.initializer.extend(branch.initializer)


def hoist_constants(model: ModelProto, body: GraphProto) -> None:
    """Move a body's large constants to the model's own graph, once for equal values.

    Scales and zero points stay: each belongs to one QuantizeLinear or DequantizeLinear (see ``emit``). So do integers
    that a MatMul of floats multiplies by: onnxruntime 1.32 makes a MatMulNBits of it, and then looks for them in the
    body alone (TransposeDQWeightsForMatMulNBits), without which it does not load the file.
    """
    stored: dict[str, str] | None = None
    for graph in all_graphs(body):
        grids = {name for node in all_nodes(graph) if node.op_type in (QUANTIZE, DEQUANTIZE) for name in node.input[1:]}
        moved: dict[str, str] = {}
        bound = _weights_alone(graph)
        for position in reversed(range(len(graph.initializer))):
            tensor = graph.initializer[position]
            if tensor.name in bound:
                if is_outside(tensor):  # sessions look for files of the model's own graph alone
                    bring_in(tensor)
                continue
            small = held_bytes(tensor) < LEAST_SHARED_BYTES or tensor.name in grids
            if tensor.data_type == TensorProto.STRING or (small and not is_outside(tensor)):
                continue
            if stored is None:
                stored = {identify(each): each.name for each in model.graph.initializer if held_bytes(each)}
            found = identify(tensor)
            if tensor.name in grids or found not in stored:
                stored.setdefault(found, tensor.name)
                model.graph.initializer.add().CopyFrom(tensor)
            else:
                moved[tensor.name] = stored[found]
            del graph.initializer[position]
        _rename_reads(graph, moved)


def _weights_alone(graph: GraphProto) -> set[str]:
    """Constants that a DequantizeLinear makes the one operand on a grid of a MatMul or Gemm."""
    made = {node.output[0]: node.input[0] for node in graph.node if is_op(node, DEQUANTIZE)}
    pairs = [node.input[:2] for node in graph.node if is_op(node, "MatMul", "Gemm")]
    return {made[name] for pair in pairs for name in pair if name in made and not made.keys() >= {*pair}}


def drop_unread(model: ModelProto) -> None:
    """Remove the constants of the model's own graph that neither its nodes nor their bodies read."""
    read = {name for node in model.graph.node for name in reads(node)}.union(value.name for value in model.graph.output)
    unread = [i for i, tensor in enumerate(model.graph.initializer) if tensor.name not in read]
    remove_at(model.graph.initializer, unread)


class _Taken:
    """The names of a model's tensors and of its nodes, which are apart.

    part: a graph that comes into the model. Where a tensor of it needs another name, that is none of the part's either:
    what has its old name in the model is the tensor that had it.
    """

    def __init__(self, model: ModelProto, part: GraphProto) -> None:
        graphs = list(all_graphs(model.graph))
        self.tensors = {value.name for graph in graphs for value in (*graph.input, *graph.initializer)}
        self.tensors.update(name for graph in graphs for node in graph.node for name in node.output)
        self.nodes = {node.name for graph in graphs for node in graph.node}
        self._seen = self.tensors | _names_in(part)

    def take(self, tensor: str) -> str:
        """A name for a tensor of the part: its own if that is free."""
        found = tensor if tensor not in self.tensors else unused_name(tensor, self._seen)
        self.tensors.add(found)
        self._seen.add(found)
        return found


def _rename_all(graph: GraphProto, outer: Mapping[str, str], taken: _Taken) -> None:
    """Give what a graph and its bodies make names that are not taken; ``outer``: what it reads from outside."""
    made = [value.name for value in (*graph.input, *graph.initializer)]
    made += [name for node in graph.node for name in node.output if name]
    names = {**outer, **{name: taken.take(name) for name in dict.fromkeys(made)}}
    for value in (*graph.input, *graph.initializer, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.name = take_name(node.name, taken.nodes) if node.name else ""
        replace_names(node.input, names)
        replace_names(node.output, names)
        for body in subgraphs(node):
            _rename_all(body, names, taken)
    kept = [value for value in graph.value_info if value.name in names]
    refill(graph.value_info, kept)
    for value in graph.value_info:
        value.name = names[value.name]


def _rename_reads(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Let the nodes of a graph and of its bodies read others of the model's own constants; no body reuses a name."""
    for node in all_nodes(graph) if names else ():
        replace_names(node.input, names)
    for each in all_graphs(graph) if names else ():
        for value in each.output:
            value.name = names.get(value.name, value.name)


def _make_outputs(graph: GraphProto) -> None:
    """Let a node of its own make every output that is an input, a constant or another output too."""
    made = {name for node in graph.node for name in node.output if name}
    taken = _names_in(graph)
    seen: set[str] = set()
    for value in graph.output:
        if value.name not in made or value.name in seen:
            new = take_name(f"{value.name}_returned", taken)
            graph.node.append(helper.make_node("Identity", [value.name], [new], name=f"Identity_{new}"))
            value.name = new
        seen.add(value.name)


def _names_in(graph: GraphProto) -> set[str]:
    graphs = list(all_graphs(graph))
    names = {value.name for each in graphs for value in (*each.input, *each.initializer, *each.output)}
    return names.union(name for node in all_nodes(graph) for name in (node.name, *node.input, *node.output))


def _find_node(model: ModelProto, name: str) -> NodeProto:
    found: NodeProto = next(node for node in model.graph.node if node.name == name)
    return found


def _find_attribute(node: NodeProto, name: str) -> AttributeProto:
    found: AttributeProto = next(attribute for attribute in node.attribute if attribute.name == name)
    return found


def identify(tensor: TensorProto) -> str:
    """What is the same of tensors with the same values: their type, their dimensions, and what they hold or where."""
    if is_outside(tensor):
        place = find_place(tensor)
        return f"{_describe(tensor)} {place.file} {place.offset} {place.length}"
    return f"{_describe(tensor)} {tensor.name}" if tensor.data_type == TensorProto.STRING else digest(tensor)


def digest(tensor: TensorProto) -> str:
    """The same, by what they hold alone."""
    found = hashlib.sha256()
    for piece in read_pieces(tensor):
        found.update(piece)
    return f"{_describe(tensor)} {found.hexdigest()}"


def _describe(tensor: TensorProto) -> str:
    return f"{tensor.data_type} {list(tensor.dims)}"


def _import_domains(model: ModelProto, part: ModelProto) -> None:
    """Ask for the operators' domains that the part has beside those of the model."""
    present = {entry.domain for entry in model.opset_import}
    more = [entry for entry in part.opset_import if entry.domain not in present | set(STANDARD)]
    model.opset_import.extend(more)
