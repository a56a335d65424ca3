"""A block in torch: its quantizers put in place, learned from stored samples, and read back into the state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from .state import FLOAT, QUANTIZED, Problem, ReconstructionState

# Largest difference of a torch block from onnxruntime, relative to the output's largest value: float rounding.
PARITY = 1e-3
# A mini-batch holds about so many activations of the block's widest tensor, within these numbers of samples.
BATCH_ELEMENTS = 2**20
LEAST_BATCH, MOST_BATCH = 4, 32


@dataclass(frozen=True)
class TorchBlock:
    """A block as a small model and as the torch module made of it, whose outputs are those of onnxruntime."""

    block: Block
    subgraph: ModelProto
    module: nn.Module


def convert_block(state: ReconstructionState, block: Block) -> TorchBlock:
    """The block in torch. Raises BlockError where torch does not take it."""
    subgraph = extract(
        state.problem.model, state.stored.types, nodes=block.nodes, inputs=block.inputs, outputs=block.outputs
    )
    return TorchBlock(block, subgraph, to_torch(subgraph))


@dataclass(frozen=True)
class Quantizers:
    """Quantizers of a block's activations: one for each set of tensors that share a grid, and those of fewer bits."""

    activations: dict[tuple[str, ...], ActivationQuantizer]
    requantized: dict[str, ActivationQuantizer]


class Learner:
    """A block as a torch module with its quantizers in place, and how what it learned goes back into the state.

    size: samples in a mini-batch; None: one stored batch, as it is.
    """

    def __init__(self, state: ReconstructionState, torch_block: TorchBlock, *, frozen: bool) -> None:
        """``frozen``: grids and weights stay as they are, and biases alone are learned. Raises BlockError."""
        self.state, self.block, self.module = state, torch_block.block, torch_block.module
        block = self.block
        feeds = state.stored.feeds(FLOAT, block.inputs, 0)
        wanted = [state.stored.store.batch(f"{FLOAT}{t}", 0) for t in block.outputs]
        if not any(is_float(value) for value in wanted):
            raise BlockError("no output is of floating point")
        check_parity(self.module, torch_block.subgraph, feeds, wanted)
        self.size = _batch_size(state, block) if _takes_any_batch(state, torch_block) else None
        self.quantizers = _place_activations(state, block, self.module, frozen=frozen)
        self.layers = {name: layer_module(self.module, name) for name in block.layers}
        self.weights = {name: _attach(state, state.problem.layers[name], part) for name, part in self.layers.items()}
        if frozen:
            for quantizer in self.weights.values():
                quantizer.requires_grad_(False)
        if state.stored.has_padding(block.outputs):
            self.module = Unpadded(self.module, block.outputs, state.problem.padding)
        self.module.to(state.problem.device)

    def learn(self, draw, held_out, *, steps: int, **more: Any) -> Outcome:
        """``learn_block`` on this one. Raises BlockError."""
        state = self.state
        biases = {name: part.bias for name, part in self.layers.items() if part.bias.requires_grad}
        units = {bias: _bias_unit(state, state.problem.layers[name]) for name, bias in biases.items()}
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers go on as they were
            torch.default_generator.manual_seed(state.problem.config.seed)  # alone, as no other device draws
            try:
                return learn_block(self.module, draw, held_out, steps=steps, bias_units=units, **more)
            except torch.OutOfMemoryError:  # says nothing of the block
                raise
            except RuntimeError as error:  # torch's own, which say where gradients or operators end
                raise BlockError(f"block: {first_line(error)}") from error

    def read_back(self) -> None:
        """Put what was learned into the state."""
        _read_back(self.state, self.layers, self.weights, self.quantizers)

    def biases(self) -> dict[str, np.ndarray]:
        """Biases by layer as they stand, float64, of those that are learned."""
        return {
            name: _bias_of(self.state.problem, self.state.problem.layers[name], part)
            for name, part in self.layers.items()
            if part.bias.requires_grad
        }


def check_parity(module: nn.Module, cut: ModelProto, feeds, wanted) -> None:
    """Refuse, by BlockError, a module whose outputs are not those ``wanted`` of onnxruntime."""
    error = compare(module, cut, feeds, wanted)
    if not error <= PARITY:
        raise BlockError(f"torch differs from onnxruntime by {error:.1e} of the largest output, more than {PARITY:.0e}")


