"""Turn a block, a small ONNX model whose weights are initializers, into a torch module that can be trained.

Converters are imported where they are used, as onnx2torch takes as long to import as a tiny model to quantize.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import getitem

import numpy as np
import torch
from onnx import ModelProto, NodeProto, ValueInfoProto, defs, helper
from torch import fx, nn

from ..errors import first_line
from ..graph.edit import copy_model
from ..graph.ops import CONVOLUTIONS
from ..graph.values import with_values

_NAMES = "onnxcalib"  # the key of a module's _Names in GraphModule.meta, which survives a deep copy
_ONNX_DOMAIN = "ai.onnx"  # the long name of the domain "", which onnx2torch does not know


class BlockError(Exception):
    """A block cannot become a torch module. The text is one line; the caller falls back to smaller blocks."""


@dataclass
class _Names:
    """Where a block's nodes and tensors are in its module, by name, so that they hold for a copy of the module too."""

    layers: dict[str, str] = field(default_factory=dict)  # weighted node -> submodule
    nodes: dict[str, str] = field(default_factory=dict)  # node -> fx node
    tensors: dict[str, str] = field(default_factory=dict)  # activation tensor -> fx node
    quantizers: int = 0


def to_torch(model: ModelProto) -> fx.GraphModule:
    """The block as a module in eval mode, called with the graph's inputs in order.

    The module returns a tuple in the order of ``graph.output``. Conv, ConvTranspose, Gemm and MatMul with a constant
    2-D weight become torch layers (see ``layer_module``). An unnamed node is known by its first output. The model is
    not changed. Raises BlockError.
    """
    from .converters.registry import OnnxGraph, convert

    copy, titles, layers = _prepare(model)
    _refuse_unknown(copy, titles)
    try:
        with torch.random.fork_rng(devices=[]):  # new layers draw weights, which are replaced
            module: fx.GraphModule = convert(copy)
    except NotImplementedError as error:  # of a converter, which says what it found
        raise BlockError(f"block: {first_line(error)}, which cannot be converted to torch") from error
    except Exception as error:  # onnx2torch and torch may raise anything at a model that they do not support
        raise BlockError(f"block: it cannot be converted to torch ({first_line(error)})") from error
    names = _Names()
    fx_nodes = {n.target: n for n in module.graph.nodes if n.op == "call_module"}
    for node, title in zip(copy.graph.node, titles, strict=False):
        target = OnnxGraph.generate_node_name(node)
        names.nodes[title] = fx_nodes[target].name
        if title in layers:
            names.layers[title] = target
        names.tensors.update(_name_outputs(module.graph, node, fx_nodes[target]))
    placeholders = (n for n in module.graph.nodes if n.op == "placeholder")
    names.tensors.update((v.name, n.name) for v, n in zip(copy.graph.input, placeholders, strict=True))
    _return_tuple(module, [fx_nodes[node.name] for node in copy.graph.node[len(titles) :]])
    module.meta[_NAMES] = names
    return module.eval()


def layer_module(module: fx.GraphModule, node_name: str) -> nn.Module:
    """The nn.ConvNd, nn.ConvTransposeNd or nn.Linear that computes a node of the block.

    The weight of an nn.Linear is (out, in), whatever its order in ONNX. Raises BlockError.
    """
    from .converters.layer import LAYERS

    target = module.meta[_NAMES].layers.get(node_name)
    if target is None:
        raise BlockError(f"{node_name}: not a layer of the block; its layers are {sorted(module.meta[_NAMES].layers)}")
    return next(m for m in module.get_submodule(target).modules() if isinstance(m, LAYERS))


def constant_of(module: fx.GraphModule, node_name: str) -> torch.Tensor:
    """The constant that a node of the block reads first, as a Gather its table: the module's own, to change in place.

    Raises BlockError where that is none.
    """
    path, _, name = str(_find_constant(module, node_name).target).rpartition(".")
    return module.get_submodule(path).get_buffer(name)


