"""A block in torch: its quantizers are put in place, learned from stored samples, and read back into the state."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from onnx import ModelProto
from torch import fx, nn
from torch.nn.utils import parametrize

from ..config import FULL_BITS
from ..errors import first_line
from ..graph.extract import extract
from ..graph.index import known_constant
from ..numeric.adaquant import (
    ORDINARY,
    ActivationQuantizer,
    Batch,
    DynamicQuantizer,
    Outcome,
    Pace,
    Sums,
    WeightQuantizer,
    error_sums,
    learn_block,
)
from ..runtime.blocks import BlockError, compare, constant_of, layer_module, place, tie_constant, to_torch
from ..runtime.device import lacks_memory
from ..runtime.session import Session, is_float
from ..spec import Block, LayerScheme, QParams
from .params import dequantize_weight, make_params
from .state import FLOAT, QUANTIZED, Problem, ReconstructionState
from .unpadded import Unpadded

# Largest difference of a torch block from onnxruntime, relative to the output's largest value: float rounding.
PARITY = 1e-3
# What a Learner learns: all that a block has, or that of the whole model as it will run, or biases alone.
ALL, END_TO_END, BIASES = "all", "end to end", "biases"
# A mini-batch holds about so many values of the block's largest activation, within these numbers of samples.
BATCH_ELEMENTS = 2**20
LEAST_BATCH, MOST_BATCH = 4, 32


@dataclass(frozen=True)
class TorchBlock:
    """A block as a small model, and as a torch module of that model."""

    block: Block
    subgraph: ModelProto
    module: fx.GraphModule


def convert_block(state: ReconstructionState, block: Block) -> TorchBlock:
    """The block in torch. Raises BlockError where an operator has no converter."""
    problem = state.problem
    subgraph = extract(
        problem.model,
        state.stored.types,
        nodes=block.nodes,
        inputs=block.inputs,
        outputs=block.outputs,
        index=problem.index,
    )
    return TorchBlock(block, subgraph, to_torch(subgraph))


@dataclass(frozen=True)
class Quantizers:
    """Quantizers of a block's activations.

    activations: tensors that share a grid -> their quantizer. requantized: tensor -> the quantizer of fewer bits that
    follows for weighted layers. dynamic: tensor -> the quantizer of the dynamic layers that read it.
    """

    activations: dict[tuple[str, ...], ActivationQuantizer]
    requantized: dict[str, ActivationQuantizer]
    dynamic: dict[str, DynamicQuantizer]


class Learner:
    """A block as a torch module with its quantizers in place; what it learns goes back into the state.

    size: samples in a mini-batch; None where the module takes whole stored batches only.
    """

    def __init__(self, state: ReconstructionState, torch_block: TorchBlock, *, learned: str = ALL) -> None:
        """learned: ALL, END_TO_END or BIASES. Raises BlockError."""
        self.state, self.block = state, torch_block.block
        block, module = torch_block.block, torch_block.module
        feeds = state.stored.arrays(FLOAT, block.inputs, 0)
        wanted = [state.stored.store.batch(f"{FLOAT}{t}", 0) for t in block.outputs]
        if not any(is_float(value) for value in wanted):
            raise BlockError("no output is of floating point")
        check_parity(module, torch_block.subgraph, feeds, wanted)
        self.size = _batch_size(state, block) if _takes_any_batch(state, torch_block) else None
        self.quantizers = _place_activations(state, torch_block, learned)
        fill_tables(state, module, block.nodes)
        if self.quantizers.dynamic:
            with torch.no_grad():
                module(*(torch.from_numpy(feeds[t]) for t in block.inputs))  # how far these reach
        self.layers = {name: layer_module(module, name) for name in block.layers}
        self.weights = {name: _attach(state, state.problem.layers[name], part) for name, part in self.layers.items()}
        for quantizer in self.weights.values():
            if learned == BIASES:
                quantizer.requires_grad_(False)
        padded = state.stored.has_padding(block.outputs)
        self.module: nn.Module = Unpadded(module, block.outputs, state.problem.padding) if padded else module
        self.module.to(state.problem.device)

    def learn(
        self,
        draw: Callable[[], Batch],
        held_out: Callable[[], Iterable[Batch]],
        *,
        steps: int,
        pace: Pace = ORDINARY,
        sums: Sums = error_sums,
    ) -> Outcome:
        """Run ``learn_block`` on the module. Raises BlockError where torch fails."""
        state = self.state
        biases = {name: bias for name, part in self.layers.items() if (bias := bias_parameter(part)).requires_grad}
        units = {bias: self._bias_unit(state.problem.layers[name]) for name, bias in biases.items()}
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers go on as they were
            torch.default_generator.manual_seed(state.problem.config.seed)  # alone, as no other device draws
            try:
                return learn_block(self.module, draw, held_out, steps=steps, bias_units=units, pace=pace, sums=sums)
            except RuntimeError as error:  # torch's own, which say where gradients or operators end
                if lacks_memory(error):  # which says nothing of the block
                    raise
                raise BlockError(f"block: {first_line(error)}") from error

    def _bias_unit(self, layer: LayerScheme) -> torch.Tensor:
        """What one quantization step of a weight changes the output by, at the largest value of the input."""
        grid = self.state.input_grid(layer)
        step = float(np.abs(self.state.layers[layer.name].grid.scale).mean())
        if grid is not None:
            return torch.tensor(step * float(grid.scale) * grid.spec.qmax)
        return torch.tensor(step * float(self.quantizers.dynamic[layer.input].reach))

    def read_back(self) -> None:
        """Put the learned grids, weights and biases into the state."""
        _read_back_grids(self.state, self.quantizers)
        for name, quantizer in self.weights.items():
            _read_back_layer(self.state, self.state.problem.layers[name], self.layers[name], quantizer)

    def biases(self) -> dict[str, np.ndarray]:
        """Layer -> its present bias, float64 (channels,), for the biases that are learned."""
        return {
            name: _bias_of(self.state.problem, self.state.problem.layers[name], part)
            for name, part in self.layers.items()
            if bias_parameter(part).requires_grad
        }


def check_parity(
    module: fx.GraphModule, subgraph: ModelProto, feeds: Mapping[str, np.ndarray], wanted: Sequence[np.ndarray]
) -> None:
    """Raise BlockError for a module whose outputs differ from ``wanted``, those of onnxruntime, by more than PARITY."""
    error = compare(module, subgraph, feeds, wanted)
    if not error <= PARITY:
        raise BlockError(f"torch differs from onnxruntime by {error:.1e} of the largest output, more than {PARITY:.0e}")


def _place_activations(state: ReconstructionState, torch_block: TorchBlock, learned: str) -> Quantizers:
    """Put a quantizer on every tensor of the scheme that the block reads; tensors that share a grid share it.

    A quantizer is learned where all tensors that share it lie inside the block and none is frozen.
    """
    block, module, index = torch_block.block, torch_block.module, state.problem.index
    frozen = learned == BIASES
    nodes = [index.nodes[name] for name in block.nodes]
    inside = {tensor for node in nodes for tensor in (*node.input, *node.output)}
    dynamic = _list_dynamic(state, block)
    placed = Quantizers({}, {}, {tensor: DynamicQuantizer() for tensor in dynamic})
    for tensor, grid in state.grids.activations.items():
        readers = _quantized_readers(state, block, tensor)
        if not readers or tensor in state.problem.scheme.constants:  # whose rounding is small, and not learned
            continue
        members = state.problem.scheme.members_of(tensor)
        if members not in placed.activations:
            fixed = frozen or any(t in state.frozen or t not in inside for t in members)
            placed.activations[members] = _make_quantizer(grid, learned, fixed=fixed)
        quantizer = placed.activations[members]
        at_fewer_bits = _readers_of_requantized(state, tensor, readers)
        behind = [name for name in dynamic.get(tensor, ()) if name in readers]
        if behind:
            place(module, tensor, nn.Sequential(quantizer, placed.dynamic[tensor]), only=behind)
            del dynamic[tensor]  # its layers all read the grid, or none does
        others = [name for name in readers if name not in (*at_fewer_bits, *behind)]
        if others:
            place(module, tensor, quantizer, only=others)
        if at_fewer_bits:
            fixed = frozen or tensor in state.frozen
            second = _make_quantizer(state.grids.requantized[tensor], learned, fixed=fixed)
            placed.requantized[tensor] = second
            place(module, tensor, nn.Sequential(quantizer, second), only=at_fewer_bits)
    for tensor, names in dynamic.items():
        place(module, tensor, placed.dynamic[tensor], only=names)
    return placed


def fill_tables(state: ReconstructionState, module: fx.GraphModule, nodes: Collection[str]) -> None:
    """Give the tables that these nodes of the module look up their quantized rows.

    One that is tied to a head reads its weight: the file has its integers. A head outside leaves the rows in float.
    """
    for table in state.problem.scheme.embeddings:
        if table.name not in nodes:
            continue
        if table.tied_to is None:
            values = torch.from_numpy(dequantize_weight(state.layers[table.name]))
            constant_of(module, table.name).copy_(values)
        elif table.tied_to in nodes:
            tie_constant(module, table.name, table.tied_to)


def _list_dynamic(state: ReconstructionState, block: Block) -> dict[str, list[str]]:
    """The tensors that dynamic layers of the block read, each with the names of these layers."""
    found: dict[str, list[str]] = {}
    for layer in (state.problem.layers[name] for name in block.layers):
        if layer.dynamic:
            found.setdefault(layer.input, []).append(layer.name)
    return found


def _quantized_readers(state: ReconstructionState, block: Block, tensor: str) -> list[str]:
    """Names of the block's nodes that read the tensor quantized."""
    in_float = state.problem.scheme.float_reads.get(tensor, ())
    names = [node.name for node in state.problem.index.readers(tensor)]
    return [name for name in names if name in block.nodes and name not in in_float]


