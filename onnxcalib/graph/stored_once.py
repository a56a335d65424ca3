"""Integers and scales that several layers of one weight read, which a file has once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from onnx import NodeProto

from ..spec import LayerScheme
from .bodies import digest
from .edit import replace_names
from .index import is_op
from .new_nodes import NewNodes
from .ops import DEQUANTIZE
from .packed import MULTIPLY
from .weight_readers import WeightReaders


class StoredOnce:
    """Drops what a layer has written where an earlier layer of the same weight wrote the same."""

    def __init__(self, new: NewNodes, readers: WeightReaders, tied: Collection[str | None]) -> None:
        """tied: layers whose integers a table reads too, which stay as they are written."""
        self._new, self._readers, self._tied = new, readers, tied
        self._known: dict[str, dict[str, str]] = {}

    @contextmanager
    def writing(self, layer: LayerScheme, node: NodeProto, before: Sequence[NodeProto]) -> Iterator[None]:
        """Within, the layer is written: ``node``, and the nodes in front of it, which ``before`` has in the end.

        Each DequantizeLinear keeps a zero point of its own: see ``emit``.
        """
        start = len(self._new.written)
        yield
        if layer.name in self._tied or not self._readers.has(layer.name):
            return
        # Not the bias, which is the layer's own: a placeholder of zeros would be stored once, and the real one is not.
        read = set(node.input[1:4] if node.op_type == MULTIPLY else node.input[1:2])
        for each in reversed(before):
            if each.output[0] in read:
                read.update(each.input[:2] if is_op(each, DEQUANTIZE) else each.input)
        known, names = self._known.setdefault(layer.weight, {}), dict[str, str]()
        for tensor in self._new.written[start:]:
            if tensor.name in read:
                name = known.setdefault(digest(tensor), tensor.name)
                if name != tensor.name:
                    names[tensor.name] = name
        for each in (*before, node) if names else ():
            replace_names(each.input, names)
        self._new.written[start:] = [tensor for tensor in self._new.written[start:] if tensor.name not in names]
