"""The nodes that make a layer's weight of its integers, for kernels on integers and for MatMulNBits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnx import NodeProto, TensorProto

from ..config import FULL_BITS
from ..spec import QParams
from .index import Index, constant, is_op
from .layer_params import LayerParams
from .new_nodes import NewNodes
from .weight_file import store_integers

# Half steps are whole ones of a grid of half the scale.
STEPS = 2


def write_weight(new: NewNodes, name: str, params: LayerParams, *, cast: bool) -> list[NodeProto]:
    """The nodes that give the weight of this name.

    cast: integers of few bits are cast to 8 first, as kernels on integers take none. A MatMulNBits takes few bits.
    """
    grid, spec = params.grid, params.grid.spec
    stored = new.integers(f"{name}_quantized", params.integers, spec)
    if spec.half_steps:
        return _write_halves(new, name, stored, params)
    zero = store_integers(grid.zero_point, spec)
    nodes: list[NodeProto] = []
    if spec.bits < FULL_BITS and cast:
        widened = new.name(f"{name}_int8")
        nodes.append(new.node("Cast", [stored], widened, name, to=TensorProto.INT8))
        stored, zero = widened, zero.astype(np.int8)
    return [*nodes, new.dequantize(name, stored, grid.scale, zero, spec)]


def _write_halves(new: NewNodes, name: str, stored: str, params: LayerParams) -> list[NodeProto]:
    """``2 q - 2 zero_point``, int8, at half the scale, which onnxruntime computes as it loads the file.

    All layers whose channels may have half steps have these nodes, so that files of the same bits have the same size.
    """
    grid = params.grid
    others = [axis for axis in range(len(params.integers.shape)) if axis != grid.spec.axis]
    added = np.expand_dims(np.rint(-STEPS * grid.zero_point).astype(np.int32), others)
    wide, scaled, moved, narrow = (new.name(f"{name}_{end}") for end in ("int32", "scaled", "moved", "int8"))
    steps = new.shared_constant("steps_of_halves", np.array(STEPS, np.int32))
    return [
        new.node("Cast", [stored], wide, name, to=TensorProto.INT32),
        new.node("Mul", [wide, steps], scaled, name),
        new.node("Add", [scaled, new.constant(f"{name}_added", added)], moved, name),
        new.node("Cast", [moved], narrow, f"{name}_int8", to=TensorProto.INT8),
        new.dequantize(name, narrow, written_scale(grid), np.zeros((), np.int8), grid.spec),
    ]


def written_scale(grid: QParams) -> np.ndarray:
    """The scale of the integers that a layer multiplies, float32."""
    scale: np.ndarray = grid.scale.astype(np.float32)
    return scale / np.float32(STEPS) if grid.spec.half_steps else scale


class Stored(NamedTuple):
    """A constant of integers q of which ``steps q + added`` is made; ``added`` broadcasts to them, None is 0."""

    tensor: str
    steps: int = 1
    added: np.ndarray | None = None


def trace_weight(index: Index, name: str) -> Stored | None:
    """The constant of which integers are made: itself, behind a Cast, or by the nodes of half steps."""
    if (halves := trace_halves(index, name)) is not None:
        return halves
    producer = index.producer.get(name)
    if producer is not None and is_op(producer, "Cast"):
        name = producer.input[0]
    return Stored(name) if name in index.initializers else None


def trace_halves(index: Index, name: str) -> Stored | None:
    """The constant of which integers are made by the nodes of half steps; None for others."""
    nodes = []
    for op in ("Cast", "Add", "Mul", "Cast"):
        node = index.producer.get(name)
        if node is None or not is_op(node, op):
            return None
        nodes.append(node)
        name = node.input[0]
    added, steps = (constant(index, node.input[1]) for node in nodes[1:3])
    if name not in index.initializers or added is None or steps is None or steps.size != 1:
        return None
    return Stored(name, int(steps.reshape(())), added)