def _readers_of_requantized(state: ReconstructionState, tensor: str, readers: Sequence[str]) -> list[str]:
    """Those of the nodes that read the tensor on its grid of fewer bits."""
    grid, layers = state.grids.requantized.get(tensor), state.problem.layers
    if grid is None:
        return []
    return [name for name in readers if name in layers and layers[name].activation_spec.bits == grid.spec.bits]


def _make_quantizer(grid: QParams, learned: str, *, fixed: bool) -> ActivationQuantizer:
    # At 8 bits a float value and its quantized one hardly differ: mixing them would only cost time, and so would
    # rounding in the many steps of the whole model. That and biases are learned for the model as it will run.
    few = grid.spec.bits < FULL_BITS
    passing = learned == END_TO_END and not few
    return ActivationQuantizer(grid, fixed=fixed or passing, mix=few and learned == ALL, passing=passing)


def _attach(state: ReconstructionState, layer: LayerScheme, part: nn.Module) -> WeightQuantizer:
    """Replace the weight of the layer's module by a quantizer that starts at the solved integers."""
    if layer.reads_float:
        raise BlockError(f"{layer.name}: what reads float activations is solved or rounded, and not learned")
    params = state.layers[layer.name]
    integers = torch.from_numpy(params.read().astype(np.float32))
    linear = isinstance(part, nn.Linear)
    position = integers.T if linear and layer.axis == 1 else integers
    shape = [1] * integers.ndim
    shape[0 if linear else layer.axis] = -1  # with one scale for all channels, each side is 1
    scale, zero = (
        torch.from_numpy(np.asarray(each)).reshape(shape) for each in (params.grid.scale, params.grid.zero_point)
    )
    quantizer = WeightQuantizer(position.contiguous(), scale, layer.weight_spec, zero)
    # A copy: the bias of a layer that was not solved lies in the model itself.
    start = None if params.bias is None else params.bias - added_bias(state.problem, layer)
    bias = bias_parameter(part)
    bias.data = torch.zeros_like(bias) if start is None else torch.tensor(start).float()
    bias.requires_grad_(layer.takes_bias)
    parametrize.register_parametrization(part, "weight", quantizer, unsafe=True)
    part.get_parameter("parametrizations.weight.original").requires_grad_(False)
    return quantizer


