"""Tensors as a file stores them: what they declare, and whether their data are that; sparse ones are made dense."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from ..errors import ModelError
from .index import all_nodes, subgraphs
from .values import PACKED_BITS, TYPES, VALUE_FIELDS, count_bytes, is_outside

# No model that fits on a machine has a tensor of more elements.
MOST_ELEMENTS = 2**40
# onnxruntime's and NumPy's operators take no more axes than 64; messages show so many of them.
MOST_AXES, MOST_SHOWN = 64, 8
# A protobuf message holds less than 2 GB, of which a tensor's other fields need some.
MOST_BYTES = 2**31 - 2**24
# Dense tensors may be so many times larger than their sparse forms, and all of them as large as FREE_BYTES in any case.
MOST_SPARSITY, FREE_BYTES = 100, 2**28
ADVICE = "export the model again"
# Those of which several values share an entry of int32_data; values of 6 bits do so in raw_data alone.
_PACKED_FIELDS = (4, 2)


def list_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Every node of the graph, of its bodies and of the model's functions."""
    for owner in (model.graph, *model.functions):
        yield from all_nodes(owner)


def list_graphs(model: ModelProto) -> Iterator[GraphProto]:
    """The graph, its bodies, and those in functions."""
    yield model.graph
    for node in list_nodes(model):
        yield from subgraphs(node)


def list_tensors(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Every stored tensor, the two parts of sparse ones included, with what errors call it."""
    for graph in list_graphs(model):
        yield from ((f"tensor {tensor.name}", tensor) for tensor in graph.initializer)
        yield from (part for sparse in graph.sparse_initializer for part in _split(sparse, f"tensor {_name(sparse)}"))
    for node in list_nodes(model):
        for attribute in node.attribute:
            for tensor in (attribute.t,) if attribute.HasField("t") else attribute.tensors:
                yield _spell_attribute(node, attribute), tensor
            if attribute.HasField("sparse_tensor"):
                yield from _split(attribute.sparse_tensor, _spell_attribute(node, attribute))


def _split(sparse: SparseTensorProto, where: str) -> Iterator[tuple[str, TensorProto]]:
    yield where, sparse.values
    yield f"{where}: indices", sparse.indices


def _name(sparse: SparseTensorProto) -> str:
    return sparse.values.name


def spell_node(node: NodeProto) -> str:
    """A node as errors name it."""
    return node.name or f"{node.op_type} of {next(filter(None, node.output), 'nothing')}"


def check_type(kind: int, where: str) -> None:
    """Raise ModelError for a number that is no element type."""
    if kind not in TYPES:
        raise ModelError(
            f"{where}: element type {kind} found; one of onnx's, {min(TYPES)} to {max(TYPES)}, is needed; {ADVICE}"
        )


def check_dims(dims: Sequence[int], where: str) -> None:
    """Raise ModelError for dimensions that no tensor can have."""
    if min(dims, default=0) < 0 or math.prod(size or 1 for size in dims) > MOST_ELEMENTS or len(dims) > MOST_AXES:
        raise ModelError(
            f"{where}: dimensions {_spell_dims(dims)} found; {MOST_AXES} of 0 or more, and {MOST_ELEMENTS:,} elements"
            f" at most, are allowed; {ADVICE}"
        )


def _spell_dims(dims: Sequence[int]) -> str:
    return str(list(dims[:MOST_SHOWN])) + f" and {len(dims) - MOST_SHOWN} more" * (len(dims) > MOST_SHOWN)


def check_declared(tensor: TensorProto, where: str) -> None:
    """Raise ModelError unless type and dimensions are possible; nothing is said of the data."""
    check_type(tensor.data_type, where)
    check_dims(tensor.dims, where)
    if count_bytes(tensor) > MOST_BYTES:
        raise ModelError(
            f"{where}: {count_bytes(tensor):,} bytes found; {MOST_BYTES:,} are allowed in one tensor; split it"
        )


def check_tensor(tensor: TensorProto, where: str) -> None:
    """Raise ModelError unless the data are what type and dimensions declare."""
    check_declared(tensor, where)
    if tensor.HasField("segment"):
        raise ModelError(f"{where}: its data are a segment; whole tensors are needed; {ADVICE}")
    kind = TensorProto.DataType.Name(tensor.data_type)
    filled = ["external data"] if is_outside(tensor) else []
    filled += [field for field in VALUE_FIELDS if len(getattr(tensor, field))]
    if len(filled) > 1:
        raise ModelError(f"{where}: values in {' and '.join(filled)} found; they stand in one of them; {ADVICE}")
    if is_outside(tensor):  # whose file has been found to hold as many bytes
        return
    if tensor.HasField("raw_data"):
        found, needed, unit = len(tensor.raw_data), count_bytes(tensor), "bytes of raw_data"
    else:
        field = helper.tensor_dtype_to_field(tensor.data_type)
        found, needed, unit = len(getattr(tensor, field)), _count_values(tensor), f"values of {field}"
    if found != needed or (kind == "STRING" and tensor.HasField("raw_data")):
        raise ModelError(
            f"{where}: {found:,} {unit} found; type {kind.lower()} and dimensions {_spell_dims(tensor.dims)} need"
            f" {_count_values(tensor) if kind == 'STRING' else needed:,}; {ADVICE}"
        )
    if kind == "STRING" and not all(map(is_text, tensor.string_data)):
        raise ModelError(f"{where}: text that is not UTF-8 found; {ADVICE}")


def _count_values(tensor: TensorProto) -> int:
    """Values of a tensor's typed field."""
    kind = TensorProto.DataType.Name(tensor.data_type)
    if PACKED_BITS.get(kind) in _PACKED_FIELDS:
        return count_bytes(tensor)
    return math.prod(map(int, tensor.dims)) * (2 if kind.startswith("COMPLEX") else 1)


def is_text(value: bytes) -> bool:
    """Whether bytes are UTF-8 text."""
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def make_dense(model: ModelProto) -> None:
    """Replace sparse initializers, and sparse values of Constant nodes, by dense ones, which mean the same.

    Their parts have been checked. Raises ModelError for indices that lead outside, and where dense ones are too large.
    """
    _refuse_growth([*_list_sparse(model)])
    for graph in list_graphs(model):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_fill(sparse, f"tensor {_name(sparse)}"))
        graph.ClearField("sparse_initializer")
    for node in list_nodes(model):
        for attribute in filter(_is_sparse, node.attribute):
            dense = _fill(attribute.sparse_tensor, _spell_attribute(node, attribute))
            attribute.CopyFrom(helper.make_attribute("value", dense))


