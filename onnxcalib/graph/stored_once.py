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
        zeros = {each.input[2] for each in before if is_op(each, DEQUANTIZE)}
        known, names = self._known.setdefault(layer.weight, {}), dict[str, str]()
        for tensor in self._new.written[start:]:
            if tensor.name not in zeros:
                name = known.setdefault(digest(tensor), tensor.name)
                if name != tensor.name:
                    names[tensor.name] = name
        for each in (*before, node) if names else ():
            replace_names(each.input, names)
        self._new.written[start:] = [tensor for tensor in self._new.written[start:] if tensor.name not in names]
