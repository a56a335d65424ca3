"""Matrices as onnxruntime's own operators have them: MatMulNBits, which multiplies, and GatherBlockQuantized, a table.

Integers are unsigned, and several share a byte, the first in the lowest bits. A row holds the inputs of one output in
blocks that share a scale. onnxruntime 1.32 makes the same of DequantizeLinear and MatMul when it loads a file, and
holds both meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from ..spec import LayerScheme, QParams, QuantSpec
from .blocks_of_inputs import TWO_BIT_BLOCKS
from .edit import copy_model, write_attributes
from .index import all_nodes, attribute_of, is_op
from .ops import DEQUANTIZE, MATRIX_LAYERS

DOMAIN = "com.microsoft"
MULTIPLY, LOOK_UP = "MatMulNBits", "GatherBlockQuantized"
BLOCKS = (16, 32, 64, 128, 256)
# Of the bits that there are, the blocks for which onnxruntime has fast kernels.
FAST_BLOCKS = {2: TWO_BIT_BLOCKS, 4: BLOCKS, 8: BLOCKS}
# Activations are rounded to 8 bits, block by block. Level 0 leaves them in float: of 8 and 2 bits it has no fast kernel
# (50 times the time of level 4), and of 4 bits it takes 3.5 times as long, more than the float layer.
ACCURACY_LEVEL = 4
GROUP_INDEX, BIAS_INPUT = 4, 5  # inputs: the block of each input, and the bias


@dataclass(frozen=True)
class Packing:
    """How a matrix of ``inputs`` by ``outputs`` is stored: bits of a value, and inputs of a block."""

    bits: int
    inputs: int
    outputs: int
    block: int

    @property
    def blocks(self) -> int:
        """Of a row, the last of which may be longer than what is left of the row."""
        return -(-self.inputs // self.block)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the bytes: (outputs, blocks, bytes of a block)."""
        return self.outputs, self.blocks, self.block * self.bits // 8

    @property
    def middle(self) -> int:
        """The zero point where none is written."""
        return 1 << (self.bits - 1)

    def pack(self, integers: np.ndarray) -> np.ndarray:
        """Integers (inputs, outputs) of int8 as bytes of ``shape``; what fills up the last block stands for 0."""
        outputs, blocks, _ = self.shape
        levels = np.full((outputs, blocks * self.block), self.middle, np.uint8)
        np.add(integers.T, self.middle, out=levels[:, : self.inputs], dtype=np.int16, casting="unsafe")
        return pack_bits(levels, self.bits).reshape(self.shape)

    def unpack(self, stored: np.ndarray) -> np.ndarray:
        """The unsigned integers, (inputs, outputs)."""
        rows = unpack_bits(np.asarray(stored, np.uint8).reshape(self.outputs, -1), self.bits)
        return rows[:, : self.inputs].T

    def spread(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers of blocks, (outputs, blocks), as those of each weight, (inputs, outputs)."""
        return np.repeat(numbers, self.block, axis=1)[:, : self.inputs].T


def pack_bits(levels: np.ndarray, bits: int) -> np.ndarray:
    """Rows of unsigned integers as rows of bytes; what fills up the last byte is 0."""
    each = 8 // bits
    rows, width = levels.shape
    if width % each:
        levels = np.pad(levels, ((0, 0), (0, -width % each)))
    packed = np.zeros((rows, levels.shape[1] // each), np.uint8)
    for place in range(each):
        packed |= levels[:, place::each] << np.uint8(bits * place)
    return packed


def unpack_bits(packed: np.ndarray, bits: int) -> np.ndarray:
    """The unsigned integers of rows of bytes, all that these have room for."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    levels: np.ndarray = packed[..., None] >> shifts & np.uint8((1 << bits) - 1)
    return levels.reshape(packed.shape[0], -1)


def pack_rows(integers: np.ndarray, bits: int) -> np.ndarray:
    """Rows of integers of int8 as rows of bytes, where 0 is 2^(bits - 1)."""
    return pack_bits((integers.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8), bits)


def explain_unpacked(layer: LayerScheme, inputs: int) -> str | None:
    """Why a layer cannot be written as MatMulNBits; None where it can. inputs: of its matrix."""
    spec = layer.weight_spec
    if not layer.reads_float:
        return "it reads integers"
    if layer.op not in MATRIX_LAYERS:
        return f"{MULTIPLY} multiplies matrices, and this is a {layer.op}"
    if spec.stored_bits not in FAST_BLOCKS:
        return f"{MULTIPLY} has no kernel for {spec.bits} bits"
    block, allowed = choose_block(spec, inputs), FAST_BLOCKS[spec.stored_bits]
    if block not in allowed:
        return f"{MULTIPLY} has no fast kernel for blocks of {block} at {spec.bits} bits"
    if spec.bits == 2 and not spec.symmetric:
        return f"{MULTIPLY} has no fast kernel for zero points at 2 bits"
    return None


def list_unpacked(model: ModelProto, layers: Sequence[LayerScheme]) -> dict[str, str]:
    """The layers that stay QuantizeLinear and DequantizeLinear, each with the reason."""
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    found = {}
    for layer in layers:
        inputs = math.prod(shapes[layer.weight]) // max(shapes[layer.weight][layer.axis], 1)
        why = explain_unpacked(layer, inputs)
        if why is not None:
            found[layer.name] = why
    return found


def choose_block(spec: QuantSpec, inputs: int) -> int:
    """The block of the grid; where a column has one scale, the block with which it takes the fewest bytes."""
    if spec.block is not None:
        return spec.block
    bits = spec.stored_bits

    def count(block: int) -> int:
        return -(-inputs // block) * (block * bits // 8 + 4)

    return min(sorted(FAST_BLOCKS[bits], reverse=True), key=count)


def choose_row_block(width: int) -> int:
    """The block of a table that holds a whole row."""
    return max(BLOCKS[0], 1 << (width - 1).bit_length())


def pack_grid(grid: QParams, packing: Packing) -> tuple[np.ndarray, np.ndarray | None]:
    """Scales (outputs, blocks) of a matrix whose outputs are the channels, and packed zero points if it needs some."""
    spec, shape = grid.spec, packing.shape[:2]

    def by_block(numbers: np.ndarray) -> np.ndarray:
        """(outputs, blocks); without blocks of the grid each column has one number."""
        rows = np.asarray(numbers).reshape(-1, 1) if spec.block is None else numbers.T if spec.axis else numbers
        return np.ascontiguousarray(np.broadcast_to(rows, shape))

    zeros = by_block(grid.zero_point) + packing.middle
    levels = None if np.all(zeros == packing.middle) else pack_bits(zeros.astype(np.uint8), packing.bits)
    return by_block(grid.scale).astype(np.float32), levels


def write_product(node: NodeProto, packing: Packing, names: Sequence[str]) -> None:
    """Make a MatMul or Gemm a MatMulNBits. names: of the tensors of the integers, the scales and the zero points."""
    node.op_type, node.domain = MULTIPLY, DOMAIN
    del node.attribute[:]
    attributes = {
        "K": packing.inputs,
        "N": packing.outputs,
        "accuracy_level": ACCURACY_LEVEL,
        "bits": packing.bits,
        "block_size": packing.block,
    }
    write_attributes(node, attributes)
    node.input[1:] = names


def add_bias(node: NodeProto, bias: str) -> None:
    """Give a MatMulNBits this bias."""
    node.input.extend([*[""] * (BIAS_INPUT - len(node.input)), bias])


def write_table(node: NodeProto, names: Sequence[str], bits: int, block: int) -> None:
    """Make a Gather of rows a GatherBlockQuantized. names: of the table, the scales and perhaps the zero points."""
    stored, *grid = names
    node.op_type, node.domain = LOOK_UP, DOMAIN
    del node.attribute[:]
    write_attributes(node, {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1})
    node.input[:] = [stored, node.input[1], *grid]


def import_domain(model: ModelProto) -> None:
    """Let a model that has operators of onnxruntime's own say so."""
    if not any(entry.domain == DOMAIN for entry in model.opset_import):
        if any(node.domain == DOMAIN for node in model.graph.node):
            model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def spell_shapes(light: ModelProto) -> None:
    """Write each MatMulNBits of a copy without weights as a MatMul by an input, as onnx knows what shape that has."""
    for node in light.graph.node:
        sizes = [attribute_of(node, name, 0) for name in ("K", "N")] if node.op_type == MULTIPLY else []
        if all(sizes) and sizes and node.domain == DOMAIN:
            name = f"{node.name}_{MULTIPLY}_weight"
            light.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes))
            node.op_type, node.domain, node.input[1:] = "MatMul", "", [name]
            del node.attribute[:]