def _place_activations(state: ReconstructionState, block: Block, module: nn.Module, *, frozen: bool) -> Quantizers:
    """Put a quantizer on every tensor of the scheme that the block reads; tensors that share a grid share it.

    A quantizer is learned where all tensors that share it lie inside the block and none is frozen.
    """
    scheme, index = state.problem.scheme, state.problem.index
    sharing = {t: members for members in scheme.shared for t in members}
    nodes = {n.name: n for n in state.problem.model.graph.node if n.name in block.nodes}
    inside = {t for n in nodes.values() for t in (*n.input, *n.output)}
    placed = Quantizers({}, {})
    for tensor, grid in state.grids.activations.items():
        in_float = scheme.float_reads.get(tensor, ())
        names = [n.name for n in index.consumers.get(tensor, []) if n.name in nodes]
        readers = [name for name in names if name not in in_float]
        if not readers:
            continue
        members = sharing.get(tensor, (tensor,))
        if members not in placed.activations:
            fixed = frozen or any(t in state.frozen or t not in inside for t in members)
            placed.activations[members] = _quantizer(grid, fixed=fixed, frozen=frozen)
        quantizer = placed.activations[members]
        fewer_bits = _readers_of_requantized(state, tensor, readers)
        if len(fewer_bits) < len(readers):
            place(module, tensor, quantizer, only=[name for name in readers if name not in fewer_bits])
        if fewer_bits:
            fixed = frozen or tensor in state.frozen
            second = _quantizer(state.grids.requantized[tensor], fixed=fixed, frozen=frozen)
            placed.requantized[tensor] = second
            place(module, tensor, nn.Sequential(quantizer, second), only=fewer_bits)
    return placed


def _readers_of_requantized(state: ReconstructionState, tensor: str, readers: Sequence[str]) -> list[str]:
    """Those of the nodes that read the tensor on its grid of fewer bits."""
    grid, layers = state.grids.requantized.get(tensor), state.problem.layers
    if grid is None:
        return []
    return [name for name in readers if name in layers and layers[name].activation_spec.bits == grid.spec.bits]


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
    bias = None if params.bias is None else params.bias - _added_bias(state.problem, layer)
    part.bias.data = torch.zeros_like(part.bias) if bias is None else torch.tensor(bias).float()
    part.bias.requires_grad_(layer.takes_bias)
    parametrize.register_parametrization(part, "weight", quantizer, unsafe=True)
    part.parametrizations.weight.original.requires_grad_(False)
    return quantizer


def _added_bias(problem: Problem, layer: LayerScheme) -> np.ndarray | float:
    """What the Add behind a MatMul, which stays as it is in torch, adds to the layer's own bias there."""
    return 0.0 if layer.bias_add is None else constant(problem.index, layer.bias).astype(np.float64).reshape(-1)


def _bias_of(problem: Problem, layer: LayerScheme, part: nn.Module) -> np.ndarray:
    """The layer's bias as it was learned, that of the Add behind it included."""
    return part.bias.detach().cpu().numpy().astype(np.float64) + _added_bias(problem, layer)


def _bias_unit(state: ReconstructionState, layer: LayerScheme) -> torch.Tensor:
    """What one weight step moves an output by, at the top of the input's range."""
    grid = state.input_grid(layer)
    return torch.tensor(float(np.mean(state.layers[layer.name].grid.scale)) * float(grid.scale) * grid.spec.qmax)


def _read_back(
    state: ReconstructionState,
    modules: Mapping[str, nn.Module],
    weights: Mapping[str, WeightQuantizer],
    quantizers: Quantizers,
) -> None:
    bounds = state.problem.scheme.nonnegative
    learned: dict[str, QParams] = {}
    for members, quantizer in quantizers.activations.items():
        grid = quantizer.grid(min((bounds[t] for t in members if t in bounds), default=None))
        learned |= {tensor: grid for tensor in members if tensor in state.grids.activations}
    requantized = {t: quantizer.grid(bounds.get(t)) for t, quantizer in quantizers.requantized.items()}
    state.grids = state.grids.updated(learned, requantized)
    for name, quantizer in weights.items():
        layer = state.problem.layers[name]
        integers = quantizer.integers().detach().cpu().numpy()
        if isinstance(modules[name], nn.Linear) and layer.weight_spec.axis == 1:
            integers = integers.T
        bias = _bias_of(state.problem, layer, modules[name]) if layer.takes_bias else None
        scale = quantizer.step.detach().reshape(-1).cpu().numpy()
        state.layers[name] = make_params(layer, integers, scale, bias, state.input_grid(layer))


