"""Find the values of attention's heads, whose channels can be rotated: a layer makes them, and one reads the sums.

Attention mixes tokens and leaves channels alone: ``(P V) R = P (V R)``. A rotation of the channels of each head is
folded into the columns of the layer that makes the values, and into the rows of the one behind attention. Which columns
and rows these are is found by moving the number of each column as the graph moves values, so that it does not matter
how heads are split off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from onnx import NodeProto

from .channel_norms import Operand
from .index import Index, attribute_of, constant, is_op
from .ops import SHAPE_READERS
from .residual_stream import RESHAPES, Shape

MOVERS = (*RESHAPES, "Transpose", "Identity", "Slice", "Split", "Gather")
UNBOUNDED = np.iinfo(np.int64).max


class Heads(NamedTuple):
    """The values of one product by attention's weights, with ``size`` channels a head.

    columns, rows: (heads, size), the columns that make the channels of each head, and the rows that read them. makers,
    readers: constants of the layers in front and behind. tensors: the activations that have other channels when
    rotated.
    """

    product: str
    size: int
    columns: np.ndarray
    rows: np.ndarray
    makers: tuple[Operand, ...]
    reader: Operand
    tensors: tuple[str, ...]


def find_heads(index: Index, shapes: Mapping[str, Shape]) -> list[Heads]:
    """The values of all products behind a Softmax whose heads can be rotated. shapes: those of all tensors in a run."""
    found = (_find(index, shapes, node) for node in index.nodes.values() if is_op(node, "MatMul"))
    return [heads for heads in found if heads is not None]


def _find(index: Index, shapes: Mapping[str, Shape], product: NodeProto) -> Heads | None:
    """The values of one product; None where they cannot be rotated, or it is none of attention."""
    scores = index.producer.get(product.input[0])
    if scores is None or not is_op(scores, "Softmax"):
        return None
    path = _list_movers(index, product.input[1])
    made = path[0].input[0] if path else product.input[1]
    makers, between = _find_makers(index, made)
    way, reader = _find_reader(index, product.output[0])
    tensors = (*between, *(t for node in path for t in node.output), product.output[0])
    tensors += tuple(t for node in way for t in node.output)
    if not makers or reader is None or any(t not in shapes for t in (made, *tensors)):
        return None
    numbers = _follow(index, shapes, path, made, product.input[1])
    if numbers is None or numbers.ndim < 2 or not _is_same(numbers, numbers.ndim - 2):
        return None
    columns = np.unique(numbers[..., 0, :].reshape(-1, numbers.shape[-1]), axis=0)
    given = np.broadcast_to(numbers[..., :1, :], shapes[product.output[0]])
    for node in way:
        moved = _move(index, shapes, node, given)
        if not moved:
            return None
        given = moved[node.output[0]]
    read = given.reshape(-1, given.shape[-1])
    if len(np.unique(columns)) != columns.size or not _is_same(read, 0) or len(np.unique(read[0])) != read.shape[1]:
        return None
    place = {int(column): row for row, column in enumerate(read[0])}
    if sorted(place) != sorted(columns.reshape(-1).tolist()):
        return None
    rows = np.vectorize(place.__getitem__)(columns)
    return Heads(product.name, columns.shape[1], columns, rows, makers, reader, tensors)


def _is_same(numbers: np.ndarray, axis: int) -> bool:
    """Whether values do not change along an axis."""
    return bool((numbers == np.take(numbers, [0], axis=axis)).all())


def _list_movers(index: Index, tensor: str) -> list[NodeProto]:
    """The movers on the way to a tensor from what no mover makes, the first one in front."""
    found: list[NodeProto] = []
    while (node := index.producer.get(tensor)) is not None and is_op(node, *MOVERS):
        found.append(node)
        tensor = node.input[0]
    return found[::-1]


def _find_makers(index: Index, tensor: str) -> tuple[tuple[Operand, ...], tuple[str, ...]]:
    """The constants, by columns, of the layer that makes a tensor, and what lies between it and the tensor, which too.

    None where something else reads what lies between, or the constants.
    """
    node, found, between = index.producer.get(tensor), list[Operand](), [tensor]
    if node is not None and is_op(node, "Add"):
        number = next((n for n, name in enumerate(node.input) if name in index.initializers), None)
        if number is None or len(index.initializers[node.input[number]].dims) != 1:
            return (), ()
        found.append(Operand(node.name, number, 0))
        between.append(node.input[1 - number])
        node = index.producer.get(node.input[1 - number])
    if node is None or not is_op(node, "MatMul") or any(len(index.readers(t)) != 1 for t in between[1:]):
        return (), ()
    found.append(Operand(node.name, 1, 1))
    weight = index.initializers.get(node.input[1])
    taken = [index.nodes[each.node].input[each.number] for each in found]
    wide = weight is not None and all(index.initializers[name].dims[-1] == weight.dims[-1] for name in taken)
    if weight is None or not wide or len(weight.dims) != 2 or any(len(index.readers(name)) != 1 for name in taken):
        return (), ()
    return tuple(found), tuple(between)


def _find_reader(index: Index, tensor: str) -> tuple[list[NodeProto], Operand | None]:
    """The movers behind a tensor, and the weight of the layer behind them, which alone reads the last; else None."""
    way: list[NodeProto] = []
    while tensor not in index.outputs:
        readers = [node for node in index.readers(tensor) if not is_op(node, *SHAPE_READERS)]
        if len(readers) != 1 or readers[0].input[0] != tensor:
            break
        node = readers[0]
        if is_op(node, *MOVERS) and len(node.output) == 1:
            way.append(node)
            tensor = node.output[0]
            continue
        weight = index.initializers.get(node.input[1]) if is_op(node, "MatMul") else None
        alone = weight is not None and len(weight.dims) == 2 and len(index.readers(weight.name)) == 1
        return way, Operand(node.name, 1, 0) if alone else None
    return way, None


def _follow(
    index: Index, shapes: Mapping[str, Shape], path: Sequence[NodeProto], made: str, last: str
) -> np.ndarray | None:
    """The numbers of the columns of a tensor, moved along a path to its last tensor, which a product alone reads.

    None where this is not known, or where others read the same columns.
    """
    numbers = np.broadcast_to(np.arange(shapes[made][-1], dtype=np.int32), shapes[made])
    others: list[np.ndarray] = []
    for node, following in zip(path, [*(each.input[0] for each in path[1:]), last], strict=True):
        tensor, ours = node.input[0], None
        for reader in index.readers(tensor):
            if is_op(reader, *SHAPE_READERS):
                continue
            moved = _move(index, shapes, reader, numbers) if reader.input[0] == tensor else {}
            if not moved:
                return None
            ours = moved.pop(following, ours)
            others += moved.values()
        if ours is None or tensor in index.outputs:
            return None
        numbers = ours
    alone = len(index.readers(last)) == 1 and last not in index.outputs
    return numbers if alone and not any(np.isin(each, numbers).any() for each in others) else None


def _move(index: Index, shapes: Mapping[str, Shape], node: NodeProto, values: np.ndarray) -> dict[str, np.ndarray]:
    """What a mover gives of values, by the names of its outputs; nothing of other nodes and of what is not known."""
    if not is_op(node, *MOVERS) or any(name not in shapes for name in node.output):
        return {}
    first = node.output[0]
    axis = attribute_of(node, "axis", 0)
    if is_op(node, *RESHAPES):
        return {first: values.reshape(shapes[first])}
    if is_op(node, "Transpose"):
        return {first: values.transpose(attribute_of(node, "perm", None))}
    if is_op(node, "Split"):
        ends = np.cumsum([shapes[name][axis] for name in node.output])[:-1]
        return dict(zip(node.output, np.split(values, ends, axis), strict=True))
    operands = [constant(index, name) for name in node.input[1:]]
    if any(value is None for value in operands):
        return {}
    known = [value for value in operands if value is not None]
    if is_op(node, "Gather"):
        return {first: np.take(values, known[0], axis)}
    if is_op(node, "Slice"):
        starts, ends = (each.tolist() for each in known[:2])
        axes = known[2].tolist() if len(known) > 2 else range(len(starts))
        steps = known[3].tolist() if len(known) > 3 else [1] * len(starts)
        cut = [slice(None)] * values.ndim
        for number, start, end, step in zip(axes, starts, ends, steps, strict=True):
            cut[number] = slice(start, end if end > -UNBOUNDED else None, step)
        return {first: values[tuple(cut)]}
    return {first: values}
