"""Reconstruct: block after block, solve the layers, then learn the block as one; the quantized prefix feeds the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from ..graph.blocks import single_layers
from ..graph.emit import LayerParams
from ..graph.extract import extract
from ..graph.layout import from_rows
from ..numeric.adaquant import ActivationQuantizer, Outcome, WeightQuantizer, learn_block
from ..report import BlockRecord, Observer
from ..runtime.blocks import BlockError, compare, layer_module, place, to_torch
from ..runtime.session import Session
from ..spec import Block, LayerPlan, QParams
from .solve import Progress, guard_scale, solve_block

# Largest difference of a torch block from onnxruntime, relative to the output's largest value: float rounding.
PARITY = 1e-3
# One sample in so many judges a block and is not learned from.
HELD_OUT = 8
# A mini-batch holds about so many activations of the block's widest tensor, within these numbers of samples.
BATCH_ELEMENTS = 2**20
LEAST_BATCH, MOST_BATCH = 4, 32


def reconstruct(progress: Progress, blocks: Sequence[Block], observer: Observer) -> tuple[BlockRecord, ...]:
    """Walk the blocks in order; ``progress`` ends with the grids and the LayerParams of all layers."""
    records: list[BlockRecord] = []
    observer.blocks(sum(bool(b.layers) for b in blocks))
    waiting = [set(b.inputs) for b in blocks]
    for number, block in enumerate(blocks):
        _run(progress, block, quantized=False)
        if block.layers:
            for record in _settle(progress, block):
                records.append(record)
            observer.block(records[-1])
        progress.settled.update(block.inputs, _inner(progress, block))
        _run(progress, block, quantized=True)
        later = set().union(*waiting[number + 1 :])
        for name in progress.store.names():
            if name.partition(":")[2] not in later:
                progress.store.drop(name)
    return tuple(records)


def _settle(progress: Progress, block: Block) -> Iterator[BlockRecord]:
    """Solve and learn one block; where it cannot be learned as one, its layers are, one by one."""
    start = time.perf_counter()
    solve_block(progress, block)
    try:
        outcome = _learn(progress, block)
    except BlockError as error:
        parts = single_layers(progress.model, progress.plan, block) if len(block.layers) > 1 else ()
        if not parts:
            yield BlockRecord(block.name, block.layers, "solved", str(error), seconds=time.perf_counter() - start)
            return
        for part in parts:
            yield from _settle_part(progress, part, f"as one block: {error}")
        return
    yield _record(block, outcome, None, start)


def _record(block: Block, outcome: Outcome, reason: str | None, start: float) -> BlockRecord:
    kept = outcome.step > 0
    if not kept:
        reason = "; ".join(filter(None, (reason, "the loss on held-out samples did not fall")))
    return BlockRecord(
        block.name,
        block.layers,
        "reconstructed" if kept else "rolled back",
        reason,
        outcome.before,
        outcome.after,
        time.perf_counter() - start,
    )


def _settle_part(progress: Progress, part: Block, reason: str) -> Iterator[BlockRecord]:
    """One layer of a block that fell apart; its cuts live in the store until the part is done."""
    start = time.perf_counter()
    _run(progress, part, quantized=False)
    if part.layers:
        try:
            yield _record(part, _learn(progress, part), reason, start)
        except BlockError as error:
            yield BlockRecord(
                part.name, part.layers, "solved", f"{reason}; alone: {error}", seconds=time.perf_counter() - start
            )
    progress.settled.update(part.inputs, _inner(progress, part))
    _run(progress, part, quantized=True)


def _run(progress: Progress, block: Block, *, quantized: bool) -> None:
    """Compute the block's outputs over the whole set from its stored inputs, into the store."""
    prefix = "quantized:" if quantized else "float:"
    outputs = [t for t in block.outputs if f"{prefix}{t}" not in progress.store]
    if not outputs:
        return
    cut = (progress.quantized_cut if quantized else progress.float_cut)(block, outputs)
    session = Session(cut, threads=progress.config.threads or 0)
    for number in range(len(progress.sizes)):
        for name, value in session.run(progress.feeds(prefix, session.inputs, number)).items():
            progress.store.append(prefix + name, value)