def with_float_activations(model: ModelProto) -> ModelProto:
    """The model itself where no MatMulNBits rounds its activations; otherwise a copy in which these stay float."""
    if not any(map(_rounds, all_nodes(model.graph))):
        return model
    copy = copy_model(model)
    for node in filter(_rounds, all_nodes(copy.graph)):
        write_attributes(node, {"accuracy_level": 0})
    return copy


def multiplies_packed(model: ModelProto) -> bool:
    """Whether onnxruntime runs layers of the model as MatMulNBits, which rounds activations where it packs weights."""
    nodes = list(all_nodes(model.graph))
    dequantized = {node.output[0] for node in nodes if is_op(node, DEQUANTIZE)}
    return any(
        is_packed(node)
        or (is_op(node, *MATRIX_LAYERS) and node.input[1] in dequantized and node.input[0] not in dequantized)
        for node in nodes
    )


def _rounds(node: NodeProto) -> bool:
    return is_packed(node) and attribute_of(node, "accuracy_level", 0) == ACCURACY_LEVEL


def is_packed(node: NodeProto) -> bool:
    """Whether this is a MatMulNBits of onnxruntime's."""
    return bool(node.domain == DOMAIN and node.op_type == MULTIPLY)


def read_packing(node: NodeProto) -> Packing | None:
    """That of a MatMulNBits; None where its attributes are none of such an operator."""
    bits, block, inputs, outputs = (attribute_of(node, name, 0) for name in ("bits", "block_size", "K", "N"))
    usable = bits in FAST_BLOCKS and block >= BLOCKS[0] and not block & (block - 1)
    return Packing(bits, inputs, outputs, block) if usable and inputs > 0 and outputs > 0 else None


def read_zero_points(packing: Packing, stored: np.ndarray | None, *, given: bool) -> np.ndarray | None:
    """Those of each weight, (inputs, outputs), or one for all; None where they are computed, or of another shape.

    stored: packed in bytes, or a float each. given: whether the operator has some.
    """
    if not given:
        return np.array(packing.middle, np.uint8)
    if stored is None or stored.size % packing.outputs:
        return None
    rows = stored.reshape(packing.outputs, -1)
    rows = unpack_bits(rows, packing.bits) if stored.dtype == np.uint8 else rows
    return packing.spread(rows[:, : packing.blocks]) if rows.shape[1] >= packing.blocks else None
