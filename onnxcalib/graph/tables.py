"""Write embeddings: Gathers of rows of a table that is stored as integers."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto

from ..config import FULL_BITS
from ..spec import LayerScheme, QParams
from .new_nodes import NewNodes
from .weight_file import FileIntegers


class Tables:
    """The tables that embeddings look up, each of which is written once."""

    def __init__(self, new: NewNodes) -> None:
        self._new = new
        self._written: dict[str, tuple[str, str]] = {}

    def write(
        self, layer: LayerScheme, node: NodeProto, integers: np.ndarray | FileIntegers, grid: QParams
    ) -> list[NodeProto]:
        """Look up integers and their scales and multiply them, values that share a scale on an axis of their own.

        node: the Gather, which makes the product. Returns the nodes in front of it. A DequantizeLinear in front would
        compute the whole table, and one behind would keep onnxruntime from fusing what reads it. onnxruntime 1.32 has
        no Gather of 4 bits; it folds the Cast to 8 bits when the session loads.
        """
        new, nodes, width = self._new, list[NodeProto](), integers.shape[1]
        if layer.weight not in self._written:
            self._written[layer.weight] = self._write_table(layer.weight, integers, grid, nodes)
        parts = []
        for source, suffix in zip(self._written[layer.weight], ("integers", "scale"), strict=True):
            parts.append(new.name(f"{layer.output}_{suffix}"))
            nodes.append(new.node("Gather", [source, layer.input], parts[-1], layer.name, axis=0))
        number = new.name(f"{layer.output}_float")
        nodes.append(new.node("Cast", parts[:1], number, layer.name, to=TensorProto.FLOAT))
        del node.attribute[:]
        if grid.spec.block is None:
            node.op_type, node.input[:] = "Mul", [number, parts[1]]
            return nodes
        product, sizes, shape = (new.name(f"{layer.output}_{suffix}") for suffix in ("blocks", "sizes", "shape"))
        end = new.shared_constant(f"width_{width}", np.array([width]))
        nodes.append(new.node("Mul", [number, parts[1]], product, layer.name))
        nodes.append(new.node("Shape", [layer.input], sizes, layer.name))
        nodes.append(new.node("Concat", [sizes, end], shape, layer.name, axis=0))
        node.op_type, node.input[:] = "Reshape", [product, shape]
        return nodes

    def _write_table(
        self, name: str, integers: np.ndarray | FileIntegers, grid: QParams, nodes: list[NodeProto]
    ) -> tuple[str, str]:
        """Integers (rows, width), or (rows, blocks, block), and scales (rows, 1), or (rows, blocks, 1)."""
        new = self._new
        rows, width = integers.shape
        shape = (rows, width) if grid.spec.block is None else (rows, width // grid.spec.block, grid.spec.block)
        scale = new.constant(f"{name}_scale", grid.scale.astype(np.float32)[..., None])
        stored = new.integers(f"{name}_quantized", integers, grid.spec, shape)
        if grid.spec.bits == FULL_BITS:
            return stored, scale
        nodes.append(new.node("Cast", [stored], new.name(f"{name}_int8"), name, to=TensorProto.INT8))
        return nodes[-1].output[0], scale