def _inner(progress: Progress, block: Block) -> set[str]:
    made = {t for n in progress.model.graph.node if n.name in block.nodes for t in n.output}
    return made - set(block.outputs)


def _learn(progress: Progress, block: Block) -> Outcome:
    """AdaQuant on the block; its results go into ``progress``. Raises BlockError, having changed nothing."""
    cut = extract(progress.model, progress.types, nodes=block.nodes, inputs=block.inputs, outputs=block.outputs)
    module = to_torch(cut)
    feeds = progress.feeds("float:", block.inputs, 0)
    wanted = [progress.store.batch(f"float:{t}", 0) for t in block.outputs]
    error = compare(module, cut, feeds, wanted)
    if not error <= PARITY:
        raise BlockError(f"torch differs from onnxruntime by {error:.1e} of the largest output, more than {PARITY:.0e}")
    quantizers = _place_activations(progress, block, module)
    modules = {name: layer_module(module, name) for name in block.layers}
    weights = {name: _attach(progress, _layer(progress, name), part) for name, part in modules.items()}
    units = {m.bias: _bias_unit(progress, _layer(progress, name)) for name, m in modules.items() if m.bias.requires_grad}
    data = _Samples(progress, block, _batch_size(progress, block))
    torch.manual_seed(progress.config.seed)
    outcome = learn_block(module, data.draw, data.held_out, steps=progress.config.steps, bias_units=units)
    if outcome.step:
        _read_back(progress, modules, weights, quantizers)
    return outcome


def _layer(progress: Progress, name: str) -> LayerPlan:
    return next(layer for layer in progress.plan.layers if layer.name == name)


def _place_activations(progress: Progress, block: Block, module: nn.Module):
    """Put a learned quantizer on every planned tensor that the block reads; its sharing set has one."""
    sets = {t: members for members in progress.plan.shared for t in members}
    nodes = {n.name: n for n in progress.model.graph.node if n.name in block.nodes}
    bits = {layer.name: layer.activation_spec.bits for layer in progress.plan.layers}
    quantizers: dict[tuple[str, ...], ActivationQuantizer] = {}
    narrow: dict[str, ActivationQuantizer] = {}
    inside = {t for n in nodes.values() for t in (*n.input, *n.output)}
    for tensor in progress.activations:
        readers = [n.name for n in progress.index.consumers.get(tensor, []) if n.name in nodes]
        if not readers:
            continue
        members = sets.get(tensor, (tensor,))
        fixed = any(t in progress.settled or t not in inside for t in members)
        if members not in quantizers:
            quantizers[members] = _quantizer(progress.activations[tensor], fixed=fixed)
        wide = quantizers[members]
        slim = progress.narrowed.get(tensor)
        narrow_readers = [name for name in readers if slim is not None and bits.get(name) == slim.spec.bits]
        wide_readers = [name for name in readers if name not in narrow_readers]
        if wide_readers:
            place(module, tensor, wide, only=wide_readers)
        if narrow_readers:
            narrow[tensor] = _quantizer(slim, fixed=tensor in progress.settled)
            place(module, tensor, nn.Sequential(wide, narrow[tensor]), only=narrow_readers)
    return quantizers, narrow


def _quantizer(grid: QParams, *, fixed: bool) -> ActivationQuantizer:
    # At 8 bits a float value and its quantized one hardly differ: mixing them would only cost time.
    return ActivationQuantizer(grid, fixed=fixed, **({"drop": 0.0} if grid.spec.bits == 8 else {}))


def _attach(progress: Progress, layer: LayerPlan, part: nn.Module) -> WeightQuantizer:
    """Make the layer's weight its quantized one, learned from the solved integers on."""
    params = progress.layers[layer.name]
    stored = torch.from_numpy(params.integers.astype(np.float32))
    axis = layer.weight_spec.axis
    step = torch.from_numpy(params.grid.scale)
    if isinstance(part, nn.Linear):
        position, step = (stored if axis == 0 else stored.T), step[:, None]
    else:
        shape = [1] * stored.ndim
        shape[axis] = -1
        position, step = stored, step.reshape(shape)
    quantizer = WeightQuantizer(position.contiguous(), step, layer.weight_spec)
    part.bias.data = torch.zeros_like(part.bias) if params.bias is None else torch.from_numpy(params.bias).float()
    part.bias.requires_grad_(layer.op != "MatMul")
    parametrize.register_parametrization(part, "weight", quantizer, unsafe=True)
    part.parametrizations.weight.original.requires_grad_(False)
    return quantizer


