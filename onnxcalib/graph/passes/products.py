"""Write products by a constant as layers: one on the left, a stack of matrices, a vector, a Gemm that transposes.

A layer multiplies its input by one constant matrix from the right. With the constant on the left, ``W X`` is a
convolution of kernel 1 over the columns of X, and with a stack of E matrices one of E groups. Its integer kernel has a
scale for each output channel of each matrix, and was 2.1 to 5.9 times as fast as the float MatMul from 128 by 256 on,
where an int8 left operand, or a stack with a scale a column, stays float (onnxruntime 1.32).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto

from ..edit import drop_stale_shapes
from ..index import attribute_of, constant, is_op
from ..shapes import Shape, infer_shapes
from ..writer import Writer

ROWS, COLUMNS = -2, -1


def products_as_layers(model: ModelProto, keep: Collection[str] = ()) -> list[str]:
    """Rewrite MatMul and Gemm by a constant that is not one matrix on the right; returns the names of the layers.

    Each layer has its node's name. Nodes of the names in ``keep`` stay as they are. An outer product, over an axis of
    one element, stays. So does a product whose input has an unknown rank, or a stack that is neither as high as the
    input's nor read with one input for all.
    """
    nodes = [node for node in model.graph.node if is_op(node, "MatMul", "Gemm")]
    shapes = infer_shapes(model) if nodes else {}
    writer, absorbed, made = Writer(model), set[str](), list[str]()
    for node in model.graph.node:
        if node.name in absorbed:
            continue
        wanted = node.name not in keep
        if wanted and is_op(node, "Gemm") and _write_gemm(writer, node):
            made.append(node.name)
            continue
        if wanted and is_op(node, "MatMul") and (product := _read_matmul(writer, node, shapes)) is not None:
            if add := product.find_bias():
                absorbed.add(add.name)
            if product.write():
                made.append(node.name)
                continue
            absorbed.discard(add.name if add else "")
        writer.keep(node)
    if writer.finish():
        drop_stale_shapes(model.graph)
    return made


def _read_matmul(writer: Writer, node: NodeProto, shapes: dict[str, Shape]) -> _Product | None:
    """The product, if exactly one operand is a constant, of a form that is no layer's yet."""
    if _is_matrix(writer, node.input[1]) and node.input[0] not in writer.index.initializers:  # a layer, as most are
        return None
    left, right = (_weight(writer, name) for name in node.input)
    if (left is None) == (right is None):
        return None
    from_left = left is not None
    weight = left if left is not None else right
    assert weight is not None
    shape = shapes.get(node.input[from_left])
    inner = weight.shape[COLUMNS if from_left or weight.ndim == 1 else ROWS]
    if shape is None or len(shape) < 2 or 0 in weight.shape or inner == 1 or (weight.ndim == 2 and not from_left):
        return None
    return _Product(writer, node, weight, shape, from_left)


def _is_matrix(writer: Writer, name: str) -> bool:
    tensor = writer.index.initializers.get(name)
    return tensor is not None and len(tensor.dims) == 2


def _weight(writer: Writer, name: str) -> np.ndarray | None:
    value = constant(writer.index, name)
    return value if value is not None and value.dtype == np.float32 and value.ndim else None


