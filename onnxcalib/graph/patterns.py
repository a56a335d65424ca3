"""Find the functions that a model writes out: normalisations, Gelu, Swish, HardSwish, Softmax as several nodes each.

Every exporter spells them in another way. They are told by what they compute: the nodes between two tensors, of which
nothing else enters them, are computed on probe values and compared with the functions that are known. The spelling
plays no part, as long as ``probe_values`` knows its operators.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from .extract import infer_types
from .fusion import HARD_ALPHA, HARD_BETA, HARD_SWISH_ALPHA
from .index import Index, constant, is_op
from .probe_values import REDUCTIONS, axes_of, compute, is_computable, variables
from .shapes import Shape, recorded_shape

GELU, SWISH, SIGMOID, HARD_SIGMOID, HARD_SWISH = "Gelu", "Swish", "Sigmoid", "HardSigmoid", "HardSwish"
LAYER_NORM, RMS_NORM, INSTANCE_NORM, SOFTMAX = (
    "LayerNormalization", "RMSNormalization", "InstanceNormalization", "Softmax",
)  # fmt: skip
NORMS = (LAYER_NORM, RMS_NORM, INSTANCE_NORM)
# Functions with one float kernel.
WHOLE = (*NORMS, SOFTMAX, GELU)
# Each function has a node of one of these kinds.
ANCHORS = ("Erf", "Tanh", "Sigmoid", "Exp", "Clip", "Min", "HardSigmoid", "Sqrt", "Pow")
# The longest spelling that was met, Gelu by Tanh in float16, has 14 nodes with its Casts.
MOST_NODES = 24
# Gelu and its form with Tanh differ by 5e-4; the constants of exporters have errors of 1e-6.
TOLERANCE = 2e-5
# Steps of 1/8 on both sides of what saturates.
POINTS = np.arange(-64, 65) / 8
# The smallest tell an epsilon of 1e-12 from none, and one that is added from one that is the least value.
PROBE_LEVELS = (1.0, 1e-3, 1e-7)
# A larger probe is not computed: one row of a vocabulary has 2**17 values.
MOST_VALUES = 2**19
# An epsilon above this is no epsilon.
MOST_EPSILON = 0.1
HARD_ALPHAS = (HARD_SWISH_ALPHA, HARD_ALPHA)
# Along each axis that scale and bias do not have; as many are close where all are.
FEW, FEW_TOLERANCE = 4, 1e3 * TOLERANCE
# How many readings are kept: the passes look at one model several times.
MOST_KNOWN = 2048


@dataclass(frozen=True, eq=False)
class Function:
    """An operator's name, and what else it needs.

    axes: over which a norm or a Softmax goes, negative. alpha: of a Swish or HardSigmoid, or the first factor of a
    HardSwish. approximate: of a Gelu. scale and bias: of a norm, along its axes, or by channel for an
    InstanceNormalization; None where a size is unknown.
    """

    kind: str
    alpha: float = 1.0
    approximate: str = "none"
    axes: tuple[int, ...] = ()
    epsilon: float = 0.0
    scale: np.ndarray | None = None
    bias: np.ndarray | None = None


UNREAD = Function("")
_KNOWN: dict[bytes, Function | None] = {}  # what fragments compute, as they are spelled


@dataclass(frozen=True, eq=False)
class Pattern:
    """The nodes that write out a function of the tensor ``source``, by name in graph order.

    closed: whether nothing but these nodes reads what lies between ``source`` and ``output``.
    """

    function: Function
    nodes: tuple[str, ...]
    source: str
    output: str
    closed: bool

    @property
    def is_whole(self) -> bool:
        """Whether no grid belongs inside: one float kernel computes it, and none of integers some of its nodes."""
        kind, alpha = self.function.kind, self.function.alpha
        return self.closed and (kind in WHOLE or (kind == SWISH and alpha != 1))

    @property
    def is_fused(self) -> bool:
        """Whether onnxruntime makes one kernel of the nodes where no other reads what lies between."""
        return self.closed and self.function.kind in (*WHOLE, SWISH)


def find_patterns(model: ModelProto) -> list[Pattern]:
    """The written-out functions of at least two nodes, none a part of another; nodes without names are skipped."""
    index = Index(model.graph)
    anchors = [node for node in model.graph.node if node.name and is_op(node, *ANCHORS) and is_computable(index, node)]
    anchors = [node for node in anchors if node.op_type != "Pow" or _is_root(index, node)]
    types = infer_types(model) if anchors else {}
    finder = _Finder(index, types)
    found: list[Pattern] = []
    taken: set[str] = set()
    for anchor in anchors:
        pattern = None if anchor.name in taken else finder.find(anchor)
        if pattern is not None and taken.isdisjoint(pattern.nodes):
            found.append(pattern)
            taken.update(pattern.nodes)
    return found


def whole_nodes(model: ModelProto) -> frozenset[str]:
    """Names of the nodes that no rewrite and no grid may part from each other."""
    return frozenset(name for pattern in find_patterns(model) if pattern.is_whole for name in pattern.nodes)


def _is_root(index: Index, node: NodeProto) -> bool:
    exponent = constant(index, node.input[1])
    return exponent is not None and exponent.size == 1 and abs(float(exponent.reshape(-1)[0])) == 0.5


class _Finder:
    def __init__(self, index: Index, types: Mapping[str, ValueInfoProto]) -> None:
        self.index, self.types = index, types
        self.spelled: dict[str, tuple[list[str], bytes]] = {}  # node -> its operands, and all else of it

    def find(self, anchor: NodeProto) -> Pattern | None:
        """The largest written-out function that the node belongs to."""
        for source in reversed(list(self._sources(anchor))):
            if not self._is_float(source):
                continue
            nodes = self._reachable(source, anchor)
            behind = {anchor.output[0]}
            for node in nodes:
                if not behind.isdisjoint(node.input):
                    behind.add(node.output[0])
            for end in reversed([node for node in nodes if node.output[0] in behind]):
                pattern = self._read(source, self._between(source, end))
                if pattern is not None:
                    return pattern
        return None

    def _is_float(self, tensor: str) -> bool:
        value = self.types.get(tensor)
        return value is not None and value.type.tensor_type.elem_type == TensorProto.FLOAT

    def _place(self, tensor: str) -> int:
        node = self.index.producer.get(tensor)
        return -1 if node is None else self.index.position.get(node.name, -1)

    def _sources(self, anchor: NodeProto) -> Iterator[str]:
        """The tensors, the nearest first, from which alone the anchor's operand is computed."""
        frontier = set(variables(self.index, anchor))
        for _ in range(MOST_NODES):
            if len(frontier) == 1:
                yield from frontier
            if not frontier:
                return
            last = max(frontier, key=self._place)
            node = self.index.producer.get(last)
            if node is None or not node.name or not is_computable(self.index, node):
                return
            frontier.remove(last)
            frontier.update(variables(self.index, node))

    def _reachable(self, source: str, anchor: NodeProto) -> list[NodeProto]:
        """Computable nodes of the source alone, in graph order, from the source to MOST_NODES of them."""
        made = {source}
        waiting = {node.name: node for node in self.index.readers(source) if node.name}
        found: list[NodeProto] = []
        while waiting and len(found) < MOST_NODES:
            name = min(waiting, key=self.index.position.__getitem__)
            node = waiting.pop(name)
            if not is_computable(self.index, node) or not made.issuperset(variables(self.index, node)):
                continue
            found.append(node)
            made.add(node.output[0])
            waiting.update({reader.name: reader for reader in self.index.readers(node.output[0]) if reader.name})
        return found if anchor in found else []

    def _between(self, source: str, end: NodeProto) -> list[NodeProto]:
        """The nodes that make the output of ``end`` from the source, in graph order."""
        names: dict[str, NodeProto] = {}
        stack = [end]
        while stack:
            node = stack.pop()
            names[node.name] = node
            makers = (self.index.producer.get(t) for t in variables(self.index, node) if t != source)
            stack.extend(maker for maker in makers if maker is not None and maker.name not in names)
        return sorted(names.values(), key=lambda node: self.index.position[node.name])

    def _read(self, source: str, nodes: list[NodeProto]) -> Pattern | None:
        if len(nodes) < 2:
            return None
        key = self._spell(source, nodes)
        read = _KNOWN.get(key, UNREAD)
        if read is UNREAD:
            reductions = [node for node in nodes if node.op_type in REDUCTIONS]
            read = self._read_reduced(source, nodes, reductions) if reductions else self._read_pointwise(source, nodes)
            if len(_KNOWN) >= MOST_KNOWN:
                _KNOWN.clear()
            _KNOWN[key] = read
        if read is None:
            return None
        names, output = tuple(node.name for node in nodes), nodes[-1].output[0]
        inner = [node.output[0] for node in nodes[:-1]]
        readers = {reader.name for tensor in inner for reader in self.index.readers(tensor)}
        closed = readers <= set(names) and not set(inner).intersection(self.index.outputs)
        return Pattern(read, names, source, output, closed)

    def _spell(self, source: str, nodes: list[NodeProto]) -> bytes:
        """All that a reading depends on: operators, attributes, constants and wiring of the nodes, and a shape."""
        places = {"": -1, source: 0}
        told = [repr(recorded_shape(self.types[source])).encode()]
        for node in nodes:
            if node.name not in self.spelled:
                self.spelled[node.name] = [*node.input], self._spell_node(node)
            operands, own = self.spelled[node.name]
            told += own, repr([places.get(name) for name in operands]).encode()
            places[node.output[0]] = len(places)
        return hashlib.blake2b(b"".join(told), digest_size=16).digest()

    def _spell_node(self, node: NodeProto) -> bytes:
        told = [repr((node.op_type, bool(node.domain))).encode()]
        told += [each.SerializeToString(deterministic=True) for each in sorted(node.attribute, key=lambda a: a.name)]
        for name in node.input:
            value = constant(self.index, name)
            if value is not None:
                told += repr((value.dtype.str, value.shape)).encode(), value.tobytes()
        return hashlib.blake2b(b"".join(told), digest_size=16).digest()

    def _constants(self, nodes: list[NodeProto]) -> list[np.ndarray]:
        """The float constants that the nodes read."""
        names = dict.fromkeys(name for node in nodes for name in node.input if name in self.index.initializers)
        values = [constant(self.index, name) for name in names]
        return [value for value in values if value is not None and value.dtype.kind == "f"]

    def _read_pointwise(self, source: str, nodes: list[NodeProto]) -> Function | None:
        constants = self._constants(nodes)
        if any(value.size != 1 for value in constants):
            return None
        given = compute(self.index, nodes, {source: POINTS}).get(nodes[-1].output[0])
        if given is None or given.shape != POINTS.shape:
            return None
        alphas = dict.fromkeys([1.0, *(float(value.reshape(-1)[0]) for value in constants)])
        return next((found for found, wanted in _pointwise(list(alphas)) if _is_close(given, wanted)), None)

    def _read_reduced(self, source: str, nodes: list[NodeProto], reductions: list[NodeProto]) -> Function | None:
        constants = self._constants(nodes)
        recorded = recorded_shape(self.types[source])
        all_axes = [tuple(axes_of(self.index, node) or ()) for node in reductions]
        ranks = (*(-min(axes) for axes in all_axes), *(value.ndim for value in constants))
        shape = (None,) * max(ranks) if recorded is None else recorded
        counted_from_front = any(axis >= 0 for axes in all_axes for axis in axes)
        if max(ranks) > len(shape) or (recorded is None and counted_from_front):
            return None
        reduced = {tuple(sorted(axis - len(shape) if axis >= 0 else axis for axis in axes)) for axes in all_axes}
        if len(reduced) != 1:
            return None
        axes = reduced.pop()
        known = _known_sizes(shape, constants)
        # A sum may be divided by the number of its summands.
        sums = any(node.op_type not in ("ReduceMean", "ReduceMax") for node in reductions)
        drawn_in_full = {
            axis for axis in range(-len(shape), 0) if _is_needed(axis, constants) or (sums and axis in axes)
        }
        x = _draw_probe(tuple(size if axis in drawn_in_full else None for axis, size in known.items()))
        given = None if x is None else compute(self.index, nodes, {source: x}).get(nodes[-1].output[0])
        if x is None or given is None or given.shape != x.shape:
            return None
        small = [float(v.reshape(-1)[0]) for v in constants if v.size == 1 and 0 <= v.min() < MOST_EPSILON]
        return _resize(_match_reduced(x, given, axes, [*dict.fromkeys(small), 0.0]), known)