def _bias_unit(progress: Progress, layer: LayerPlan) -> torch.Tensor:
    """What one weight step moves an output by, at the top of the input's range."""
    grid = progress.input_grid(layer)
    return torch.tensor(float(np.mean(progress.layers[layer.name].grid.scale)) * float(grid.scale) * grid.spec.qmax)


def _read_back(progress: Progress, modules, weights, quantizers) -> None:
    wide, narrow = quantizers
    for members, quantizer in wide.items():
        bounds = [progress.plan.nonnegative[t] for t in members if t in progress.plan.nonnegative]
        grid = quantizer.grid(min(bounds, default=None))
        for tensor in members:
            if tensor in progress.activations:
                progress.activations[tensor] = grid
    for tensor, quantizer in narrow.items():
        progress.narrowed[tensor] = quantizer.grid(progress.plan.nonnegative.get(tensor))
    for name, quantizer in weights.items():
        layer = _layer(progress, name)
        old = progress.layers[name]
        integers = quantizer.integers().detach().numpy()
        if isinstance(modules[name], nn.Linear) and layer.weight_spec.axis == 1:
            integers = integers.T
        bias = None if layer.op == "MatMul" else modules[name].bias.detach().numpy().astype(np.float64)
        scale = guard_scale(quantizer.step.detach().reshape(-1).numpy(), bias, progress.input_grid(layer))
        grid = QParams(scale, old.grid.zero_point, old.grid.spec)
        progress.layers[name] = LayerParams(integers.astype(np.int8), grid, bias)


def _batch_size(progress: Progress, block: Block) -> int:
    """Samples in a mini-batch, from the widest tensor that one sample makes inside the block."""
    made = [t for n in progress.model.graph.node if n.name in block.nodes for t in n.output if t]
    tensors = [t for t in made if t in progress.types and t not in block.outputs]
    session = Session(progress.float_cut(block, [*block.outputs, *tensors]), threads=progress.config.threads or 0)
    feeds = {t: progress.store.batch(f"float:{t}", 0) for t in session.inputs}
    values = session.run(feeds)
    widest = max(v.size for v in values.values()) / max(progress.sizes[0], 1)
    return int(np.clip(BATCH_ELEMENTS // max(widest, 1), LEAST_BATCH, MOST_BATCH))


class _Samples:
    """Mini-batches of a block: inputs from the quantized prefix, targets from the float model."""

    def __init__(self, progress: Progress, block: Block, size: int):
        self.store, self.size = progress.store, size
        self.inputs = [f"quantized:{t}" for t in block.inputs]
        self.targets = [f"float:{t}" for t in block.outputs]
        names = [*self.inputs, *self.targets]
        by_sample = all(self.store.sample_major(t, progress.sizes) for t in names)
        total = sum(progress.sizes) if by_sample else len(progress.sizes)
        judges = max(1, total // HELD_OUT)
        self.read: Callable = self._rows if by_sample else self._batch
        if not by_sample:
            self.size = 1
        generator = np.random.default_rng(progress.config.seed)
        order = generator.permutation(total)
        self.judging, self.learning = order[:judges], order[judges:] if total > judges else order
        self.generator = generator

    def draw(self):
        chosen = self.generator.choice(self.learning, min(self.size, len(self.learning)), replace=False)
        return self.read(np.sort(chosen))

    def held_out(self):
        for start in range(0, len(self.judging), self.size):
            yield self.read(np.sort(self.judging[start : start + self.size]))

    def _rows(self, indices):
        return tuple([torch.from_numpy(self.store.rows(t, indices)) for t in names] for names in (self.inputs, self.targets))

    def _batch(self, indices):
        number = int(indices[0])
        return tuple([torch.from_numpy(self.store.batch(t, number)) for t in names] for names in (self.inputs, self.targets))
