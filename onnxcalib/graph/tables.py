"""Write embeddings: Gathers of rows of a table that is stored as integers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto, TensorProto

from ..config import FULL_BITS
from ..spec import LayerScheme, QParams, QuantSpec
from .new_nodes import NewNodes
from .packed import Packing, choose_row_block, pack_grid, write_table
from .weight_file import FileIntegers

PARTS = ("integers", "scale", "zero_point")  # of a table


@dataclass(frozen=True)
class StoredHead:
    """The weight of a layer as it is written, of which the rows of a table are the columns.

    names: of its integers, its scales, and its zero points if it has some. packing: that of MatMulNBits, of which the
    integers are stored as rows of bytes; None where integers, scales and zero points have the shapes of QParams.
    """

    names: tuple[str, ...]
    packing: Packing | None
    grid: QParams
    width: int


class Tables:
    """The tables that embeddings look up, each of which is written once. packs: as GatherBlockQuantized."""

    def __init__(self, new: NewNodes, *, packs: bool = False) -> None:
        self._new, self._packs = new, packs
        self._written: dict[str, tuple[str, ...]] = {}

    def write(
        self, layer: LayerScheme, node: NodeProto, integers: np.ndarray | FileIntegers, grid: QParams
    ) -> list[NodeProto]:
        """Look up integers and their scales and multiply them, values that share a scale on an axis of their own.

        node: the Gather, which makes the product. Returns the nodes in front of it. A DequantizeLinear in front would
        compute the whole table, and one behind would keep onnxruntime from fusing what reads it. onnxruntime 1.32 has
        no Gather of 4 bits; it folds the Cast to 8 bits when the session loads.
        """
        nodes, width = list[NodeProto](), integers.shape[1]
        if self._packs and width * grid.spec.stored_bits % 8 == 0:
            self._write_packed(layer, node, integers, grid)
            return nodes
        if layer.weight not in self._written:
            self._written[layer.weight] = self._write_table(layer.weight, integers, grid, nodes)
        return [*nodes, *self._multiply(layer, node, grid.spec, width)]

    def write_tied(self, layer: LayerScheme, node: NodeProto, head: StoredHead) -> list[NodeProto]:
        """The same in the weight of a layer, of which the table is the transposed one.

        onnxruntime folds the transposition when it loads the file. It fuses the layer's DequantizeLinear only where
        nothing else reads the integers, the scales or the zero points after that.
        """
        if head.packing is not None:
            write_table(node, head.names, head.packing.bits, head.packing.block)
            return []
        new, spec, nodes = self._new, head.grid.spec, list[NodeProto]()
        if layer.weight not in self._written:
            columns = head.grid.scale.shape[-1]
            blocks = head.width // (spec.block or head.width)
            parts = []
            for source, suffix, last in zip(head.names, PARTS, (head.width // blocks, 1, 1), strict=True):
                if suffix == PARTS[2] and spec.symmetric:
                    continue
                name = f"{layer.weight}_{suffix}"
                if suffix != PARTS[1] and spec.bits < FULL_BITS:
                    kind = TensorProto.INT8 if spec.symmetric else TensorProto.UINT8
                    nodes.append(new.node("Cast", [source], new.name(f"{name}_bytes"), name, to=kind))
                    source = nodes[-1].output[0]
                if suffix == PARTS[0] or spec.block is not None:
                    nodes.append(new.node("Transpose", [source], new.name(f"{name}_rows"), name))
                    source = nodes[-1].output[0]
                if suffix != PARTS[0] or spec.block is not None:
                    sides = (columns, last) if spec.block is None else (columns, blocks, last)
                    shape = new.constant(f"{name}_shape", np.array(sides))
                    nodes.append(new.node("Reshape", [source, shape], new.name(f"{name}_by_row"), name))
                    source = nodes[-1].output[0]
                parts.append(source)
            self._written[layer.weight] = tuple(parts)
        return [*nodes, *self._multiply(layer, node, spec, head.width)]

    def _multiply(self, layer: LayerScheme, node: NodeProto, spec: QuantSpec, width: int) -> list[NodeProto]:
        """The look-ups in the tables that are written, and the product, which ``node`` makes."""
        new, nodes, parts = self._new, list[NodeProto](), list[str]()
        blocks = spec.block is not None and width % spec.block == 0
        for source, suffix in zip(self._written[layer.weight], PARTS, strict=False):
            parts.append(new.name(f"{layer.output}_{suffix}"))
            nodes.append(new.node("Gather", [source, layer.input], parts[-1], layer.name, axis=0))
            if spec.block is not None and not blocks and suffix != PARTS[0]:
                numbers = new.shared_constant(f"blocks_{width}_{spec.block}", np.arange(width) // spec.block)
                parts[-1] = new.name(f"{layer.output}_{suffix}_by_value")
                nodes.append(new.node("Gather", [nodes[-1].output[0], numbers], parts[-1], layer.name, axis=-1))
        number = new.name(f"{layer.output}_float")
        nodes.append(new.node("Cast", parts[:1], number, layer.name, to=TensorProto.FLOAT))
        for zeros in parts[2:]:
            offset, difference = new.name(f"{layer.output}_offset"), new.name(f"{layer.output}_difference")
            nodes.append(new.node("Cast", [zeros], offset, layer.name, to=TensorProto.FLOAT))
            nodes.append(new.node("Sub", [number, offset], difference, layer.name))
            number = difference
        del node.attribute[:]
        if not blocks:
            node.op_type, node.input[:] = "Mul", [number, parts[1]]
            return nodes
        product, sizes, shape = (new.name(f"{layer.output}_{suffix}") for suffix in ("blocks", "sizes", "shape"))
        end = new.shared_constant(f"width_{width}", np.array([width]))
        nodes.append(new.node("Mul", [number, parts[1]], product, layer.name))
        nodes.append(new.node("Shape", [layer.input], sizes, layer.name))
        nodes.append(new.node("Concat", [sizes, end], shape, layer.name, axis=0))
        node.op_type, node.input[:] = "Reshape", [product, shape]
        return nodes

    def _write_packed(
        self, layer: LayerScheme, node: NodeProto, integers: np.ndarray | FileIntegers, grid: QParams
    ) -> None:
        """The same by one operator of onnxruntime's own."""
        new, (rows, width), spec = self._new, integers.shape, grid.spec
        bits, block = spec.stored_bits, spec.block or choose_row_block(width)
        if layer.weight not in self._written:
            scales, zero_points = pack_grid(grid, Packing(bits, width, rows, block))
            names = [new.packed_rows(f"{layer.weight}_quantized", integers, bits)]
            names.append(new.constant(f"{layer.weight}_scale", scales))
            if zero_points is not None:
                names.append(new.constant(f"{layer.weight}_zero_point", zero_points))
            self._written[layer.weight] = tuple(names)
        write_table(node, self._written[layer.weight], bits, block)

    def _write_table(
        self, name: str, integers: np.ndarray | FileIntegers, grid: QParams, nodes: list[NodeProto]
    ) -> tuple[str, ...]:
        """Integers (rows, width), or (rows, blocks, block), and scales (rows, 1), or (rows, blocks, 1).

        Where blocks do not divide the rows, as a head's may not, integers are (rows, width), and scales (rows, blocks).
        Zero points as the scales, if there are some.
        """
        new, spec = self._new, replace(grid.spec, symmetric=True)  # signed integers
        rows, width = integers.shape
        whole = spec.block is None or width % spec.block == 0
        shape = (rows, width) if spec.block is None or not whole else (rows, width // spec.block, spec.block)
        scale, zero_point = (each[..., None] if whole else each for each in (grid.scale, grid.zero_point))
        parts = [new.integers(f"{name}_quantized", integers, spec, shape)]
        parts.append(new.constant(f"{name}_scale", scale.astype(np.float32)))
        if grid.zero_point.any():
            parts.append(new.constant(f"{name}_zero_point", zero_point.astype(np.int8)))
        if spec.bits < FULL_BITS:
            nodes.append(new.node("Cast", parts[:1], new.name(f"{name}_int8"), name, to=TensorProto.INT8))
            parts[0] = nodes[-1].output[0]
        return tuple(parts)
