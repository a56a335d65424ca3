"""Bring the many ways to write the same graph into one, the only one that later passes need to know."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import onnx.inliner
from onnx import ModelProto, NodeProto, TensorProto, helper

from ...errors import ModelError, first_line
from ..draws import name_draws
from ..edit import copy_model, drop_dead, drop_stale_shapes, refill, remove_at, rename, take_name
from ..index import Index, all_nodes, captured, constant, is_op, reads, subgraphs
from ..shapes import describe_outputs
from ..weight_file import move_out
from ..weightless import copy_without_weights, replace_around_weights

STANDARD_DOMAIN = "ai.onnx"
# Under which torch's exporter writes the lines of Python behind each node, with paths of the machine that exported.
STACK_TRACE = "pkg.torch.onnx.stack_trace"
# Before it an initializer has to be a graph input too (onnx IR specification).
FREE_INITIALIZER_IR_VERSION = 4


def normalise(model: ModelProto) -> dict[str, int]:
    """Run all graph passes of this file in their order; returns how many rewrites each made, by its name."""
    passes = (
        spell_domain, inline_functions, name_draws, drop_initializer_inputs, sort_nodes, lift_constants,
        drop_identities, drop_dead, name_nodes, drop_traces, describe_outputs,
    )  # fmt: skip
    return {rewrite.__name__: rewrite(model) for rewrite in passes}


def tidy(model: ModelProto) -> ModelProto:
    """A copy whose nodes have names and stand in order, and whose constants are initializers."""
    copy = copy_model(model)
    for rewrite in (name_draws, name_nodes, spell_domain, drop_initializer_inputs, sort_nodes, lift_constants):
        rewrite(copy)
    return copy


def drop_traces(model: ModelProto) -> int:
    """Remove the stack traces of nodes, which may take as many bytes as the weights of a small model."""
    count = 0
    for node in all_nodes(model.graph):
        kept = [entry for entry in node.metadata_props if entry.key != STACK_TRACE]
        count += len(kept) < len(node.metadata_props)
        refill(node.metadata_props, kept)
    return count


def spell_domain(model: ModelProto) -> int:
    """Write the standard domain as the empty string, where it is spelled out as ``ai.onnx``."""
    count = 0
    for owner in (model, *model.functions):
        kept = [entry for entry in owner.opset_import if entry.domain != STANDARD_DOMAIN]
        for entry in owner.opset_import:
            if entry.domain == STANDARD_DOMAIN:
                count += 1
                if all(other.domain for other in kept):
                    kept.append(helper.make_opsetid("", entry.version))
        refill(owner.opset_import, kept)
    return count + sum(_spell_nodes(owner.node) for owner in (model.graph, *model.functions))


def _spell_nodes(nodes: Iterable[NodeProto]) -> int:
    count = 0
    for node in nodes:
        if node.domain == STANDARD_DOMAIN:
            node.domain = ""
            count += 1
        count += sum(_spell_nodes(body.node) for body in subgraphs(node))
    return count


def inline_functions(model: ModelProto) -> int:
    """Replace calls of the model's own functions by their bodies; returns the number of functions.

    Functions that are written for another opset than the model's stay. Raises ModelError where functions call each
    other in a cycle.
    """
    count = len(model.functions)
    if count:
        light = copy_without_weights(model)
        _spell_defaults(light)
        try:
            inlined = onnx.inliner.inline_local_functions(light)
        except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
            raise ModelError(
                f"graph {model.graph.name}: its {count} functions cannot be inlined ({first_line(error)});"
                " plain operators are needed; export the model without functions"
            ) from error
        replace_around_weights(model, inlined)
    return count - len(model.functions)


def _spell_defaults(model: ModelProto) -> None:
    """Write out the attributes that calls of functions leave to their defaults, which onnx's inliner forgets."""
    defaults = {(function.domain, function.name): function.attribute_proto for function in model.functions}
    for node in (node for owner in (model.graph, *model.functions) for node in all_nodes(owner)):
        given = {attribute.name for attribute in node.attribute}
        missing = defaults.get((node.domain, node.op_type), ())
        node.attribute.extend(attribute for attribute in missing if attribute.name not in given)


def drop_initializer_inputs(model: ModelProto) -> int:
    """Remove initializers from the graph's inputs, which makes them constants."""
    constants = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in constants]
    count = len(model.graph.input) - len(kept)
    refill(model.graph.input, kept)
    model.ir_version = max(model.ir_version, FREE_INITIALIZER_IR_VERSION)
    return count


