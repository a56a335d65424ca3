"""Find the nodes that settings select: by name, by operator type, or as the subgraph between tensors.

A selector is, in this order of precedence:

- the name of a node;
- ``op:TYPE``: all nodes of an operator type, or of all types that a regular expression matches whole;
- ``between:A -> B``: all nodes on the paths from tensor A to tensor B, the reader of A and the producer of B
  included. Either side may name several tensors: ``between:A1, A2 -> B1, B2`` takes the paths from any of the
  first to any of the second;
- a regular expression that matches the names of nodes whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from onnx import GraphProto, ModelProto

from ..config import LayerConfig, QuantizeConfig, match_whole, nearest
from ..errors import ConfigError, first_line
from ..spec import FLOAT_BITS
from .index import Index, all_graphs, is_op, reads
from .ops import LAYERS, RECURRENT

TYPE, BETWEEN, ARROW = "op:", "between:", "->"


@dataclass(frozen=True)
class Selection:
    """Nodes that stay in float, and layer -> the settings that override the global ones for it."""

    excluded: frozenset[str] = frozenset()
    layers: tuple[tuple[str, LayerConfig], ...] = ()

    def settings(self, layer: str) -> LayerConfig:
        """What was said of a layer; where several entries select it, the last of them."""
        return dict(self.layers).get(layer, LayerConfig())


def resolve_names(model: ModelProto, config: QuantizeConfig, *, before: ModelProto | None = None) -> Selection:
    """What ``exclude`` and ``layers`` of the settings mean in this graph; ``before``: the model before preparation.

    Raises ConfigError for a selector that selects no node, with the nearest name, type or tensor, and for bits of nodes
    of which none has a constant weight.
    """
    if not (config.exclude or config.layers):
        return Selection()
    resolver = _Resolver(model.graph, None if before is None else before.graph)
    excluded: set[str] = set()
    for selector in config.exclude:
        excluded.update(resolver.select(selector, f"exclude: {selector!r}"))
    layers = []
    for selector, settings in config.layers.items():
        where = f"layers: {selector!r}"
        if settings.exclude:
            found = resolver.select(selector, where)
            excluded.update(found)
        else:
            found = resolver.select_weighted(selector, where)
        recurrent = resolver.recurrent.intersection(found)
        beside = settings.model_copy(update=_shared_with_recurrent(settings, config))
        mixed = len(recurrent) < len(found)
        layers += [(name, beside if mixed and name in recurrent else settings) for name in found]
    return Selection(frozenset(excluded), tuple(layers))


def keep_selectors(config: QuantizeConfig, model: ModelProto, *, inside: bool = False) -> QuantizeConfig:
    """The settings without the selectors that select nodes of others of the model's graphs alone.

    Those that select none at all stay, for ``resolve_names`` to refuse. inside: the graph is the body of another, so
    that these may be meant for that, and are left out. Nodes of bodies must have names.
    """
    own, *inner = all_graphs(model.graph)
    if not (config.exclude or config.layers) or not (inner or inside):
        return config
    graphs = [_Resolver(graph) for graph in (own, *inner)]

    def keep(selector: str) -> bool:
        found = [each.selects(selector) for each in graphs]
        return found[0] or not (inside or any(found))

    layers = {selector: each for selector, each in config.layers.items() if keep(selector)}
    return config.model_copy(update={"exclude": tuple(filter(keep, config.exclude)), "layers": layers})


def _shared_with_recurrent(settings: LayerConfig, config: QuantizeConfig) -> dict[str, int | None]:
    """What settings of several layers are for a recurrent one among them, which has no bits of activations."""
    bits = FLOAT_BITS if settings.activation_bits == FLOAT_BITS else None
    dynamic = config.activations == "dynamic" and bits is None
    return {"activation_bits": bits, "weight_bits": None if dynamic else settings.weight_bits}


class _Resolver:
    """Answers selectors for one prepared model; the model before preparation says what was folded."""

    def __init__(self, graph: GraphProto, before: GraphProto | None = None) -> None:
        self.nodes = list(graph.node)
        self.index = Index(graph)
        self.names = [node.name for node in self.nodes]
        constants = self.index.initializers
        weighted = (n for n in self.nodes if is_op(n, *LAYERS, *RECURRENT) and n.input[1] in constants)
        self.weighted = [node.name for node in weighted]
        self.tables = [n.name for n in self.nodes if is_op(n, "Gather") and n.input[0] in constants]
        self.recurrent = {n.name for n in self.nodes if is_op(n, *RECURRENT)}
        old = [] if before is None else list(before.node)
        self.folded_names = {node.name for node in old if node.name} - set(self.names)
        # A rewritten node keeps its name; one without gets that of its operator and output, as ``name_nodes`` gives it.
        given = {node.name or f"{node.op_type}_{next(filter(None, node.output), '')}": node.op_type for node in old}
        self.types = {node.name: {node.op_type, given.get(node.name, node.op_type)} for node in self.nodes}
        self.folded_types = set(given.values()).difference(*self.types.values())
        self.folded_tensors = {name for node in old for name in node.output} - self.index.producer.keys()

    def selects(self, selector: str) -> bool:
        """Whether a selector selects any node."""
        try:
            return bool(self.select(selector, ""))
        except ConfigError:
            return False

    def select(self, selector: str, where: str) -> list[str]:
        """Names of the nodes that a selector selects, of any kind; ``where`` begins the messages of refusals."""
        return self._select(selector, self.names, where, "node")

    def select_weighted(self, selector: str, where: str) -> list[str]:
        """Names of the nodes with a constant weight that a selector selects; tables by their own alone."""
        if selector in self.tables:
            return [selector]
        return self._select(selector, self.weighted, where, "node with a constant weight")

    def _select(self, selector: str, allowed: list[str], where: str, kind: str) -> list[str]:
        if selector in self.folded_names:
            raise ConfigError(
                f"node {selector!r}: found to be merged into another node before quantization; nodes that are left can"
                " be named; name the layer beside it"
            )
        if selector in self.names or not selector.startswith((TYPE, BETWEEN)):
            return match_names(selector, allowed, f"{where}: no {kind}")
        if selector.startswith(TYPE):
            return self._select_type(selector.removeprefix(TYPE).strip(), allowed, where, kind)
        found = self._find_between(selector.removeprefix(BETWEEN), where)
        names = [name for name in allowed if name in found]
        if not names:
            raise ConfigError(
                f"{where}: no {kind} is on the paths; they hold {', '.join(sorted(found)[:3])}; choose other tensors"
            )
        return names

    def _select_type(self, wanted: str, allowed: list[str], where: str, kind: str) -> list[str]:
        if wanted in self.folded_types:
            raise ConfigError(
                f"{where}: found no {wanted} behind preparation, which folds or replaces all of them; nodes that are"
                " left have settings; name the layers beside it"
            )
        offered = list(dict.fromkeys(op for name in allowed for op in sorted(self.types[name])))
        chosen = match_names(wanted, offered, f"{where}: no {kind}", what="type", prefix=TYPE)
        return [name for name in allowed if not self.types[name].isdisjoint(chosen)]

    def _find_between(self, text: str, where: str) -> set[str]:
        """Names of the nodes on the paths from any tensor left of the arrow to any tensor right of it."""
        left, arrow, right = text.partition(ARROW)
        if not arrow or not left.strip() or not right.strip():
            raise ConfigError(f"{where}: found no tensors around an arrow; write '{BETWEEN}A {ARROW} B'")
        sources, targets = self._split_tensors(left, where), self._split_tensors(right, where)
        made, behind = self._follow(sources)
        needed, before = self._trace(targets)
        gaps = [(source, ", ".join(targets)) for source in sources if source not in needed]
        gaps += [(", ".join(sources), target) for target in targets if target not in made]
        for start, end in gaps:
            raise ConfigError(
                f"{where}: no path leads from {start} to {end}; data flow from the left to the right; choose tensors on"
                " one path"
            )
        return behind & before

    def _split_tensors(self, text: str, where: str) -> list[str]:
        """The tensors of one side, all of the text where a tensor has it as its name."""
        known = {*self.index.producer, *self.index.inputs}
        text = text.strip()
        names = [text] if text in known else [name.strip() for name in text.split(",")]
        for name in names:
            if name in self.folded_tensors:
                raise ConfigError(
                    f"{where}: tensor {name!r}: found to be folded by preparation; tensors that are left have settings;"
                    " name the one before or behind it"
                )
            if name not in known:
                raise ConfigError(
                    f"{where}: no tensor has the name {name!r};{nearest(name, sorted(known)) or _name_some(known)}"
                )
        return names

    def _follow(self, tensors: Iterable[str]) -> tuple[set[str], set[str]]:
        """Tensors that are computed from these, and the nodes that compute them; nodes stand in topological order."""
        known, made, found = set(tensors), set[str](), set[str]()
        for node in self.nodes:
            if known.intersection(reads(node)):
                found.add(node.name)
                made.update(filter(None, node.output))
                known.update(filter(None, node.output))
        return made, found

    def _trace(self, tensors: Iterable[str]) -> tuple[set[str], set[str]]:
        """Tensors that these are computed from, and the nodes that compute them."""
        known, needed, found = set(tensors), set[str](), set[str]()
        for node in reversed(self.nodes):
            if known.intersection(node.output):
                found.add(node.name)
                needed.update(reads(node))
                known.update(reads(node))
        return needed, found


def match_names(pattern: str, names: Sequence[str], none: str, *, what: str = "name", prefix: str = "") -> list[str]:
    """The name itself, or all names that the regular expression matches whole; ``what``: what they are names of;
    ``prefix``: what stands before the name in a selector.

    Raises ConfigError where none does, which begins with ``none``.
    """
    if pattern in names:
        return [pattern]
    try:
        found = match_whole(pattern, names)
    except ValueError as error:
        raise ConfigError(f"{none} has this {what}, and it is no regular expression ({first_line(error)})") from None
    if not found:
        raise ConfigError(
            f"{none} has this {what}, and as a regular expression it matches none;"
            f"{nearest(pattern, list(names), prefix=prefix) or _name_some(names)}"
        )
    return found


def _name_some(names: Iterable[str]) -> str:
    few = list(names)[:3]
    return f" there are {', '.join(few)}..." if few else " the graph has none"
