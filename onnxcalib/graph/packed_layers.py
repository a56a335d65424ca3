"""Write a layer that reads float as MatMulNBits, whose integers an embedding may look up too."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from ..spec import QParams
from .new_nodes import NewNodes
from .packed import Packing, choose_block, pack_grid, write_product
from .tables import StoredHead
from .weight_file import FileIntegers


def write_packed(
    new: NewNodes, node: NodeProto, integers: np.ndarray | FileIntegers, grid: QParams, *, name: str, looked_up: bool
) -> tuple[list[NodeProto], StoredHead | None]:
    """Make a MatMul or Gemm a MatMulNBits of integers (inputs, outputs), without a bias.

    name: of the weight. looked_up: an embedding reads the integers too. Returns the nodes in front of it, and the
    weight as it is written, None where its rows do not end with a block, so that a table cannot share them.
    """
    inputs, outputs = integers.shape
    packing = Packing(grid.spec.stored_bits, inputs, outputs, choose_block(grid.spec, inputs))
    scales, zero_points = pack_grid(grid, packing)
    shared = looked_up and inputs % packing.block == 0
    names = [
        new.packed(f"{name}_quantized", integers, packing, flat=shared),
        new.constant(f"{name}_scale", scales),
    ]
    if zero_points is not None:
        names.append(new.constant(f"{name}_zero_point", zero_points))
    if not shared:
        write_product(node, packing, names)
        return [], None
    shape, in_blocks = new.constant(f"{name}_shape", np.array(packing.shape)), new.name(f"{name}_in_blocks")
    write_product(node, packing, [in_blocks, *names[1:]])
    in_front = new.node("Reshape", [names[0], shape], in_blocks, node.name)
    return [in_front], StoredHead(tuple(names), packing, grid, inputs)
