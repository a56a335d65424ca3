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

# Half steps are whole ones of a grid of half the scale, which are stored where the type has room: 3 bits have 4.
STEPS, LEAST_ROOM = 2, 3


def write_weight(new: NewNodes, name: str, params: LayerParams, *, cast: bool) -> list[NodeProto]:
    """The nodes that give the weight of this name.

    cast: integers of few bits are cast to 8 first, as kernels on integers take none. A MatMulNBits takes few bits.
    """
    grid, spec = params.grid, params.grid.spec
    if spec.half_steps and spec.bits < LEAST_ROOM:
        return _write_halves(new, name, params)
    if spec.half_steps:
        stored = new.steps(f"{name}_quantized", params.integers, (STEPS, _added(params)), spec)
        zero = store_integers(np.zeros(()), spec)
    else:
        stored = new.integers(f"{name}_quantized", params.integers, spec)
        zero = store_integers(grid.zero_point, spec)
    nodes: list[NodeProto] = []
    if spec.bits < FULL_BITS and cast:
        widened = new.name(f"{name}_int8")
        nodes.append(new.node("Cast", [stored], widened, name, to=TensorProto.INT8))
        stored, zero = widened, zero.astype(np.int8)
    return [*nodes, new.dequantize(name, stored, written_scale(grid), zero, spec)]


def _added(params: LayerParams) -> np.ndarray:
    """What half steps add to doubled integers, int32, in a shape that broadcasts to them."""
    others = [axis for axis in range(len(params.integers.shape)) if axis != params.grid.spec.axis]
    return np.expand_dims(np.rint(-STEPS * params.grid.zero_point).astype(np.int32), others)


def _write_halves(new: NewNodes, name: str, params: LayerParams) -> list[NodeProto]:
    """``2 q - 2 zero_point``, int8, at half the scale, which onnxruntime computes as it loads the file.

    All layers whose channels may have half steps have these nodes, so that files of the same bits have the same size.
    """
    grid = params.grid
    stored = new.integers(f"{name}_quantized", params.integers, grid.spec)
    wide, scaled, moved, narrow = (new.name(f"{name}_{end}") for end in ("int32", "scaled", "moved", "int8"))
    steps = new.shared_constant("steps_of_halves", np.array(STEPS, np.int32))
    return [
        new.node("Cast", [stored], wide, name, to=TensorProto.INT32),
        new.node("Mul", [wide, steps], scaled, name),
        new.node("Add", [scaled, new.constant(f"{name}_added", _added(params))], moved, name),
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