class _Product:
    """A MatMul by a constant as ``W X`` or ``X W``, in which ``weight`` (E, M, K) makes M outputs of K inputs.

    bias: a value for each output, (E * M,), or None. Vectors are matrices of one output.
    """

    def __init__(self, writer: Writer, node: NodeProto, weight: np.ndarray, shape: Shape, from_left: bool) -> None:
        self.writer, self.node, self.shape, self.from_left = writer, node, shape, from_left
        self.is_vector = weight.ndim == 1
        self.source, self.stored = node.input[from_left], node.input[not from_left]
        if self.is_vector:
            weight = weight[None]
        elif not from_left:
            weight = np.swapaxes(weight, ROWS, COLUMNS)
        self.weight = np.ascontiguousarray(weight).reshape(-1, *weight.shape[-2:])
        self.lead = weight.shape[:-2]
        self.bias: np.ndarray | None = None
        self.output = node.output[0]

    def find_bias(self) -> NodeProto | None:
        """Take the Add of one value for each output, which alone reads the product, as the bias."""
        index, made = self.writer.index, self.node.output[0]
        readers = index.readers(made)
        if self.is_vector or made in index.outputs or len(readers) != 1 or not is_op(readers[0], "Add"):
            return None
        other = [name for name in readers[0].input if name != made]
        value = constant(index, other[0]) if len(other) == 1 else None
        count, outputs, _ = self.weight.shape
        form = (count, outputs, 1) if self.from_left else (count, 1, outputs)
        if value is None or value.dtype != np.float32 or value.ndim > max(len(self.lead) + 2, len(self.shape)):
            return None
        value = value.reshape(value.shape[max(value.ndim - 3, 0) :]) if set(value.shape[:-3]) <= {1} else value
        try:
            self.bias = np.ascontiguousarray(np.broadcast_to(value, form)).reshape(-1)
        except ValueError:
            return None
        self.output = readers[0].output[0]
        return readers[0]

    def write(self) -> bool:
        """Write the layer and what stands around it; False where it has no form as one."""
        count, stack = len(self.weight), self.shape[-3] if len(self.shape) > 2 else 1
        if set(self.lead[:-1]) - {1} or len(self.lead) > max(1, len(self.shape) - 2):
            made = None
        elif count == 1 and len(self.lead) <= len(self.shape) - 2:
            made = self._write_single()
        elif len(self.shape) <= 4 and stack == 1:
            made = self._write_shared()
        elif len(self.shape) in (3, 4) and stack == count:
            made = self._write_stack()
        else:
            made = None
        if made is None:
            return False
        if self.is_vector:
            axis = ROWS if self.from_left else COLUMNS
            self._add("Squeeze", made, self._numbers([axis]))
        self.writer.end(self.output)
        return True

    def _write_single(self) -> str:
        """One matrix: a MatMul from the right, or a Conv from the left where the input has the axes of one."""
        if not self.from_left:
            return self._multiply(self.source)
        if len(self.shape) == 2:
            lifted = self._add("Unsqueeze", self.source, self._numbers([0]))
            return self._add("Squeeze", self._convolve(lifted), self._numbers([0]))
        if len(self.shape) == 3:
            return self._convolve(self.source)
        return self._swap(self._multiply(self._swap(self.source)))

    def _write_shared(self) -> str:
        """All matrices of the stack multiply one input: they are one matrix of E * M outputs, which are then split."""
        count, outputs, _ = self.weight.shape
        rank = len(self.shape)
        source = self.source if rank < 4 else self._add("Squeeze", self.source, self._numbers([1]))
        lead = [0] if rank == 4 else []
        if self.from_left:
            if rank == 2:
                source = self._add("Unsqueeze", source, self._numbers([0]))
            return self._add("Reshape", self._convolve(source, groups=1), self._numbers([*lead, count, outputs, -1]))
        made = self._add("Reshape", self._multiply(source), self._numbers([*(lead or []), -1, count, outputs]))
        return self._add("Transpose", made, perm=[*range(len(lead)), *(axis + len(lead) for axis in (1, 0, 2))])

    def _write_stack(self) -> str:
        """Each matrix of the stack multiplies an input of its own: a convolution of E groups."""
        count, outputs, inputs = self.weight.shape
        first, lead = (1, []) if len(self.shape) == 3 else (0, [0])
        source, flat = self.source, not self.from_left and self.shape[ROWS] == 1
        if not self.from_left and not flat:
            source = self._swap(source)
        source = self._add("Reshape", source, self._numbers([first, count * inputs, 1 if flat else -1]))
        sizes = [*lead, count, *((1, outputs) if flat else (outputs, -1))]
        made = self._add("Reshape", self._convolve(source, groups=count), self._numbers(sizes))
        return made if self.from_left or flat else self._swap(made)

    def _multiply(self, source: str) -> str:
        matrix = self.weight.reshape(-1, self.weight.shape[-1]).T
        weight = self.writer.constant(f"{self.stored}_matrix", np.ascontiguousarray(matrix))
        made = self._add("MatMul", source, weight, main=True)
        return made if self.bias is None else self._add("Add", made, self._bias())

    def _convolve(self, source: str, groups: int = 1) -> str:
        kernels = self.weight.reshape(-1, self.weight.shape[-1], 1)
        inputs = [source, self.writer.constant(f"{self.stored}_kernels", kernels)]
        return self._add("Conv", *inputs, *([] if self.bias is None else [self._bias()]), main=True, group=groups)

    def _bias(self) -> str:
        assert self.bias is not None
        return self.writer.constant(f"{self.node.name}_bias", self.bias)

    def _swap(self, source: str) -> str:
        axes = list(range(len(self.shape)))
        axes[ROWS], axes[COLUMNS] = axes[COLUMNS], axes[ROWS]
        return self._add("Transpose", source, perm=axes)

    def _numbers(self, values: list[int]) -> str:
        return self.writer.constant(f"numbers_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def _add(self, op: str, *inputs: str, main: bool = False, **attributes: Any) -> str:
        return self.writer.add(self.node, op, *inputs, main=main, **attributes)


def _write_gemm(writer: Writer, node: NodeProto) -> bool:
    """``A' B' + C`` with a constant A as the transpose of ``B'^T A'^T + C^T``; a transposed input by a Transpose."""
    left, right = (_weight(writer, name) for name in node.input[:2])
    attributes = {name: attribute_of(node, name, default) for name, default in (("alpha", 1.0), ("beta", 1.0))}
    transposed = [bool(attribute_of(node, name, 0)) for name in ("transA", "transB")]
    if right is not None and left is None and transposed[0]:
        source = writer.add(node, "Transpose", node.input[0], perm=[1, 0])
        inputs = [source, *node.input[1:]]
        writer.add(node, "Gemm", *inputs, main=True, transB=int(transposed[1]), **attributes)
        writer.end(node.output[0])
        return True
    if left is None or right is not None or left.ndim != 2:
        return False
    matrix = (left.T if transposed[0] else left) * np.float32(attributes["alpha"])
    if matrix.shape[1] == 1 or 0 in matrix.shape:
        return False
    offset = node.input[2] if len(node.input) > 2 else ""
    value = constant(writer.index, offset) if offset else None
    if offset and (value is None or value.dtype != np.float32):
        return False
    rows = value is not None and value.shape == (len(matrix), 1)
    source = node.input[1] if transposed[1] else writer.add(node, "Transpose", node.input[1], perm=[1, 0])
    weight = writer.constant(f"{node.name}_{node.input[0]}_matrix", np.ascontiguousarray(matrix))
    added = [] if value is None else [writer.constant(f"{node.name}_offset", _offset(value, attributes["beta"], rows))]
    made = writer.add(node, "Gemm", source, weight, *(added if rows else []), main=True, transB=1)
    made = writer.add(node, "Transpose", made, perm=[1, 0])
    if added and not rows:
        writer.add(node, "Add", made, *added)
    writer.end(node.output[0])
    return True


def _offset(value: np.ndarray, beta: float, rows: bool) -> np.ndarray:
    value = value * np.float32(beta)
    return value.reshape(-1) if rows else value
