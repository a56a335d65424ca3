"""Find the nodes that settings name, by whole name or by regular expression."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from onnx import ModelProto

from ..config import LayerConfig, QuantizeConfig, nearest
from ..errors import ConfigError
from .index import is_op
from .ops import LAYERS


@dataclass(frozen=True)
class Selection:
    """Nodes that stay in float, and layer -> what it has other than the rest."""

    excluded: frozenset[str] = frozenset()
    layers: tuple[tuple[str, LayerConfig], ...] = ()

    def settings(self, layer: str) -> LayerConfig:
        """What was said of a layer; where several entries name it, the last of them."""
        return dict(self.layers).get(layer, LayerConfig())


def resolve_names(model: ModelProto, config: QuantizeConfig, *, before: Collection[str] = ()) -> Selection:
    """What ``exclude`` and ``layers`` of the settings mean in this graph; ``before``: nodes' names before preparation.

    Raises ConfigError for a name that no node has, with the nearest one, and for bits of a node that has no weight.
    """
    for pattern in (*config.exclude, *config.layers):
        if pattern in before and all(node.name != pattern for node in model.graph.node):
            raise ConfigError(
                f"node {pattern!r}: found to be folded into others by preparation; those that are left have settings;"
                " name the layer beside it"
            )
    names = [node.name for node in model.graph.node]
    constants = {tensor.name for tensor in model.graph.initializer}
    weighted = [node.name for node in model.graph.node if is_op(node, *LAYERS) and node.input[1] in constants]
    excluded: set[str] = set()
    for pattern in config.exclude:
        excluded.update(match_names(pattern, names, f"exclude: {pattern!r}: no node"))
    layers = []
    for pattern, settings in config.layers.items():
        allowed, kind = (names, "node") if settings.exclude else (weighted, "node with a constant weight")
        found = match_names(pattern, allowed, f"layers: {pattern!r}: no {kind}")
        if settings.exclude:
            excluded.update(found)
        layers += [(name, settings) for name in found]
    return Selection(frozenset(excluded), tuple(layers))


def match_names(pattern: str, names: Sequence[str], none: str) -> list[str]:
    """The name itself, or all names that the regular expression matches whole.

    Raises ConfigError where none does, which begins with ``none``.
    """
    if pattern in names:
        return [pattern]
    try:
        found = [name for name in names if re.fullmatch(pattern, name)]
    except re.error as error:
        raise ConfigError(f"{none} has this name, and it is no regular expression ({error})") from None
    if not found:
        raise ConfigError(
            f"{none} has this name, and as a regular expression it matches none;"
            f"{nearest(pattern, list(names)) or _name_some(names)}"
        )
    return found


def _name_some(names: Iterable[str]) -> str:
    few = list(names)[:3]
    return f" there are {', '.join(few)}..." if few else " the graph has none"
