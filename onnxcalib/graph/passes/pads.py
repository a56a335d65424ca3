"""Let convolutions and pools pad by themselves: a Pad in front of them has no integer kernel in onnxruntime."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, helper

from ..edit import remove_nodes
from ..fusion import is_nonnegative
from ..index import Index, attribute_of, constant, is_op
from .normalise import drop_identities


class Padding(NamedTuple):
    """Begins, then ends, on each of ``axes``, or on all where that is None; the value that is put there."""

    pads: np.ndarray
    fill: float
    axes: np.ndarray | None


def fold_pads(model: ModelProto) -> int:
    """Move each constant Pad into the nodes that read it, where all of these can take it; returns the count.

    A Conv takes zeros. So does an AveragePool that counts its pads or has none. A MaxPool ignores its own pads: it
    takes -inf, and zeros beside values that are never negative. The pads of a pool must be smaller than its kernel,
    and it may have neither dilations nor ceil_mode. Kernels and pads must be written out. A Pad of nothing vanishes
    whoever reads it. Nodes are told apart by name.
    """
    count = _drop_empty(model)
    names = [node.name for node in model.graph.node if is_op(node, "Pad")]
    for name in reversed(names):  # of several in a row the last goes first
        index = Index(model.graph)
        if _fold(index, model.graph.node[index.position[name]]):
            remove_nodes(model, [name])
            count += 1
    return count


def _fold(index: Index, node: NodeProto) -> bool:
    """Let the readers of a Pad take its pads over; whether they all can."""
    padding = read_padding(index, node)
    if padding is None or node.output[0] in index.outputs:
        return False
    readers = index.readers(node.output[0])
    totals = [_add_pads(index, reader, node, padding) for reader in readers]
    if not totals or None in totals:
        return False
    for reader, pads in zip(readers, totals, strict=True):
        reader.input[0] = node.input[0]
        _write(reader, "pads", pads)
        if reader.op_type == "AveragePool":
            _write(reader, "count_include_pad", 1)
    return True


def _drop_empty(model: ModelProto) -> int:
    index = Index(model.graph)
    count = 0
    for node in model.graph.node:
        pads = constant(index, node.input[1]) if is_op(node, "Pad") else None
        if pads is not None and not pads.any():
            node.op_type = "Identity"
            del node.input[1:]
            del node.attribute[:]
            count += 1
    if count:
        drop_identities(model)
    return count


def read_padding(index: Index, node: NodeProto) -> Padding | None:
    """What a Pad of constants adds; None for one that takes away or repeats values, and for other nodes."""
    if not is_op(node, "Pad") or attribute_of(node, "mode", b"constant") != b"constant":
        return None
    names = [*node.input[1:], "", ""][:3]
    pads, fill, axes = (constant(index, name) for name in names)
    known = all(value is not None for name, value in zip(names, (pads, fill, axes), strict=True) if name)
    if not known or pads is None or (pads < 0).any():
        return None
    return Padding(pads, 0.0 if fill is None else fill.item(), axes)


def _add_pads(index: Index, reader: NodeProto, pad: NodeProto, padding: Padding) -> list[int] | None:
    """The reader's pads and the Pad's together; None where they would not give the same."""
    if not is_op(reader, *TAKERS) or reader.input[0] != pad.output[0] or list(reader.input).count(pad.output[0]) > 1:
        return None
    kernel, own = (attribute_of(reader, name, None) for name in ("kernel_shape", "pads"))
    if kernel is None or own is None:
        return None
    added = np.zeros((2, len(kernel) + 2), np.int64)
    added[:, slice(None) if padding.axes is None else padding.axes] = padding.pads.reshape(2, -1)
    total = added[:, 2:] + np.reshape(own, (2, -1))
    if added[:, :2].any() or not TAKERS[reader.op_type](index, reader, pad, padding.fill):
        return None
    if reader.op_type != "Conv" and not (total < kernel).all():
        return None
    return total.reshape(-1).tolist()


def _conv_takes(index: Index, reader: NodeProto, pad: NodeProto, fill: float) -> bool:
    return fill == 0


def _average_takes(index: Index, reader: NodeProto, pad: NodeProto, fill: float) -> bool:
    counts = attribute_of(reader, "count_include_pad", 0) or not any(attribute_of(reader, "pads", []))
    return fill == 0 and bool(counts) and _is_plain(reader)


def _max_takes(index: Index, reader: NodeProto, pad: NodeProto, fill: float) -> bool:
    if any(reader.output[1:]) or not _is_plain(reader):  # its second output counts places in what is padded
        return False
    return fill == -np.inf or (fill == 0 and is_nonnegative(index, pad.input[0]))


TAKERS = {"Conv": _conv_takes, "AveragePool": _average_takes, "MaxPool": _max_takes}


def _is_plain(pool: NodeProto) -> bool:
    """Whether every window lies within the pads, and reaches at least one value if they are within the kernel."""
    return not attribute_of(pool, "ceil_mode", 0) and set(attribute_of(pool, "dilations", [1])) == {1}


def _write(node: NodeProto, name: str, value: int | list[int]) -> None:
    for attribute in [a for a in node.attribute if a.name == name]:
        node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute(name, value))