def _pointwise(alphas: list[float]) -> Iterator[tuple[Function, np.ndarray]]:
    """Functions of single values, and what they are at POINTS."""
    x = POINTS
    erf = np.array([math.erf(value / math.sqrt(2)) for value in x])
    yield Function(GELU), x * (1 + erf) / 2
    tanh = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    yield Function(GELU, approximate="tanh"), x * (1 + tanh) / 2
    for alpha in alphas:
        with np.errstate(over="ignore"):
            yield Function(SWISH, alpha), x / (1 + np.exp(-alpha * x))
    yield Function(SIGMOID), 1 / (1 + np.exp(-x))
    for alpha in HARD_ALPHAS:
        gate = np.clip(alpha * x + HARD_BETA, 0, 1)
        yield Function(HARD_SIGMOID, alpha), gate
        yield Function(HARD_SWISH, alpha), x * gate


def _is_needed(axis: int, constants: list[np.ndarray]) -> bool:
    return any(value.ndim >= -axis and value.shape[axis] > 1 for value in constants)


def _known_sizes(shape: Shape, constants: list[np.ndarray]) -> dict[int, int | None]:
    """Sizes of the axes of a tensor, numbered from the last, as far as inference or the constants give them."""
    axes = range(-len(shape), 0)
    needed = {axis: max((v.shape[axis] for v in constants if v.ndim >= -axis), default=1) for axis in axes}
    return {axis: needed[axis] if needed[axis] > 1 else shape[axis] for axis in axes}


