"""A block in torch: its quantizers put in place, learned from stored samples, and read back into the walk."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from torch import nn
from torch.nn.utils import parametrize

from ..config import FULL_BITS
from ..graph.extract import extract
from ..graph.index import constant
from ..numeric.adaquant import ActivationQuantizer, Outcome, WeightQuantizer, learn_block
from ..runtime.blocks import BlockError, compare, layer_module, place, to_torch
from ..runtime.session import Session, first_line, is_float
from ..spec import Block, LayerScheme, QParams
from .padding_mask import Unpadded
from .solve import make_params
from .state import ReconstructionState

# Largest difference of a torch block from onnxruntime, relative to the output's largest value: float rounding.
PARITY = 1e-3
# A mini-batch holds about so many activations of the block's widest tensor, within these numbers of samples.
BATCH_ELEMENTS = 2**20
LEAST_BATCH, MOST_BATCH = 4, 32


class Learner:
    """A block as a torch module with its quantizers in place, and how what it learned goes back into the walk.

    size: samples in a mini-batch; None: one stored batch, as it is.
    """

    def __init__(self, state: ReconstructionState, block: Block, *, frozen: bool) -> None:
        """``frozen``: grids and weights stay as they are, and biases alone are learned. Raises BlockError."""
        self.state, self.block = state, block
        cut = extract(state.model, state.types, nodes=block.nodes, inputs=block.inputs, outputs=block.outputs)
        self.module = to_torch(cut)
        feeds = state.feeds("float:", block.inputs, 0)
        wanted = [state.store.batch(f"float:{t}", 0) for t in block.outputs]
        if not any(is_float(value) for value in wanted):
            raise BlockError("no output is of floating point")
        check_parity(self.module, cut, feeds, wanted)
        self.size = _batch_size(state, block) if _takes_any_batch(state, block, self.module, cut) else None
        self.quantizers = _place_activations(state, block, self.module, frozen=frozen)
        self.layers = {name: layer_module(self.module, name) for name in block.layers}
        self.weights = {name: _attach(state, layer_of(state, name), part) for name, part in self.layers.items()}
        if frozen:
            for quantizer in self.weights.values():
                quantizer.requires_grad_(False)
        if state.has_padding(block.outputs):
            self.module = Unpadded(self.module, block.outputs, state.padding)
        self.module.to(state.device)

    def learn(self, draw, held_out, *, steps: int, **more: Any) -> Outcome:
        """``learn_block`` on this one. Raises BlockError."""
        state = self.state
        biases = {name: part.bias for name, part in self.layers.items() if part.bias.requires_grad}
        units = {bias: _bias_unit(state, layer_of(state, name)) for name, bias in biases.items()}
        torch.default_generator.manual_seed(state.config.seed)  # alone, as no other device draws
        try:
            return learn_block(self.module, draw, held_out, steps=steps, bias_units=units, **more)
        except RuntimeError as error:  # torch's own, which say where gradients or operators end
            raise BlockError(f"block: {first_line(error)}") from error

    def read_back(self) -> None:
        """What was learned, into the walk."""
        _read_back(self.state, self.layers, self.weights, self.quantizers)

    def biases(self) -> dict[str, np.ndarray]:
        """Biases by layer as they stand, float64, of those that are learned."""
        return {
            name: _bias_of(self.state, layer_of(self.state, name), part)
            for name, part in self.layers.items()
            if part.bias.requires_grad
        }


def check_parity(module: nn.Module, cut: ModelProto, feeds, wanted) -> None:
    """Refuse, by BlockError, a module whose outputs are not those ``wanted`` of onnxruntime."""
    error = compare(module, cut, feeds, wanted)
    if not error <= PARITY:
        raise BlockError(f"torch differs from onnxruntime by {error:.1e} of the largest output, more than {PARITY:.0e}")


def layer_of(state: ReconstructionState, name: str) -> LayerScheme:
    return next(layer for layer in state.scheme.layers if layer.name == name)


def _place_activations(state: ReconstructionState, block: Block, module: nn.Module, *, frozen: bool):
    """Put a quantizer on every planned tensor that the block reads, learned or frozen; its sharing set has one."""
    sets = {t: members for members in state.scheme.shared for t in members}
    nodes = {n.name: n for n in state.model.graph.node if n.name in block.nodes}
    bits = {layer.name: layer.activation_spec.bits for layer in state.scheme.layers}
    quantizers: dict[tuple[str, ...], ActivationQuantizer] = {}
    narrow: dict[str, ActivationQuantizer] = {}
    inside = {t for n in nodes.values() for t in (*n.input, *n.output)}
    for tensor in state.activations:
        in_float = state.scheme.float_reads.get(tensor, ())
        names = [n.name for n in state.index.consumers.get(tensor, []) if n.name in nodes]
        readers = [name for name in names if name not in in_float]
        if not readers:
            continue
        members = sets.get(tensor, (tensor,))
        fixed = frozen or any(t in state.frozen or t not in inside for t in members)
        if members not in quantizers:
            quantizers[members] = _quantizer(state.activations[tensor], fixed=fixed, frozen=frozen)
        wide = quantizers[members]
        slim = state.requantized.get(tensor)
        narrow_readers = [name for name in readers if slim is not None and bits.get(name) == slim.spec.bits]
        wide_readers = [name for name in readers if name not in narrow_readers]
        if wide_readers:
            place(module, tensor, wide, only=wide_readers)
        if narrow_readers:
            narrow[tensor] = _quantizer(slim, fixed=frozen or tensor in state.frozen, frozen=frozen)
            place(module, tensor, nn.Sequential(wide, narrow[tensor]), only=narrow_readers)
    return quantizers, narrow


def _quantizer(grid: QParams, *, fixed: bool, frozen: bool) -> ActivationQuantizer:
    # At 8 bits a float value and its quantized one hardly differ: mixing them would only cost time. Biases are learned
    # for the model as it will run.
    return ActivationQuantizer(grid, fixed=fixed, mix=grid.spec.bits < FULL_BITS and not frozen)


def _attach(state: ReconstructionState, layer: LayerScheme, part: nn.Module) -> WeightQuantizer:
    """Make the layer's weight its quantized one, learned from the solved integers on."""
    if layer.reads_float:
        raise BlockError(f"{layer.name}: what reads float activations is solved or rounded, and not learned")
    params = state.layers[layer.name]
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
    # A copy: the bias of a layer that was not solved lies in the model itself.
    bias = None if params.bias is None else params.bias - _added_bias(state, layer)
    part.bias.data = torch.zeros_like(part.bias) if bias is None else torch.tensor(bias).float()
    part.bias.requires_grad_(layer.takes_bias)
    parametrize.register_parametrization(part, "weight", quantizer, unsafe=True)
    part.parametrizations.weight.original.requires_grad_(False)
    return quantizer


