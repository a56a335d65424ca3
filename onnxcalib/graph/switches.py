"""A model in which each run says what activations are on grids, and on which: many schemes are tried in one session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from ..spec import QParams, QuantScheme
from .edit import replace_names, reroute, unused_name
from .emit import type_of
from .index import Index
from .weightless import copy_without_initializers

# The inputs of a switch, behind the name of the set of tensors that it is for.
ON, SCALE, ZERO_POINT = ":on", ":scale", ":zero_point"


def add_switches(model: ModelProto, scheme: QuantScheme, sets: Sequence[Sequence[str]]) -> ModelProto:
    """A copy of the model in which the tensors of each set are read on the grid that a run gives for it, or in float.

    Each set is of activations of the scheme with 8 bits, and is named by the first of them; see ``feed_switches``.
    Nodes that read such a tensor in float by the scheme do so here. Weights stay as they are.
    """
    switched = copy_without_initializers(model)
    switched.graph.initializer.extend(model.graph.initializer)
    index = Index(switched.graph)
    taken = {*index.inputs, *index.initializers, *index.producer}
    key_of = {tensor: members[0] for members in sets for tensor in members}
    nodes: list[NodeProto] = []
    for tensor in (*index.initializers, *index.inputs):
        if tensor in key_of:
            nodes += _write_switch(index, scheme, tensor, key_of[tensor], taken)
    for node in list(switched.graph.node):
        made = [t for t in node.output if t in key_of]
        after = [new for tensor in made for new in _write_switch(index, scheme, tensor, key_of[tensor], taken)]
        nodes += [node, *after]
    for members in sets:
        integers = helper.np_dtype_to_tensor_dtype(type_of(scheme.activations[members[0]]))
        kinds = {ON: TensorProto.BOOL, SCALE: TensorProto.FLOAT, ZERO_POINT: integers}
        values = (helper.make_tensor_value_info(f"{members[0]}{end}", kind, []) for end, kind in kinds.items())
        switched.graph.input.extend(values)
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del switched.graph.node[:], switched.graph.value_info[:]
    switched.graph.node.extend(copies)
    return switched


def feed_switches(
    sets: Sequence[Sequence[str]], grids: Mapping[str, QParams], *, signed: bool = False
) -> dict[str, np.ndarray]:
    """What a run reads beside the samples: the sets named in ``grids`` are on these, the others in float.

    signed: the integers of sets that are in float.
    """
    feeds, none = {}, np.int8 if signed else np.uint8
    for key, *_ in sets:
        grid = grids.get(key)
        feeds[f"{key}{ON}"] = np.asarray(grid is not None)
        feeds[f"{key}{SCALE}"] = np.asarray(1.0 if grid is None else grid.scale, np.float32)
        feeds[f"{key}{ZERO_POINT}"] = np.asarray(
            0 if grid is None else grid.zero_point, none if grid is None else type_of(grid.spec)
        )
    return feeds


def _write_switch(index: Index, scheme: QuantScheme, tensor: str, key: str, taken: set[str]) -> Iterator[NodeProto]:
    """The nodes behind a tensor, whose readers on the grid read the last of them from now on."""
    in_float = scheme.float_reads.get(tensor, frozenset())
    readers = [node for node in index.readers(tensor) if node.name not in in_float]
    names = [unused_name(f"{tensor}_{end}", taken) for end in ("integers", "dequantized", "switched")]
    source = tensor
    if tensor in index.outputs and tensor in index.producer and tensor not in scheme.float_reads:
        source = unused_name(f"{tensor}_float", taken)
        replace_names(index.producer[tensor].output, {tensor: source})
        names[-1] = tensor
    else:
        for node in readers:
            reroute(node, tensor, names[-1])
    taken.update(names, [source])
    grid = [f"{key}{SCALE}", f"{key}{ZERO_POINT}"]
    yield helper.make_node("QuantizeLinear", [source, *grid], names[:1])
    yield helper.make_node("DequantizeLinear", [names[0], *grid], names[1:2])
    yield helper.make_node("Where", [f"{key}{ON}", names[1], source], names[2:])