def _list_sparse(model: ModelProto) -> Iterator[tuple[str, SparseTensorProto]]:
    """The tensors that become dense, with what errors call them."""
    for graph in list_graphs(model):
        yield from ((f"tensor {_name(sparse)}", sparse) for sparse in graph.sparse_initializer)
    for node in list_nodes(model):
        for attribute in filter(_is_sparse, node.attribute):
            yield _spell_attribute(node, attribute), attribute.sparse_tensor


def _is_sparse(attribute: AttributeProto) -> bool:
    return attribute.name == "sparse_value" and attribute.HasField("sparse_tensor")


def _spell_attribute(node: NodeProto, attribute: AttributeProto) -> str:
    return f"node {spell_node(node)}: attribute {attribute.name}"


def _refuse_growth(found: Sequence[tuple[str, SparseTensorProto]]) -> None:
    """Raise ModelError where dense tensors cannot be, or take too much memory together; names the largest one."""
    stored, sizes = 0, list[tuple[int, str]]()
    for where, sparse in found:
        dense = TensorProto(data_type=sparse.values.data_type, dims=sparse.dims)
        check_declared(dense, where)
        stored += count_bytes(sparse.values)
        sizes.append((count_bytes(dense), where))
    needed = sum(size for size, _ in sizes)
    if needed > FREE_BYTES + MOST_SPARSITY * stored:
        raise ModelError(
            f"{max(sizes)[1]}: sparse tensors of {stored:,} bytes found, which have {needed:,} with their zeros;"
            f" {MOST_SPARSITY} times as many are allowed; store them as dense ones"
        )


def _fill(sparse: SparseTensorProto, where: str) -> TensorProto:
    """The dense tensor, whose values are 0 but at the indices (values,) into all elements, or (values, axes)."""
    values, indices, dims = sparse.values, sparse.indices, tuple(sparse.dims)
    count = math.prod(values.dims)
    shapes = ((count,), (count, len(dims)))
    if (
        values.data_type == TensorProto.STRING
        or indices.data_type != TensorProto.INT64
        or len(values.dims) != 1
        or tuple(indices.dims) not in shapes
    ):
        raise ModelError(
            f"{where}: sparse values of shape {list(values.dims)} and indices of shape {list(indices.dims)} found;"
            f" numbers, and one int64 index or {len(dims)} for each of them are needed; {ADVICE}"
        )
    places = numpy_helper.to_array(indices)
    limits = np.array(dims if places.ndim == 2 else [math.prod(dims)], np.int64)
    rows = places.reshape(count, -1 if count else limits.size)
    if ((rows < 0) | (rows >= limits)).any() or len(np.unique(rows, axis=0)) < count:
        raise ModelError(
            f"{where}: sparse indices found that are given twice or lie outside of dimensions {list(dims)}; {ADVICE}"
        )
    array = np.zeros(dims, TYPES[values.data_type])
    array[tuple(rows.T) if places.ndim == 2 else np.unravel_index(places, dims)] = numpy_helper.to_array(values)
    return numpy_helper.from_array(array, values.name)