def _added_bias(state: ReconstructionState, layer: LayerScheme) -> np.ndarray | float:
    """What the Add behind a MatMul, which stays as it is in torch, adds to the layer's own bias there."""
    return 0.0 if layer.bias_add is None else constant(state.index, layer.bias).astype(np.float64).reshape(-1)


def _bias_of(state: ReconstructionState, layer: LayerScheme, part: nn.Module) -> np.ndarray:
    """The layer's bias as it was learned, that of the Add behind it included."""
    return part.bias.detach().cpu().numpy().astype(np.float64) + _added_bias(state, layer)


def _bias_unit(state: ReconstructionState, layer: LayerScheme) -> torch.Tensor:
    """What one weight step moves an output by, at the top of the input's range."""
    grid = state.input_grid(layer)
    return torch.tensor(float(np.mean(state.layers[layer.name].grid.scale)) * float(grid.scale) * grid.spec.qmax)


def _read_back(state: ReconstructionState, modules, weights, quantizers) -> None:
    wide, narrow = quantizers
    for members, quantizer in wide.items():
        bounds = [state.scheme.nonnegative[t] for t in members if t in state.scheme.nonnegative]
        grid = quantizer.grid(min(bounds, default=None))
        for tensor in members:
            if tensor in state.activations:
                state.activations[tensor] = grid
    for tensor, quantizer in narrow.items():
        state.requantized[tensor] = quantizer.grid(state.scheme.nonnegative.get(tensor))
    for name, quantizer in weights.items():
        layer = layer_of(state, name)
        integers = quantizer.integers().detach().cpu().numpy()
        if isinstance(modules[name], nn.Linear) and layer.weight_spec.axis == 1:
            integers = integers.T
        bias = _bias_of(state, layer, modules[name]) if layer.takes_bias else None
        scale = quantizer.step.detach().reshape(-1).cpu().numpy()
        state.layers[name] = make_params(layer, integers, scale, bias, state.input_grid(layer))