@lru_cache(maxsize=4)  # the norms of a model have one
def _draw_probe(known: tuple[int | None, ...]) -> np.ndarray | None:
    """Random values of these sizes, at PROBE_LEVELS along the first axis; not to be changed."""
    sizes = [size or number for size, number in zip(known, range(3, 3 + len(known)), strict=True)]
    if math.prod(sizes) > MOST_VALUES:
        return None
    drawn: np.ndarray = np.random.default_rng(0).normal(0.3, 1.5, sizes)
    drawn *= np.resize(PROBE_LEVELS, sizes[0]).reshape([-1] + [1] * (len(sizes) - 1))
    drawn.flags.writeable = False
    return drawn


def _resize(function: Function | None, known: Mapping[int, int | None]) -> Function | None:
    """The function with scale and bias of the known sizes; along an axis that was drawn smaller all are equal."""
    if function is None or function.scale is None or function.bias is None:
        return function
    sizes = [known[axis] for axis in ((1 - len(known),) if function.kind == INSTANCE_NORM else function.axes)]
    whole = [size for size in sizes if size]
    if len(whole) < len(sizes):
        return replace(function, scale=None, bias=None)
    scale, bias = (
        np.broadcast_to(
            value[tuple(slice(None if now == size else 1) for now, size in zip(value.shape, whole, strict=True))], whole
        )
        for value in (function.scale, function.bias)
    )
    return replace(function, scale=scale, bias=bias)


