"""Solve the layers of a block one after the other, each on the input that the quantized layers before it give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from onnx import ModelProto, ValueInfoProto

from ..config import QuantizeConfig
from ..data import CalibrationSet
from ..graph.emit import LayerParams, emit_qdq
from ..graph.extract import extract, needed_nodes
from ..graph.index import Index, constant
from ..graph.layout import from_rows, to_rows, window_of
from ..numeric.gram import MomentSum, Moments, Window, flatten_rows, pick_targets, sample_columns, unfold
from ..numeric.rounding import snap
from ..numeric.solve import Solution, solve_layer
from ..runtime.session import Session
from ..runtime.store import Store
from ..spec import Block, LayerPlan, QParams, QuantPlan

# Columns seen per unknown of a row: neighbouring places are much alike, and more did not change a decimal.
COLUMNS_PER_INPUT = 128
LEAST_COLUMNS = 2**15
# Beyond so many inputs a channel the Gram matrix outgrows memory and time: such a layer is rounded, then learned.
MOST_INPUTS = 4608
# Bytes of unfolded input at once.
UNFOLD_BYTES = 64 * 2**20
# int32 bias: the largest |bias| / (scale_x * scale_w) that a layer may have, a quarter of the type's range.
BIAS_LEVELS = 2.0**29


@dataclass
class Progress:
    """What the walk through the blocks knows so far; grids and layers grow and settle as it goes."""

    model: ModelProto
    types: dict[str, ValueInfoProto]
    plan: QuantPlan
    config: QuantizeConfig
    store: Store
    sizes: list[int]
    activations: dict[str, QParams]
    narrowed: dict[str, QParams]
    layers: dict[str, LayerParams] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    optima: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.index = Index(self.model.graph)

    def fill(self, samples: CalibrationSet, size: int) -> None:
        """Store the model's inputs over the whole set; they are the same in both models."""
        for feeds in samples.batches(size):
            first = next(iter(feeds.values()))
            self.sizes.append(min(size, len(first)) if first.ndim else 1)
            for name, value in feeds.items():
                self.store.append(f"float:{name}", value)
                self.store.append(f"quantized:{name}", value)

    def input_grid(self, layer: LayerPlan) -> QParams:
        """The grid on which a layer reads its input."""
        narrow = self.narrowed.get(layer.input)
        if narrow is not None and narrow.spec.bits == layer.activation_spec.bits:
            return narrow
        return self.activations[layer.input]

    def float_cut(self, block: Block, outputs) -> ModelProto:
        return extract(self.model, self.types, inputs=self._read(block.inputs, outputs), outputs=outputs)

    def quantized_cut(self, block: Block, outputs) -> ModelProto:
        cut = self.float_cut(block, outputs)
        return emit_qdq(cut, self.plan, self.activations, self.narrowed, self.layers)

    def _read(self, inputs, outputs) -> list[str]:
        names = needed_nodes(self.index, inputs, outputs)
        read = {t for n in self.model.graph.node if n.name in names for t in n.input}
        return [t for t in inputs if t in read]

    def feeds(self, prefix: str, tensors, number: int) -> dict[str, np.ndarray]:
        return {t: self.store.batch(prefix + t, number) for t in tensors}


def round_layers(progress: Progress) -> None:
    """Give every layer its LayerParams by rounding alone, biases as they are."""
    for layer in progress.plan.layers:
        weight = constant(progress.index, layer.weight)
        bias = constant(progress.index, layer.bias) if layer.bias else None
        solution = round_rows(torch.from_numpy(to_rows(weight, layer).copy()), layer)
        progress.layers[layer.name] = _params(solution, layer, weight.shape, bias, progress.input_grid(layer))


def solve_block(progress: Progress, block: Block) -> None:
    """Give every layer of the block its LayerParams, in order: solved on moments where it can be, else rounded."""
    for layer in (layer for layer in progress.plan.layers if layer.name in block.layers):
        weight = constant(progress.index, layer.weight)
        rows = torch.from_numpy(to_rows(weight, layer).copy())
        bias = constant(progress.index, layer.bias) if layer.bias else None
        solution = None
        if layer.op != "ConvTranspose" and rows.shape[2] <= MOST_INPUTS:
            moments = _stream_moments(progress, block, layer, weight.shape)
            solution = solve_layer(moments, rows, layer.weight_spec)
            bias = None if layer.op == "MatMul" else solution.bias.reshape(-1).numpy()
        if solution is None:
            solution = round_rows(rows, layer)
        progress.optima[layer.name] = solution.optimum / solution.scale[..., None]
        progress.layers[layer.name] = _params(solution, layer, weight.shape, bias, progress.input_grid(layer))


def round_rows(rows: torch.Tensor, layer: LayerPlan) -> Solution:
    """The rounding of least squared weight error: the same problem with white inputs."""
    groups, channels, size = rows.shape
    identity = torch.eye(size, dtype=torch.float64).expand(groups, -1, -1)
    zeros = torch.zeros(groups, size, dtype=torch.float64)
    white = Moments(identity, rows.double(), zeros, torch.zeros(groups, channels, dtype=torch.float64), 1)
    return solve_layer(white, rows, layer.weight_spec, ridge=0.0)