def _batch_size(state: ReconstructionState, block: Block) -> int:
    """Samples in a mini-batch, from the widest tensor that one sample makes inside the block."""
    made = [t for n in state.problem.model.graph.node if n.name in block.nodes for t in n.output if t]
    tensors = [t for t in made if t in state.stored.types and t not in block.outputs]
    subgraph = state.float_subgraph(block, [*block.outputs, *tensors])
    session = Session(subgraph, name=f"block {block.name}", threads=state.problem.threads)
    values = session.run(state.stored.feeds(FLOAT, session.inputs, 0))
    widest = max(v.size for v in values.values()) / max(state.stored.sizes[0], 1)
    return int(np.clip(BATCH_ELEMENTS // max(widest, 1), LEAST_BATCH, MOST_BATCH))


def _takes_any_batch(state: ReconstructionState, torch_block: TorchBlock) -> bool:
    """Whether the module computes samples in other numbers than the stored batches: a Reshape may fix their number."""
    stored, block = state.stored, torch_block.block
    names = [f"{FLOAT}{t}" for t in (*block.inputs, *block.outputs)]
    if not all(stored.store.sample_major(t, stored.sizes) for t in names):
        return False
    rows = range(1 if stored.sizes[0] > 1 else min(2, len(stored.sizes)))
    feeds = {t: stored.store.rows(f"{FLOAT}{t}", rows) for t in block.inputs}
    wanted = [stored.store.rows(f"{FLOAT}{t}", rows) for t in block.outputs]
    try:
        return compare(torch_block.module, torch_block.subgraph, feeds, wanted) <= PARITY
    except BlockError:
        return False


class MiniBatches:
    """Mini-batches of a block: inputs from the quantized prefix, targets from the float model.

    held_out: indices of the samples, or stored batches, that are not learned from.
    """

    def __init__(self, state: ReconstructionState, block: Block, size: int | None, *, holdout: int):
        """``size``: samples in a mini-batch; None: one stored batch. ``holdout``: one in so many is held out."""
        self.stored, self.padding, self.device = state.stored, state.problem.padding, state.problem.device
        self.block, self.size = block, size or 1
        by_sample = size is not None
        total = self.stored.count(by_sample=by_sample)
        held_out = max(1, total // holdout)
        self.read: Callable = self._rows if by_sample else self._batch
        real = self.stored.real_tokens() if self.stored.has_padding(block.outputs) else None
        self.real = np.concatenate(real) if real is not None and by_sample else real
        self.generator = np.random.default_rng(state.problem.config.seed)
        order = self.generator.permutation(total)
        learning = order[held_out:] if total > held_out else order
        self.held_out = order[:held_out]
        self.learning = np.concatenate([learning + total * number for number in range(self.stored.passes)])

    def draw(self):
        """A mini-batch of those that are learned from, drawn at random."""
        chosen = self.generator.choice(self.learning, min(self.size, len(self.learning)), replace=False)
        return self.read(np.sort(chosen))

    def read_held_out(self):
        return self.batches(self.held_out)

    def batches(self, indices: np.ndarray):
        """Those samples, a mini-batch at a time."""
        for start in range(0, len(indices), self.size):
            yield self.read(np.sort(indices[start : start + self.size]))

    def _rows(self, indices: np.ndarray):
        real = None if self.real is None else self.real[indices]
        return self._move(partial(self.stored.store.rows, indices=indices), real)

    def _batch(self, indices: np.ndarray):
        number = int(indices[0])
        real = None if self.real is None else self.real[number]
        return self._move(partial(self.stored.store.batch, number=number), real)

    def _move(self, read: Callable, real: np.ndarray | None):
        """Inputs and targets, on the device that learns; targets are zero at padding. The mask is the last input."""
        inputs = [read(f"{QUANTIZED}{t}") for t in self.block.inputs] + ([] if real is None else [real])
        targets = [self.padding.fill_padding(t, read(f"{FLOAT}{t}"), real) for t in self.block.outputs]
        return tuple([torch.from_numpy(value).to(self.device) for value in part] for part in (inputs, targets))