def _batch_size(state: ReconstructionState, block: Block) -> int:
    """Samples in a mini-batch, from the widest tensor that one sample makes inside the block."""
    made = [t for n in state.model.graph.node if n.name in block.nodes for t in n.output if t]
    tensors = [t for t in made if t in state.types and t not in block.outputs]
    cut = state.float_cut(block, [*block.outputs, *tensors])
    session = Session(cut, name=f"block {block.name}", threads=state.config.threads or 0)
    feeds = {t: state.store.batch(f"float:{t}", 0) for t in session.inputs}
    values = session.run(feeds)
    widest = max(v.size for v in values.values()) / max(state.sizes[0], 1)
    return int(np.clip(BATCH_ELEMENTS // max(widest, 1), LEAST_BATCH, MOST_BATCH))


def _takes_any_batch(state: ReconstructionState, block: Block, module: nn.Module, cut: ModelProto) -> bool:
    """Whether the module computes samples in other numbers than the stored batches: a Reshape may fix their number."""
    names = [f"float:{t}" for t in (*block.inputs, *block.outputs)]
    if not all(state.store.sample_major(t, state.sizes) for t in names):
        return False
    rows = range(1 if state.sizes[0] > 1 else min(2, len(state.sizes)))
    feeds = {t: state.store.rows(f"float:{t}", rows) for t in block.inputs}
    try:
        return compare(module, cut, feeds, [state.store.rows(f"float:{t}", rows) for t in block.outputs]) <= PARITY
    except BlockError:
        return False


class Samples:
    """Mini-batches of a block: inputs from the quantized prefix, targets from the float model."""

    def __init__(self, state: ReconstructionState, block: Block, size: int | None, *, judges: int):
        """``size``: samples in a mini-batch; None: one stored batch, as it is. ``judges``: one in so many judges."""
        self.state, self.block, self.size = state, block, size or 1
        by_sample = size is not None
        total = state.count(by_sample=by_sample)
        judging = max(1, total // judges)
        self.read: Callable = self._rows if by_sample else self._batch
        real = state.real_tokens() if state.has_padding(block.outputs) else None
        self.real = np.concatenate(real) if real is not None and by_sample else real
        self.generator = np.random.default_rng(state.config.seed)
        order = self.generator.permutation(total)
        learning = order[judging:] if total > judging else order
        self.judging = order[:judging]
        self.learning = np.concatenate([learning + total * number for number in range(state.passes)])

    def draw(self):
        chosen = self.generator.choice(self.learning, min(self.size, len(self.learning)), replace=False)
        return self.read(np.sort(chosen))

    def held_out(self):
        return self.batches(self.judging)

    def batches(self, indices: np.ndarray):
        """Those samples, a mini-batch at a time."""
        for start in range(0, len(indices), self.size):
            yield self.read(np.sort(indices[start : start + self.size]))

    def _rows(self, indices):
        real = None if self.real is None else self.real[indices]
        return self._move(partial(self.state.store.rows, indices=indices), real)

    def _batch(self, indices):
        number = int(indices[0])
        real = None if self.real is None else self.real[number]
        return self._move(partial(self.state.store.batch, number=number), real)

    def _move(self, read: Callable, real: np.ndarray | None):
        """Inputs and targets, on the device that learns; targets are zero at padding, and what is none an input."""
        inputs = [read(f"quantized:{t}") for t in self.block.inputs] + ([] if real is None else [real])
        targets = [self.state.padding.blank(t, read(f"float:{t}"), real) for t in self.block.outputs]
        return tuple([torch.from_numpy(value).to(self.state.device) for value in part] for part in (inputs, targets))
