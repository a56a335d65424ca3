"""The sums in front of a norm, which few channels of transformers make many times as large as the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..config import WIDE_BITS
from ..spec import LayerScheme
from .index import Index, is_op
from .sharing import Sets

NORMS = ("LayerNormalization", "RMSNormalization")


def widen_sums(
    index: Index, shared: Sets, layers: Collection[LayerScheme], given: Mapping[str, int] | None
) -> dict[str, int]:
    """The bits of the sums in front of a norm, wherever no layer reads them and no bits are given to their set."""
    taken = {*(layer.input for layer in layers), *(given or {})}
    return dict.fromkeys(find_norm_sums(index, shared, taken), WIDE_BITS)


def find_norm_sums(index: Index, shared: Sets, taken: Collection[str]) -> list[str]:
    """What each Add gives of which a norm reads the result, or another of these Adds, and the constants that it adds.

    Those that are taken, or share a grid with one, are left out: a layer keeps its bits.
    """
    set_of = {t: members for members in shared for t in members}
    found: set[str] = set()
    waiting = [node.input[0] for node in index.producer.values() if is_op(node, *NORMS)]
    while waiting:
        tensor = waiting.pop()
        node = index.producer.get(tensor)
        if node is not None and tensor not in found and is_op(node, "Add"):
            found.update([tensor, *(name for name in node.input if name in index.initializers)])
            waiting.extend(node.input)
    order = (*index.initializers, *index.producer)
    return [t for t in order if t in found and set(set_of.get(t, (t,))).isdisjoint(taken)]
