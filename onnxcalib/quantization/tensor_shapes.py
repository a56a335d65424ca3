"""The shapes of all tensors of a model, as a run gives them: inference does not know them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from ..graph.shapes import infer_graph
from ..runtime.session import Session


def measure_shapes(model: ModelProto, feeds: Mapping[str, Any], threads: int = 0) -> dict[str, tuple[int, ...]]:
    """Shapes of the graph's inputs and constants, and of all that its nodes make in a run on ``feeds``."""
    graph = model.graph
    types = infer_graph(model)
    values = () if types is None else (*types.value_info, *types.output)
    shapeless = {value.name for value in values if not value.type.HasField("tensor_type")}  # sequences have no shape
    tensors = [t for node in graph.node for t in node.output if t and t not in shapeless]
    nodes, outputs = len(graph.node), len(graph.output)
    names = {f"{t}:shape": t for t in tensors}
    try:
        graph.node.extend(helper.make_node("Shape", [t], [name]) for name, t in names.items())
        session = Session(model, also=list(names), optimize=False, threads=threads)
    finally:
        del graph.node[nodes:], graph.output[outputs:]
    found = session.run(feeds, [name for name in session.outputs if name in names])
    shapes = {names[name]: tuple(int(n) for n in value) for name, value in found.items()}
    shapes |= {name: np.shape(value) for name, value in feeds.items()}
    return shapes | {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
