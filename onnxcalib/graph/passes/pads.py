"""Let convolutions and pools pad themselves, as a Pad in front of them has no integer kernel in onnxruntime."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto

from ..edit import remove_nodes, write_attributes
from ..fusion import is_nonnegative
from ..index import Index, attribute_of, constant, is_op
from .normalise import drop_identities


class Padding(NamedTuple):
    """What a Pad adds: begins, then ends, of each of ``axes``, or of all axes if that is None, and the value there."""

    pads: np.ndarray
    fill: float
    axes: np.ndarray | None


def fold_pads(model: ModelProto) -> int:
    """Move each constant Pad into the nodes that read it, if all of these can take it; returns the count.

    A Conv takes zeros, and so does an AveragePool that counts its pads or has none. A MaxPool ignores its own pads, so
    that it takes -inf, and zeros if its input is never negative. The pads of a pool must be smaller than its kernel,
    and it may have neither dilations nor ceil_mode. Kernels and pads must be written out. A Pad of no values is
    removed, whatever reads it. Each node needs a name of its own.
    """
    count = _drop_empty(model)
    names = [node.name for node in model.graph.node if is_op(node, "Pad")]
    for name in reversed(names):  # of several in a row the last goes first
        index = Index(model.graph)
        if _fold(index, index.nodes[name]):
            remove_nodes(model, [name])
            count += 1
    return count


def _fold(index: Index, node: NodeProto) -> bool:
    """Add the pads to those of all nodes that read the Pad; returns False, and changes nothing, where one cannot."""
    padding = read_padding(index, node)
    if padding is None or node.output[0] in index.outputs:
        return False
    readers = index.readers(node.output[0])
    found = [_take_pads(index, reader, node, padding) for reader in readers]
    totals = [pads for pads in found if pads is not None]
    if not totals or len(totals) < len(readers):
        return False
    for reader, pads in zip(readers, totals, strict=True):
        reader.input[0] = node.input[0]
        write_attributes(reader, {"pads": pads})
        if reader.op_type == "AveragePool":
            write_attributes(reader, {"count_include_pad": 1})
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


def add_pads(reader: NodeProto, padding: Padding) -> list[int] | None:
    """The reader's own pads and those of a Pad; None where its own are not written out or the Pad is not in space."""
    own = attribute_of(reader, "pads", None)
    if own is None:
        return None
    added = np.zeros((2, len(own) // 2 + 2), np.int64)
    added[:, slice(None) if padding.axes is None else padding.axes] = padding.pads.reshape(2, -1)
    if added[:, :2].any():
        return None
    total: list[int] = (added[:, 2:] + np.reshape(own, (2, -1))).reshape(-1).tolist()
    return total


def _take_pads(index: Index, reader: NodeProto, pad: NodeProto, padding: Padding) -> list[int] | None:
    """The pads with which the reader does what the Pad and it did; None where there are none."""
    if not is_op(reader, *TAKERS) or reader.input[0] != pad.output[0] or list(reader.input).count(pad.output[0]) > 1:
        return None
    kernel, total = attribute_of(reader, "kernel_shape", None), add_pads(reader, padding)
    if kernel is None or total is None or not TAKERS[reader.op_type](index, reader, pad, padding.fill):
        return None
    if reader.op_type != "Conv" and not np.all(np.reshape(total, (2, -1)) < kernel):
        return None
    return total


def _conv_takes(index: Index, reader: NodeProto, pad: NodeProto, fill: float) -> bool:
    return fill == 0


def _average_takes(index: Index, reader: NodeProto, pad: NodeProto, fill: float) -> bool:
    counts = attribute_of(reader, "count_include_pad", 0) or not any(attribute_of(reader, "pads", []))
    return fill == 0 and bool(counts) and _is_plain(reader)


def _max_takes(index: Index, reader: NodeProto, pad: NodeProto, fill: float) -> bool:
    if any(reader.output[1:]) or not _is_plain(reader):  # its second output has indices of the padded tensor
        return False
    return fill == -np.inf or (fill == 0 and is_nonnegative(index, pad.input[0]))


TAKERS = {"Conv": _conv_takes, "AveragePool": _average_takes, "MaxPool": _max_takes}


def _is_plain(pool: NodeProto) -> bool:
    """Whether no window leaves the padded input, and each has a value of the input if pads are smaller than kernels."""
    return not attribute_of(pool, "ceil_mode", 0) and set(attribute_of(pool, "dilations", [1])) == {1}
