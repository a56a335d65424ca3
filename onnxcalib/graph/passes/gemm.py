"""Write linear layers as a Gemm of alpha = beta = 1 that adds the bias: ``y = x W + b``."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto

from ..edit import remove_nodes, write_attributes, write_operand
from ..finite import is_weight
from ..index import Index, attribute_of, constant, is_op, known_constant
from ..shapes import infer_shapes
from ..values import TYPES
from ..writer import Writer


def normalise_gemm(model: ModelProto) -> int:
    """Fold alpha and beta of Gemm into its constants, and rewrite MatMul followed by Add as Gemm; returns the count.

    ``alpha A B + beta C = A (alpha B) + (beta C)`` where B and C are constant; otherwise the factor stays. A constant C
    of one value, or of one row, becomes one value a column. A MatMul becomes a Gemm if its left operand has two
    dimensions, the right one is a constant matrix, and an Add of a constant with one value, or one a column, alone
    reads it. The Gemm has the MatMul's name and the Add's output. Each node needs a name of its own.
    """
    index = Index(model.graph)
    gemms = [node for node in model.graph.node if is_op(node, "Gemm")]
    count = sum(_fold_factors(model, index, node) + _flatten_bias(model, index, node) for node in gemms)
    matmuls = [node for node in model.graph.node if is_op(node, "MatMul")]
    shapes = infer_shapes(model) if matmuls else {}
    replaced = []
    for node in matmuls:
        add = _bias_add(index, node) if len(shapes.get(node.input[0], ())) == 2 else None
        if add is None:
            continue
        bias = next(name for name in add.input if name != node.output[0])
        columns = index.initializers[node.input[1]].dims[1]
        value = known_constant(index, bias)
        node.op_type = "Gemm"
        if value.shape == (columns,):
            node.input.append(bias)
        else:
            write_operand(model.graph, index, node, 2, np.broadcast_to(value.reshape(-1), (columns,)))
        node.output[0] = add.output[0]
        replaced.append(add.name)
    remove_nodes(model, replaced)
    return count + len(replaced)


def spread_biases(model: ModelProto) -> int:
    """Give the constant row that is added to a MatMul as many axes as the product has; returns how many Adds changed.

    onnxruntime turns a MatMul of static shape with more than two axes, and the Add of a row, into a float Gemm between
    two Reshapes before it looks for integer kernels. A ViT takes twice the time then. It leaves an Add of more axes.
    The product becomes the Add's first operand, as the fusion with a residual and a LayerNormalization knows no other.
    """
    index = Index(model.graph)
    matmuls = [node for node in model.graph.node if is_op(node, "MatMul")]
    shapes = infer_shapes(model) if matmuls else {}
    count = 0
    for node in matmuls:
        shape, add = shapes.get(node.input[0], ()), _bias_add(index, node)
        if add is None:
            continue
        swapped = add.input[1] == node.output[0]
        if swapped:
            add.input[:] = reversed(add.input)
        spread = len(shape) > 2 and None not in shape
        if spread:
            value = known_constant(index, add.input[1])
            write_operand(model.graph, index, add, 1, value.reshape([1] * (len(shape) - 1) + [-1]))
        count += spread or swapped
    return count


def flatten_products(model: ModelProto) -> int:
    """Write a MatMul of more than two axes, and the Add of its bias, as a Gemm between Reshapes; returns the count.

    The shape of what it reads must be known. The Gemm has the MatMul's name; products of one tensor share a Reshape.
    """
    writer, shapes = Writer(model), infer_shapes(model)
    rows: dict[str, str] = {}
    replaced: dict[str, str] = {}  # name of the Add -> its MatMul's output
    for node in model.graph.node:
        shape = shapes.get(node.input[0], ()) if is_op(node, "MatMul") else ()
        add = _bias_add(writer.index, node) if len(shape) > 2 and None not in shape else None
        if node.name in replaced:
            continue
        if add is None:
            writer.keep(node)
            continue
        source, weight = node.input
        columns = writer.index.initializers[weight].dims[1]
        bias = next(name for name in add.input if name != node.output[0])
        value = known_constant(writer.index, bias)
        if value.shape != (columns,):
            bias = writer.constant(f"{bias}_row_{columns}", np.broadcast_to(value.reshape(-1), (columns,)))
        if source not in rows:
            flat = writer.constant(f"rows_{shape[-1]}", np.array([-1, shape[-1]], np.int64))
            rows[source] = writer.add(node, "Reshape", source, flat)
        whole = writer.constant(f"whole_{shape[:-1]}_{columns}", np.array([*shape[:-1], columns], np.int64))
        product = writer.add(node, "Gemm", rows[source], weight, bias, main=True)
        writer.add(add, "Reshape", product, whole)
        writer.end(add.output[0])
        replaced[add.name] = node.output[0]
    return writer.finish()


def _fold_factors(model: ModelProto, index: Index, node: NodeProto) -> int:
    count = 0
    for name, number in (("alpha", 1), ("beta", 2)):
        factor = attribute_of(node, name, 1.0)
        if factor != 1.0 and number < len(node.input) and node.input[number]:
            value = constant(index, node.input[number])
            if value is None:
                continue
            write_operand(model.graph, index, node, number, (value.astype(np.float64) * factor).astype(value.dtype))
            count += 1
        write_attributes(node, {}, drop=(name,))
    return count


def _flatten_bias(model: ModelProto, index: Index, node: NodeProto) -> int:
    weight = index.initializers.get(node.input[1])
    bias = constant(index, node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if weight is None or bias is None:
        return 0
    columns = weight.dims[0 if attribute_of(node, "transB", 0) else 1]
    if bias.shape == (columns,) or bias.size not in (1, columns) or bias.shape[:-1] not in ((), (1,)):
        return 0
    write_operand(model.graph, index, node, 2, np.broadcast_to(bias.reshape(-1), (columns,)))
    return 1


def _bias_add(index: Index, node: NodeProto) -> NodeProto | None:
    """The Add of a constant with one value, or one a column, that alone reads a MatMul by a constant float matrix."""
    weight = index.initializers.get(node.input[1])
    readers = index.readers(node.output[0])
    if weight is None or len(weight.dims) != 2 or node.input[0] in index.initializers:
        return None
    if TYPES[weight.data_type].kind != "f":
        return None
    if node.output[0] in index.outputs or len(readers) != 1 or not is_op(readers[0], "Add"):
        return None
    if list(readers[0].input).count(node.output[0]) != 1:
        return None
    bias = constant(index, next(name for name in readers[0].input if name != node.output[0]))
    # With more dimensions, or more than one row, the product would be broadcast.
    fits = (
        bias is not None
        and is_weight(bias)
        and bias.ndim <= 2
        and bias.size in (1, weight.dims[1])
        and bias.shape[:-1] in ((), (1,))
    )
    return readers[0] if fits else None