def tie_constant(module: fx.GraphModule, node_name: str, layer_name: str) -> None:
    """Make all that read the first constant of a node read the weight of a layer in its place, as it is in each run.

    The weight is that of ``layer_module``, of the constant's shape. Raises BlockError where the node reads no constant.
    """
    source, part = _find_constant(module, node_name), layer_module(module, layer_name)
    path = next(name for name, each in module.named_modules() if each is part)
    source.target = f"{path}.weight"
    module.recompile()


def _find_constant(module: fx.GraphModule, node_name: str) -> fx.Node:
    names: _Names = module.meta[_NAMES]
    fx_nodes = {n.name: n for n in module.graph.nodes}
    node = fx_nodes.get(names.nodes.get(node_name, ""))
    source = node.args[0] if node is not None and node.args else None
    if not isinstance(source, fx.Node) or source.op != "get_attr":
        raise BlockError(f"{node_name}: reads no constant in torch")
    return source


def place(module: fx.GraphModule, tensor: str, quantizer: nn.Module, *, only: Sequence[str] | None = None) -> None:
    """Make the nodes that read ``tensor``, all of them or ``only`` the named ones, read ``quantizer(tensor)``.

    A node that already reads the tensor through another quantizer keeps that one. The block's outputs keep returning
    the raw tensor. Raises BlockError where no node is left to change.
    """
    names: _Names = module.meta[_NAMES]
    if tensor not in names.tensors:
        raise BlockError(f"{tensor}: not an activation of the block")
    fx_nodes = {n.name: n for n in module.graph.nodes}
    source = fx_nodes[names.tensors[tensor]]
    readers = {title: fx_nodes[name] for title, name in names.nodes.items() if source in fx_nodes[name].all_input_nodes}
    chosen = list(readers) if only is None else list(only)
    missing = [title for title in chosen if title not in readers]
    if missing or not chosen:
        raise BlockError(f"{tensor}: not read by {missing or 'any node'}; its readers are {sorted(readers)}")
    target = f"quantizer_{names.quantizers}"
    names.quantizers += 1
    module.add_submodule(target, quantizer)
    with module.graph.inserting_after(source):
        quantized = module.graph.call_module(target, (source,))
    for title in chosen:
        readers[title].replace_input_with(source, quantized)
    module.graph.lint()
    module.recompile()


def return_also(module: fx.GraphModule, tensors: Sequence[str]) -> None:
    """Make the module return ``tensors`` too, after the graph's outputs, before any quantizer."""
    names: _Names = module.meta[_NAMES]
    fx_nodes = {n.name: n for n in module.graph.nodes}
    output = next(n for n in module.graph.nodes if n.op == "output")
    output.args = ((*output.args[0], *(fx_nodes[names.tensors[tensor]] for tensor in tensors)),)
    module.graph.lint()
    module.recompile()


def compare(
    module: fx.GraphModule, model: ModelProto, feeds: Mapping[str, np.ndarray], outputs: Sequence[np.ndarray]
) -> float:
    """Largest relative error of the module against the outputs of ``model`` that onnxruntime computed.

    max over outputs of max|module - output| / max|output|; infinite for another shape or a value that is not finite.
    Raises BlockError where the module does not run.
    """
    try:
        inputs = [torch.from_numpy(np.asarray(feeds[value.name], order="C")) for value in _activation_inputs(model)]
        with torch.no_grad():
            computed = module(*inputs)
    except Exception as error:  # torch may raise anything where shapes or types differ from the graph's
        raise BlockError(f"block: torch cannot run it ({first_line(error)})") from error
    pairs = zip(computed, outputs, strict=True)
    return max((_relative_error(ours.cpu().numpy(), theirs) for ours, theirs in pairs), default=0.0)


def _relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    if theirs.size == 0:
        return 0.0
    with np.errstate(invalid="ignore"):  # what is infinite in both is no number, and counts as infinitely far
        error = float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max())
    size = float(np.abs(theirs.astype(np.float64)).max())
    if not np.isfinite(error) or not np.isfinite(size):
        return float("inf")
    if error == 0:
        return 0.0
    return error / size if size else float("inf")