def _match_reduced(x: np.ndarray, given: np.ndarray, axes: tuple[int, ...], epsilons: list[float]) -> Function | None:
    if len(axes) == 1 and given.min() >= 0:
        powers = np.exp(x - x.max(axis=axes, keepdims=True))
        if _is_close(given, powers / powers.sum(axis=axes, keepdims=True)):
            return Function(SOFTMAX, axes=axes)
    centred = x - x.mean(axis=axes, keepdims=True)
    by_channel = axes == tuple(range(2 - x.ndim, 0)) and x.ndim > 2
    for epsilon in epsilons:
        for kind, values in ((LAYER_NORM, centred), (RMS_NORM, x)):
            with np.errstate(all="ignore"):
                normalised = values / np.sqrt((values * values).mean(axis=axes, keepdims=True) + epsilon)
            kinds = {kind: axes}
            if by_channel and kind == LAYER_NORM:
                kinds[INSTANCE_NORM] = (1 - x.ndim,)
            # A norm of tokens, (samples, tokens, channels), has one scale a channel, or none.
            for name in sorted(kinds, key=lambda name: (name == INSTANCE_NORM) == (x.ndim == 3)):
                if (fitted := _fit(given, normalised, kinds[name])) is not None:
                    scale, bias = fitted
                    return Function(name, axes=axes, epsilon=epsilon, scale=scale, bias=bias)
    return None


def _fit(
    given: np.ndarray, normalised: np.ndarray, parameters: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale and bias along the axes of parameters with which the normalised values are the given ones."""
    others = tuple(axis for axis in range(-given.ndim, 0) if axis not in parameters)
    if not np.isfinite(normalised).all() or not others:
        return None
    few = tuple(slice(FEW) if axis in others else slice(None) for axis in range(-given.ndim, 0))
    if given[few].size < given.size:  # what no scale and bias make of a few need not be fitted in whole
        scale, bias = _regress(given[few], normalised[few], others)
        if not _is_close(given[few], scale * normalised[few] + bias, FEW_TOLERANCE):
            return None
    scale, bias = _regress(given, normalised, others)
    if not _is_close(given, scale * normalised + bias):
        return None
    sizes = [given.shape[axis] for axis in parameters]
    return scale.reshape(sizes).astype(np.float32), bias.reshape(sizes).astype(np.float32)


def _regress(given: np.ndarray, normalised: np.ndarray, others: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Scale and bias of the least squared error over these axes."""
    mean, level = normalised.mean(axis=others, keepdims=True), given.mean(axis=others, keepdims=True)
    power = ((normalised - mean) ** 2).sum(axis=others, keepdims=True)
    scale = ((normalised - mean) * (given - level)).sum(axis=others, keepdims=True) / np.maximum(power, 1e-30)
    bias = level - scale * mean
    return scale, np.where(np.abs(bias) < TOLERANCE**2, 0, bias)  # what float64 leaves of none


def _is_close(given: np.ndarray, wanted: np.ndarray, tolerance: float = TOLERANCE) -> bool:
    return bool(
        np.isfinite(given).all() and np.all(np.abs(given - wanted) <= tolerance * np.maximum(1, np.abs(wanted)))
    )