def sort_nodes(model: ModelProto) -> int:
    """Put every node behind those whose outputs it reads; returns how many moved, raises ModelError on a cycle.

    The order is that of sweeps over the nodes, in each of which a node is taken if its inputs are made by then.
    """
    nodes = model.graph.node
    made = {name for node in nodes for name in node.output if name}
    needs = [{name for name in reads(node) if name in made} for node in nodes]
    readers: dict[str, list[int]] = {}
    for position, names in enumerate(needs):
        for name in names:
            readers.setdefault(name, []).append(position)
    # Number of the sweep and position of each node whose inputs are made; nodes are taken in this order.
    ready = [(0, position) for position, names in enumerate(needs) if not names]
    order: list[int] = []
    while ready:
        sweep, position = heapq.heappop(ready)
        order.append(position)
        for name in nodes[position].output:
            for reader in readers.pop(name, []):
                needs[reader].remove(name)
                if not needs[reader]:
                    heapq.heappush(ready, (sweep + (reader < position), reader))
    if len(order) < len(nodes):
        node = nodes[min(set(range(len(nodes))).difference(order))]
        raise ModelError(
            f"node {node.name or node.op_type}: is part of a cycle, or waits for one; a graph without cycles is needed;"
            " export the model again"
        )
    moved = sum(position != now for now, position in enumerate(order))
    if moved:
        refill(nodes, [nodes[position] for position in order])
    return moved


def lift_constants(model: ModelProto) -> int:
    """Turn Constant nodes into initializers of the same name; those that give graph outputs or are sparse stay."""
    outputs = {value.name for value in model.graph.output}
    kept, count = [], 0
    for node in model.graph.node:
        tensor = _constant_tensor(node) if is_op(node, "Constant") else None
        if tensor is None or node.output[0] in outputs:
            kept.append(node)
            continue
        tensor.name = node.output[0]
        move_out(tensor)
        model.graph.initializer.append(tensor)
        count += 1
    if count:
        refill(model.graph.node, kept)
    return count


def _constant_tensor(node: NodeProto) -> TensorProto | None:
    """The value of a Constant node, whichever of the attributes holds it; None for a sparse one."""
    if len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    tensor = TensorProto()
    if attribute.name == "value":
        tensor.CopyFrom(attribute.t)
        return tensor
    kinds = {"float": TensorProto.FLOAT, "int": TensorProto.INT64, "string": TensorProto.STRING}
    kind = kinds.get(attribute.name.removeprefix("value_").removesuffix("s"))
    if kind is None:
        return None
    value = helper.get_attribute_value(attribute)
    several = isinstance(value, (list, tuple))
    return helper.make_tensor("", kind, (len(value),) if several else (), value if several else [value])


def name_nodes(model: ModelProto) -> int:
    """Give every node, those of bodies included, a name of its own; the first holder of a name keeps it.

    Nodes of the outermost graph come first.
    """
    bodies = (body for node in model.graph.node for body in subgraphs(node))
    nodes = [*model.graph.node, *(node for body in bodies for node in all_nodes(body))]
    taken = {node.name for node in nodes}
    seen: set[str] = set()
    count = 0
    for node in nodes:
        if not node.name or node.name in seen:
            node.name = take_name(node.name or f"{node.op_type}_{next(filter(None, node.output), '')}", taken)
            count += 1
        seen.add(node.name)
    return count


def drop_identities(model: ModelProto) -> int:
    """Remove Identity, and Dropout in inference, where renaming a tensor does the same; graph outputs keep their names.

    A node between a graph input or a constant and a graph output stays. A node whose tensors a body captures stays too.
    """
    index = Index(model.graph)
    outputs = set(index.outputs)
    inner = {name for node in model.graph.node for name in captured(node)}
    renamed: dict[str, str] = {}
    dropped = []
    for position, node in enumerate(model.graph.node):
        if not _passes_through(node, index, outputs):
            continue
        source, target = renamed.get(node.input[0], node.input[0]), node.output[0]
        if source in inner or target in inner:
            continue
        if target in outputs:
            if source in outputs or source not in index.producer or source in renamed:
                continue
            # The tensor takes the output's name, where it is made and where it is read so far.
            renamed = {name: target if now == source else now for name, now in renamed.items()}
            renamed[source] = target
        else:
            renamed[target] = source
        dropped.append(position)
    rename(model.graph, renamed)
    remove_at(model.graph.node, dropped)
    drop_stale_shapes(model.graph)
    return len(dropped)


def _passes_through(node: NodeProto, index: Index, outputs: set[str]) -> bool:
    if node.domain or not node.output or not node.output[0]:
        return False
    if node.op_type == "Identity":
        return True
    if node.op_type != "Dropout":
        return False
    mask = node.output[1] if len(node.output) > 1 else ""
    if mask and (index.readers(mask) or mask in outputs):
        return False
    if len(node.input) < 3 or not node.input[2]:
        return True
    training = constant(index, node.input[2])
    return training is not None and not training.any()
