"""Mix the channels of linear bottlenecks by a matrix, which the layers on both sides take: the outputs stay."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto

from ...spec import LayerScheme
from ..edit import write_operand
from ..index import Index, is_op, known_constant
from .equalize import Junction, find_junctions

# In the metadata of a file: of how many bottlenecks channels were mixed.
MIXED_KEY = "onnxcalib.mixed_bottlenecks"


def find_bottlenecks(model: ModelProto, layers: Mapping[str, LayerScheme]) -> list[Junction]:
    """The junctions between convolutions of one group without anything but Adds; layers: all of them, by name.

    A convolution's padding is zero, which each matrix keeps.
    """
    index = Index(model.graph)
    return [each for each in find_junctions(model, layers)[0] if _is_linear(index, each)]


def _is_linear(index: Index, junction: Junction) -> bool:
    around = (*junction.makers, *junction.readers)
    if any(layer.op != "Conv" or layer.groups > 1 for layer in around):
        return False
    inside = {node.name for t in junction.tensors for node in (index.producer.get(t), *index.readers(t)) if node}
    own = {layer.name for layer in around}
    whole = all(part.start in (None, 0) for part in junction.tensors.values())
    return whole and all(name in own or is_op(index.nodes[name], "Add") for name in inside)


def mix_bottleneck(model: ModelProto, junction: Junction, matrix: np.ndarray) -> None:
    """Let the tensors of a bottleneck hold ``A x`` in place of x; mutates ``model``.

    matrix: A, (channels, channels).
    """
    index, inverse = Index(model.graph), np.linalg.inv(matrix)
    for layer in junction.makers:
        node = index.nodes[layer.name]
        weight = known_constant(index, node.input[1]).astype(np.float64)
        write_operand(model.graph, index, node, 1, np.tensordot(matrix, weight, 1).astype(np.float32))
        if layer.bias:
            bias = known_constant(index, layer.bias).astype(np.float64)
            write_operand(model.graph, index, node, 2, (matrix @ bias).astype(np.float32))
    for layer in junction.readers:
        node = index.nodes[layer.name]
        weight = known_constant(index, node.input[1]).astype(np.float64)
        turned = np.moveaxis(np.tensordot(weight, inverse, (1, 0)), -1, 1)
        write_operand(model.graph, index, node, 1, np.ascontiguousarray(turned, dtype=np.float32))