def bias_parameter(part: nn.Module) -> nn.Parameter:
    return part.get_parameter("bias")


def added_bias(problem: Problem, layer: LayerScheme) -> np.ndarray | float:
    """What the bias Add behind a MatMul adds: it stays an Add in torch, where the module has a bias of its own."""
    if layer.bias_add is None or layer.bias is None:
        return 0.0
    return known_constant(problem.index, layer.bias).astype(np.float64).reshape(-1)


def _bias_of(problem: Problem, layer: LayerScheme, part: nn.Module) -> np.ndarray:
    """The layer's present bias, float64, with what its bias Add adds."""
    own: np.ndarray = bias_parameter(part).detach().cpu().numpy().astype(np.float64)
    return own + added_bias(problem, layer)


def _read_back_grids(state: ReconstructionState, quantizers: Quantizers) -> None:
    scheme = state.problem.scheme
    learned: dict[str, QParams] = {}
    for members, quantizer in quantizers.activations.items():
        grid = quantizer.grid(scheme.bound_of(members))
        learned |= {tensor: grid for tensor in members if tensor in state.grids.activations}
    requantized = {t: quantizer.grid(scheme.bound_of([t])) for t, quantizer in quantizers.requantized.items()}
    state.grids = state.grids.updated(learned, requantized)