def _prepare(model: ModelProto) -> tuple[ModelProto, list[str], set[str]]:
    """A copy for onnx2torch, the names of the model's nodes, and which of them are layers.

    The copy's nodes are named by number, and an Identity makes each of its outputs.
    """
    from .converters.linear import rewrite_linear
    from .converters.registry import OWN_DOMAIN, OWN_VERSION

    copy = copy_model(with_values(model))
    graph = copy.graph
    for entry in (*copy.opset_import, *graph.node):
        if entry.domain == _ONNX_DOMAIN:
            entry.domain = ""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    versions = {entry.domain: entry.version for entry in copy.opset_import}
    titles, layers = [], set()
    for number, node in enumerate(graph.node):
        title = node.name or node.output[0]
        titles.append(title)
        node.name = f"n{number}"
        _drop_unused_outputs(node, used, versions)
        if rewrite_linear(node, constants) or (node.op_type in CONVOLUTIONS and not node.domain):
            layers.add(title)
    inputs = _activation_inputs(copy)
    del graph.input[:]
    graph.input.extend(inputs)
    # Without them onnx2torch returns a node's whole tuple for one of its outputs, and fails at an output without node.
    for number, value in enumerate(graph.output):
        wrapped = f"{value.name}.out{number}"
        graph.node.append(helper.make_node("Identity", [value.name], [wrapped], name=f"out{number}"))
        value.name = wrapped
    copy.opset_import.append(helper.make_opsetid(OWN_DOMAIN, OWN_VERSION))
    return copy, titles, layers


def _activation_inputs(model: ModelProto) -> list[ValueInfoProto]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _drop_unused_outputs(node: NodeProto, used: set[str], versions: Mapping[str, int]) -> None:
    """Drop trailing optional outputs that no node reads, as onnx2torch indexes the result of a node with several."""
    try:
        schema = defs.get_schema(node.op_type, versions.get(node.domain, 0), node.domain)
    except defs.SchemaError:  # unknown to ONNX, and refused below
        return
    declared = [output.option for output in schema.outputs]
    optional = defs.OpSchema.FormalParameterOption.Optional
    while 1 < len(node.output) <= len(declared) and declared[len(node.output) - 1] == optional:
        if node.output[-1] in used:
            return
        del node.output[-1]


def _refuse_unknown(model: ModelProto, titles: Sequence[str]) -> None:
    from .converters.registry import get_converter

    versions = {entry.domain: entry.version for entry in model.opset_import}
    for node, title in zip(model.graph.node, titles, strict=False):
        version = versions.get(node.domain, 0)
        try:
            get_converter(node.op_type, version, node.domain)
        except NotImplementedError as error:
            since = _since_version(node, version)
            name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            raise BlockError(f"{title}: {name}-{since} cannot be converted to torch") from error


def _since_version(node: NodeProto, version: int) -> int:
    try:
        return defs.get_schema(node.op_type, version, node.domain).since_version
    except defs.SchemaError:
        return version


def _name_outputs(graph: fx.Graph, node: NodeProto, source: fx.Node) -> dict[str, str]:
    """The fx node of each output; each output of a node with several becomes one ``getitem`` that all readers share."""
    if len(node.output) == 1:
        return {node.output[0]: source.name}
    picks: dict[int, list[fx.Node]] = {}
    for user in list(source.users):
        position = user.args[1]
        assert isinstance(position, int), f"onnx2torch reads {node.name} by {position!r}"
        picks.setdefault(position, []).append(user)
    names = {}
    for number, users in picks.items():
        with graph.inserting_after(source):
            pick = graph.call_function(getitem, (source, number))
        for user in users:
            user.replace_all_uses_with(pick)
            graph.erase_node(user)
        names[node.output[number]] = pick.name
    return names


def _return_tuple(module: fx.GraphModule, results: Sequence[fx.Node]) -> None:
    output = next(n for n in module.graph.nodes if n.op == "output")
    output.args = (tuple(results),)
    module.graph.lint()
    module.recompile()
