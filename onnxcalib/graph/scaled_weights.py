"""Weights alone as integers times scales: a Cast and a Mul, which onnxruntime computes once, when it loads the file.

It computes a DequantizeLinear of a constant on every run, and then its kernels find no constant that they could bring
into the order they need: a convolution on float activations takes a third more time, and one step of an LSTM of 128
values twice as long, or 20 times with scales of blocks.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto

from ..spec import QParams
from .index import Index, attribute_of, constant, is_op
from .new_nodes import NewNodes
from .weight_file import FileIntegers

INTEGERS = (TensorProto.INT8, TensorProto.INT4, TensorProto.INT2)


def write_scaled(
    new: NewNodes, prefix: str, output: str, integers: np.ndarray | FileIntegers, grid: QParams
) -> list[NodeProto]:
    """The nodes that make ``output`` of integers; their new constants begin with ``prefix``.

    grid: without zero points. Its scales have the channel axis of ``grid.spec`` alone; or, of weights (D, C, K), they
    are (D, C), or (D, C, N) where blocks of K share one.
    """
    spec, rank = grid.spec, len(integers.shape)
    scale, nodes = grid.scale.astype(np.float32), list[NodeProto]()
    if spec.block is None:
        sides = [-1 if axis == spec.axis else 1 for axis in range(rank)] if scale.ndim < 2 else [*scale.shape, 1]
        source = new.constant(f"{prefix}_scale", scale.reshape(sides))
    else:
        numbers = (np.arange(integers.shape[-1]) // spec.block).astype(np.int32)
        blocks = new.shared_constant(f"blocks_of_{spec.block}_in_{len(numbers)}", numbers)
        source = new.name(f"{prefix}_scales")
        nodes.append(new.node("Gather", [new.constant(f"{prefix}_scale", scale), blocks], source, prefix, axis=2))
    stored, factor = new.integers(f"{prefix}_quantized", integers, spec), new.name(f"{prefix}_float")
    nodes.append(new.node("Cast", [stored], factor, prefix, to=TensorProto.FLOAT))
    return [*nodes, new.node("Mul", [factor, source], output, prefix)]


def find_stored(index: Index, name: str) -> TensorProto | None:
    """The integers of a weight of this name that ``write_scaled`` wrote."""
    product = index.producer.get(name)
    cast = index.producer.get(product.input[0]) if product is not None and is_op(product, "Mul") else None
    tensor = index.initializers.get(cast.input[0]) if cast is not None and is_op(cast, "Cast") else None
    return tensor if tensor is not None and tensor.data_type in INTEGERS else None


def find_scale(index: Index, name: str) -> np.ndarray | None:
    """The scale of the same weight, which broadcasts to its integers; None where it is no constant."""
    source = index.producer[name].input[1]
    gather = index.producer.get(source)
    if gather is None:
        return constant(index, source)
    own, blocks = (constant(index, each) for each in gather.input[:2])
    along = is_op(gather, "Gather") and attribute_of(gather, "axis", 0) == 2
    return own.take(blocks, 2) if along and own is not None and blocks is not None and own.ndim == 3 else None