def _params(solution: Solution, layer: LayerPlan, shape, bias, input_grid: QParams) -> LayerParams:
    integers = from_rows(solution.integers.numpy(), layer, shape).astype(np.int8)
    scale = guard_scale(solution.scale.reshape(-1).numpy(), bias, input_grid)
    grid = QParams(scale, np.zeros(len(scale), np.int32), layer.weight_spec)
    return LayerParams(integers, grid, bias)


def guard_scale(scale: np.ndarray, bias: np.ndarray | None, input_grid: QParams) -> np.ndarray:
    """The scale, raised where the int32 bias of a channel with next to no weights would overflow."""
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    if bias is not None and len(bias) == len(scale):
        scale = np.maximum(scale, np.abs(bias) / (BIAS_LEVELS * float(input_grid.scale)))
    return scale.astype(np.float32)


def _stream_moments(progress: Progress, block: Block, layer: LayerPlan, shape) -> Moments:
    generator = torch.Generator().manual_seed(progress.config.seed)
    total = MomentSum()
    for inputs, targets in _input_and_target(progress, block, layer):
        if layer.op == "Conv":
            _add_convolution(total, progress, layer, shape, inputs, targets, generator)
        else:
            total.add(flatten_rows(inputs), flatten_rows(targets))
    return total.centre()


def _add_convolution(total, progress, layer, shape, inputs, targets, generator) -> None:
    node = next(n for n in progress.model.graph.node if n.name == layer.name)
    window = Window(**window_of(node, shape[2:], tuple(inputs.shape[2:])), groups=layer.groups)
    size = int(np.prod(shape[1:]))
    wanted = max(COLUMNS_PER_INPUT * size, LEAST_COLUMNS)
    places = sample_columns(targets.shape[2:], wanted, sum(progress.sizes))
    per_sample = 4 * size * layer.groups * (places or int(np.prod(targets.shape[2:])))
    step = max(1, UNFOLD_BYTES // per_sample)
    for start in range(0, len(inputs), step):
        part = slice(start, start + step)
        columns, flat = unfold(inputs[part], window, places, generator)
        total.add(columns, pick_targets(targets[part], flat, layer.groups))


def _input_and_target(progress: Progress, block: Block, layer: LayerPlan) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of the layer's quantized input and of its float output.

    Where the output is the last to reach an Add, the target also makes up for the error of what it is added to.
    """
    other = _shortcut(progress, block, layer)
    targets = [layer.output, *([other] if other else [])]
    sources = [layer.input, *([other] if other else [])]
    reference = _Cut(progress, block, targets, quantized=False)
    prefix = _Cut(progress, block, sources, quantized=True)
    grid = progress.input_grid(layer)
    for number in range(len(progress.sizes)):
        wanted, given = reference.run(number), prefix.run(number)
        target = wanted[layer.output]
        if other:
            shortcut = given[other]
            if other in progress.activations:
                shortcut = _on_grid(shortcut, progress.activations[other])
            target = target + wanted[other] - shortcut
        narrow_source = given[layer.input]
        if layer.input in progress.narrowed and grid is progress.narrowed[layer.input]:
            narrow_source = _on_grid(narrow_source, progress.activations[layer.input])
        yield torch.from_numpy(_on_grid(narrow_source, grid)), torch.from_numpy(target)


def _on_grid(x: np.ndarray, grid: QParams) -> np.ndarray:
    return snap(x, grid.scale, grid.zero_point.astype(np.float32), grid.spec).astype(np.float32)


def _shortcut(progress: Progress, block: Block, layer: LayerPlan) -> str | None:
    """The tensor that an Add joins to the layer's output, if this layer is the last on which the Add waits."""
    readers = progress.index.consumers.get(layer.output, [])
    if len(readers) != 1 or readers[0].op_type != "Add" or readers[0].name not in block.nodes:
        return None
    other = next((t for t in readers[0].input if t != layer.output), None)
    if other is None or other in progress.index.initializers:
        return None
    needed = needed_nodes(progress.index, block.inputs, [other])
    waiting = set(block.layers) - set(progress.layers)
    return other if needed <= set(block.nodes) and not needed & waiting else None


class _Cut:
    """Tensors inside a block, computed batch by batch from its stored inputs; inputs themselves are passed through."""

    def __init__(self, progress: Progress, block: Block, tensors, *, quantized: bool):
        self.progress, self.tensors = progress, tensors
        self.prefix = "quantized:" if quantized else "float:"
        self.given = [t for t in tensors if t in block.inputs]
        inner = [t for t in tensors if t not in block.inputs]
        self.session = None
        if inner:
            make = progress.quantized_cut if quantized else progress.float_cut
            self.session = Session(make(block, inner), threads=progress.config.threads or 0)

    def run(self, number: int) -> dict[str, np.ndarray]:
        values = self.progress.feeds(self.prefix, self.given, number)
        if self.session is not None:
            values |= self.session.run(self.progress.feeds(self.prefix, self.session.inputs, number))
        return values
