"""The graph that onnxruntime makes of a model when it loads it."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, TensorProto
from onnx.external_data_helper import uses_external_data

from ..files.scratch import Scratch
from ..graph.draws import list_draws
from ..graph.edit import copy_model
from ..graph.index import all_graphs, all_nodes
from ..graph.passes.normalise import name_nodes
from ..graph.values import bring_in, find_place, refer
from .session import Session


def optimize(quantized: ModelProto, threads: int = 0, *, folder: Path | None = None) -> tuple[Session, GraphProto]:
    """A session, and the optimized graph that it runs, whose nodes keep their names as far as onnxruntime keeps them.

    The graph has its large constants of int8, the weights of integer kernels, in files of the folder, without one in
    memory; those of other types have no values. Raises ModelError.
    """
    scratch = Scratch()
    path = (folder or scratch.path) / "optimized.onnx"
    session = Session(_with_node_names(quantized), deployed=True, dump=path, threads=threads)
    graph = onnx.load(path, load_external_data=False).graph
    for owner in all_graphs(graph):
        for tensor in owner.initializer:
            if tensor.data_type == TensorProto.INT8 and uses_external_data(tensor):
                place = find_place(tensor)
                refer(tensor, place._replace(file=path.parent / place.file))
                if folder is None:
                    bring_in(tensor)
    if list_draws(quantized):  # that session's draws are its own, as the graph is
        session = Session(quantized, deployed=True, threads=threads)
    return session, graph


def read_optimized(model: ModelProto) -> GraphProto:
    """The graph that a user's session runs, its large constants without values; every node of the model has a name.

    Nothing is run, so that weights are not packed. Raises ModelError.
    """
    scratch = Scratch()
    path = scratch.path / "optimized.onnx"
    Session(model, deployed=True, dump=path, whole=True, unpacked=True)
    return onnx.load(path, load_external_data=False).graph


def _with_node_names(model: ModelProto) -> ModelProto:
    """The model itself where every node has a name, to save memory; otherwise a copy in which every node has one."""
    names = [node.name for node in all_nodes(model.graph)]
    if all(names) and len(set(names)) == len(names):
        return model
    named = copy_model(model)
    name_nodes(named)
    return named