def _read_back_layer(
    state: ReconstructionState, layer: LayerScheme, part: nn.Module, quantizer: WeightQuantizer
) -> None:
    integers = quantizer.integers().detach().cpu().numpy()
    if isinstance(part, nn.Linear) and layer.axis == 1:
        integers = integers.T
    bias = _bias_of(state.problem, layer, part) if layer.takes_bias else None
    scale, zero = (each.detach().reshape(-1).cpu().numpy() for each in (quantizer.scale, quantizer.zero))
    grid = scale, zero if layer.weight_spec.has_zeros else None
    state.layers[layer.name] = make_params(layer, integers, grid, bias, state.input_grid(layer))


def _batch_size(state: ReconstructionState, block: Block) -> int:
    """Samples in a mini-batch, from the largest tensor that one sample makes inside the block."""
    made = [t for name in block.nodes for t in state.problem.index.nodes[name].output if t]
    tensors = [t for t in made if t in state.stored.types and t not in block.outputs]
    subgraph = state.float_subgraph(block, [*block.outputs, *tensors])
    session = Session(subgraph, name=f"block {block.name}", threads=state.problem.threads)
    values = session.run(state.stored.feeds(FLOAT, session.inputs, 0))
    largest = max(v.size for v in values.values()) / max(state.stored.sizes[0], 1)
    return int(np.clip(BATCH_ELEMENTS // max(largest, 1), LEAST_BATCH, MOST_BATCH))


def _takes_any_batch(state: ReconstructionState, torch_block: TorchBlock) -> bool:
    """Whether the module takes other numbers of samples than the stored batches have: a Reshape may fix the number."""
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
    """Mini-batches of a block: its inputs in the quantized model, and its outputs in the float model as targets.

    A mini-batch is made of samples, or else is one stored batch. held_out: indices of the samples, or of the stored
    batches, that are not learned from.
    """

    def __init__(self, state: ReconstructionState, block: Block, size: int | None, *, holdout: int) -> None:
        """size: samples in a mini-batch; None: one stored batch. holdout: one in so many is held out."""
        self.stored, self.padding, self.device = state.stored, state.problem.padding, state.problem.device
        self.block, self.size = block, size or 1
        by_sample = size is not None
        total = self.stored.count(by_sample=by_sample)
        held_out = max(1, total // holdout)
        self.read: Callable[[np.ndarray], Batch] = self._read_samples if by_sample else self._read_stored_batch
        masks = self.stored.real_tokens() if self.stored.has_padding(block.outputs) else None
        # Of each sample, or of each stored batch.
        self.masks = np.concatenate(masks) if masks is not None and by_sample else masks
        self.generator = np.random.default_rng(state.problem.config.seed)
        order = self.generator.permutation(total)
        learning = order[held_out:] if total > held_out else order
        self.held_out = order[:held_out]
        self.learning = np.concatenate([learning + total * number for number in range(self.stored.passes)])

    def draw(self) -> Batch:
        """A random mini-batch of those that are learned from."""
        chosen = self.generator.choice(self.learning, min(self.size, len(self.learning)), replace=False)
        return self.read(np.sort(chosen))

    def read_held_out(self) -> Iterator[Batch]:
        return self.batches(self.held_out)

    def batches(self, indices: np.ndarray) -> Iterator[Batch]:
        """The samples, or stored batches, of these indices, a mini-batch at a time."""
        for start in range(0, len(indices), self.size):
            yield self.read(np.sort(indices[start : start + self.size]))

    def _read_samples(self, indices: np.ndarray) -> Batch:
        rows = [int(index) for index in indices]
        real = None if self.masks is None else np.stack([self.masks[row] for row in rows])
        return self._move(partial(self.stored.store.rows, indices=rows), real)

    def _read_stored_batch(self, indices: np.ndarray) -> Batch:
        number = int(indices[0])
        real = None if self.masks is None else self.masks[number]
        return self._move(partial(self.stored.store.batch, number=number), real)

    def _move(self, read: Callable[[str], np.ndarray], real: np.ndarray | None) -> Batch:
        """Inputs and targets, moved to the device; targets are zero at padding. The mask is the last input."""
        inputs = [read(self.stored.name_of(QUANTIZED, t)) for t in self.block.inputs] + ([] if real is None else [real])
        targets = [self.padding.fill_padding(t, read(f"{FLOAT}{t}"), real) for t in self.block.outputs]
        return self._to_tensors(inputs), self._to_tensors(targets)

    def _to_tensors(self, values: Sequence[np.ndarray]) -> list[torch.Tensor]:
        return [torch.from_numpy(value).to(self.device) for value in values]
