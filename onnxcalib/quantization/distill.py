"""Distillation: weights alone are trained end to end, so that the outputs follow the float model's.

Integers and scales of blocks are learned from where they were solved. No labels are needed: the loss is the divergence
of next-token distributions, or that of other outputs, by which bits of weights alone are planned too. They are learned
on three quarters of the samples. Of the other samples one half chooses the iteration, and the other half decides
whether its weights are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from ..config import FULL_BITS
from ..data.padding import MASK
from ..errors import ConfigError
from ..graph.layer_params import LayerParams
from ..graph.load import inputs_of
from ..graph.stream import model_bytes
from ..graph.weight_file import put_integers
from ..numeric.adaquant import Batch, learn_block
from ..numeric.distill import position_losses, sample_losses
from ..numeric.learned_weight import LearnedWeight
from ..progress import track
from ..runtime.blocks import BlockError, layer_module, to_torch
from ..runtime.device import lacks_memory
from ..runtime.memory import find_free
from ..runtime.session import Session
from ..spec import LayerScheme, QuantScheme
from .biases import TOO_FEW, is_better
from .compared import find_compared
from .learn import added_bias, bias_parameter, check_parity, fill_tables
from .output_parts import take_parts
from .padding_mask import find_real
from .params import dequantize_weight, spread
from .prepared import Prepared
from .state import ReconstructionState
from .unpadded import Unpadded

DISTILL, STATISTICS, BIASES = "distill", "statistics", "biases"  # stages that tune, in order
# Passes over the samples that are learned from, and steps at most.
PASSES, MOST_STEPS = 10, 256
# Samples of a step, and positions of next-token distributions in it, at most.
STEP_SAMPLES, STEP_POSITIONS = 16, 512
# One run of samples in so many is held out. The least number of deciding samples.
HOLDOUT, LEAST_DECIDING = 4, 4
# Standard errors by which the loss of these must fall. Next tokens of a sample are many, and samples few.
CERTAIN = 1.0
# The module is a copy of all weights. Positions, their best ones, gradients, two moments of Adam and the weights that
# are made of positions are others, beside which a step has its activations.
MOST_MODEL_BYTES, COPIES = 2**30, 8
READ_FLOAT = "it takes weights of less than 8 bits, and a model all of whose layers read float activations"
RECURRENT = "it takes no model with recurrent layers, whose integers torch does not have"


def distill_weights(prepared: Prepared, state: ReconstructionState) -> tuple[bool, str | None]:
    """Train the weights of all layers of less than 8 bits in the whole model, which reads floats alone.

    Returns whether layers in ``state`` changed, and a remark: why nothing was kept.
    """
    scheme = state.problem.scheme
    learned = list_learned(scheme)
    if not learned:
        return False, RECURRENT if scheme.recurrent else READ_FLOAT
    try:
        return _Tuning(prepared, state, learned).run()
    except BlockError as error:
        return False, str(error)
    except ConfigError:
        return False, "no output has finite floating-point numbers that are not all zero"


def list_learned(scheme: QuantScheme) -> list[LayerScheme]:
    """The layers that are trained; none where anything reads quantized activations."""
    if scheme.activations or scheme.recurrent or not all(layer.reads_float for layer in scheme.layers):
        return []
    few = [layer for layer in scheme.layers if layer.weight_spec.bits < FULL_BITS and layer.op != "ConvTranspose"]
    return [layer for layer in few if layer.weight_spec.axis is not None and not layer.weight_spec.power_of_two]


def list_tuning(prepared: Prepared) -> list[str]:
    """The tuning stages of the run; distillation where there are layers to train, or where it is asked for."""
    names = [name for name in (DISTILL, STATISTICS, BIASES) if prepared.does(name)]
    needed = prepared.config.distill or prepared.distills or list_learned(prepared.scheme)
    return [name for name in names if name != DISTILL or needed]


def check_room(prepared: Prepared, needed: int) -> None:
    """Raise BlockError where memory has no room: the system would end a run that has solved all layers."""
    budget = prepared.config.memory_bytes
    free = find_free() if budget is None else budget - prepared.run.resident
    if needed > free:
        raise BlockError(f"training takes {needed / 1e9:.2f} GB of memory, more than the {free / 1e9:.2f} GB there are")


class _Tuning:
    """The whole model in torch with the quantized weights, runs of samples, and the float model in onnxruntime."""

    def __init__(self, prepared: Prepared, state: ReconstructionState, learned: Sequence[LayerScheme]) -> None:
        """Raises BlockError where torch cannot run the model."""
        self.state, self.problem = state, state.problem
        model, self.samples = self.problem.model, prepared.samples
        if (size := model_bytes(model)) > MOST_MODEL_BYTES:
            most = MOST_MODEL_BYTES / 2**20
            raise BlockError(f"the model has {size / 2**20:.0f} MB, more than the {most:.0f} MB for torch")
        check_room(prepared, COPIES * size)
        self.session = Session(model, threads=self.problem.threads)
        self.inputs = [value.name for value in inputs_of(model)]
        first = self.samples.read(range(self.samples.fixed_batch or 1))
        self.compared = find_compared(prepared, self.session.run(first))
        names = [value.name for value in model.graph.output]
        module = to_torch(model)
        self.runs = self._choose_runs(module, names)
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        fill_tables(state, module, self.problem.index.nodes)
        self.learned = self._fill_layers(module, {layer.name for layer in learned})
        self.padded = any(name in self.problem.padding.axes for name in self.compared.names) and any(
            find_real(self.samples.read(run)) is not None for run in self.runs
        )
        self.module: nn.Module = _Chosen(module, [names.index(name) for name in self.compared.names])
        if self.padded:
            self.module = Unpadded(self.module, self.compared.names, self.problem.padding)
        self.module.to(self.problem.device)

    def _choose_runs(self, module: fx.GraphModule, names: Sequence[str]) -> list[list[int]]:
        """Samples by run, a few where the module takes them together. Raises BlockError where it takes no run."""
        most = STEP_POSITIONS // self.compared.positions if self.compared.axes else STEP_SAMPLES
        # Of few samples, runs that some can be held out of.
        sizes = dict.fromkeys((max(1, min(most, STEP_SAMPLES, len(self.samples) // (2 * HOLDOUT))), 1))
        for size in sizes:
            runs = self.samples.split(size)
            feeds = self.samples.read(runs[0])
            try:
                check_parity(module, self.problem.model, feeds, list(self.session.run(feeds, names).values()))
            except BlockError:
                if size == 1:
                    raise
                continue
            return runs
        raise AssertionError(sizes)

    def _fill_layers(self, module: fx.GraphModule, learned: set[str]) -> dict[str, LearnedWeight]:
        """Give layers their quantized weights, and those that are learned parameters."""
        found, made = {}, dict[tuple[str, bool], LearnedWeight]()
        for layer in self.problem.scheme.layers:
            params, part = self.state.layers[layer.name], layer_module(module, layer.name)
            turned = isinstance(part, nn.Linear) and layer.axis == 1
            if params.bias is not None:
                bias = bias_parameter(part)
                bias.copy_(torch.from_numpy(params.bias - added_bias(self.problem, layer)).to(bias))
            if layer.name not in learned:
                values = dequantize_weight(params)
                part.get_parameter("weight").copy_(torch.from_numpy(values.T if turned else values))
                continue
            first = self.problem.readers.leaders.get(layer.name, layer).name, turned
            if first not in made:  # all layers of one weight train it
                made[first] = _make_learned(part.get_parameter("weight"), params, turned=turned)
            own = made[first]
            parametrize.register_parametrization(part, "weight", own, unsafe=True)
            part.get_parameter("parametrizations.weight.original").data = torch.empty(0)  # no one reads it
            weight = part.get_submodule("parametrizations.weight.0")
            assert isinstance(weight, LearnedWeight)
            found[layer.name] = weight
        return found

    def run(self) -> tuple[bool, str | None]:
        """Learn, and put the weights into the state if they are better on the deciding samples. Raises BlockError."""
        generator = np.random.default_rng(self.problem.config.seed)
        order = generator.permutation(len(self.runs))
        held_out = max(2, len(order) // HOLDOUT)
        enough = max(2 * HOLDOUT * LEAST_DECIDING, 3 * max(map(len, self.runs)))
        if len(self.samples) >= enough:  # of which the last run may be short
            while self._count(order[:held_out:2]) < LEAST_DECIDING and held_out + 2 < len(order):
                held_out += 2
        deciding, stopping, learning = order[:held_out:2], order[1:held_out:2], order[held_out:]
        if self._count(deciding) < LEAST_DECIDING or not len(learning):
            return False, TOO_FEW.format(len(self.samples), enough)
        steps = min(MOST_STEPS, PASSES * len(learning))
        told = track(range(steps))

        def draw() -> Iterator[Batch]:
            while True:
                for number in generator.permutation(learning):
                    next(told, None)  # tells the step before
                    yield self._read(self.runs[number])

        drawn = draw()
        try:
            before = self._measure(deciding)
            outcome = learn_block(
                self.module,
                lambda: next(drawn),
                lambda: (self._read(self.runs[number]) for number in stopping),
                steps=steps,
                bias_units={},
                sums=lambda outputs, targets: self._losses(outputs, targets).sum(1),
            )
            after = self._measure(deciding)
        except RuntimeError as error:
            if lacks_memory(error):
                raise
            raise BlockError(f"torch cannot train the model ({error})") from error
        if not outcome.step:
            return False, "the loss on held-out samples did not fall"
        if not is_better(before, after, CERTAIN):
            return False, "what it gains on held-out samples is within their noise"
        for name, own in self.learned.items():
            self.state.layers[name] = _read_back(self.state.layers[name], own)
        return True, f"loss on held-out samples {before.mean():.3g} before, {after.mean():.3g} after"

    def _count(self, numbers: np.ndarray) -> int:
        """Samples in these runs."""
        return sum(len(self.runs[number]) for number in numbers)

    def _read(self, run: Sequence[int]) -> Batch:
        """The inputs of a run, with the mask of its tokens behind them if some run has padding, and the targets."""
        feeds = self.samples.read(run)
        real = find_real(feeds) if self.padded else None
        if self.padded and real is None:
            real = np.ones(feeds[MASK].shape, bool)
        given = self.session.run(feeds, list(self.compared.names))
        targets = [self.problem.padding.fill_padding(t, given[t], real) for t in self.compared.names]
        inputs = [feeds[t] for t in self.inputs] + ([] if real is None else [real])
        return self._move(inputs), self._move(targets)

    def _move(self, values: Sequence[np.ndarray]) -> list[torch.Tensor]:
        return [torch.from_numpy(np.asarray(value, order="C")).to(self.problem.device) for value in values]

    def _losses(self, outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> torch.Tensor:
        """The loss of each part of the outputs on each sample, and what it is relative to, (parts, samples, 2)."""
        found = []
        for name, *pair in zip(self.compared.names, outputs, targets, strict=True):
            axis = self.compared.axes.get(name)
            for _, (output, target) in take_parts(self.problem.parts, name, *pair):
                found.append(
                    sample_losses([output], [target])[0] if axis is None else position_losses(output, target, axis)
                )
        if len({len(each) for each in found}) > 1:
            found = [each.sum(0, keepdim=True) for each in found]
        return torch.stack(found)

    def _measure(self, numbers: np.ndarray) -> np.ndarray:
        """The loss of each part of the outputs on each sample of these runs, (parts, samples)."""
        self.module.eval()
        with torch.no_grad():
            batches = (self._read(self.runs[number]) for number in numbers)
            found = torch.cat([self._losses(self.module(*inputs), targets) for inputs, targets in batches], 1)
        errors, sizes = found.double().cpu().numpy().transpose(2, 0, 1)
        relative: np.ndarray = errors / np.maximum(sizes.mean(1, keepdims=True), np.finfo(np.float64).tiny)
        return relative


class _Chosen(nn.Module):
    """A module that returns some of its outputs."""

    def __init__(self, module: nn.Module, numbers: Sequence[int]) -> None:
        super().__init__()
        self.module, self.numbers = module, numbers

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = self.module(*inputs)
        return tuple(values[number] for number in self.numbers)


def _make_learned(weight: torch.Tensor, params: LayerParams, *, turned: bool) -> LearnedWeight:
    """weight: the float one, as torch has it; turned: the integers are (inputs, channels), unlike it."""
    grid, integers = params.grid, params.read().astype(np.float32)
    if grid.spec.has_zeros:
        integers -= spread(grid.zero_point, params)
    scale, zero = (
        each.reshape(-1, 1) if grid.spec.block is None else each.T if turned else each
        for each in (grid.scale, grid.zero_point)
    )
    tensors = [torch.from_numpy(np.array(x, order="C")) for x in (integers.T if turned else integers, scale, zero)]
    return LearnedWeight(weight.detach(), tensors[0], tensors[1], grid.spec, tensors[2])


def _read_back(params: LayerParams, learned: LearnedWeight) -> LayerParams:
    """The layer with what was learned."""
    grid = params.grid
    integers, scale = (each.detach().cpu().numpy() for each in (learned.integers, learned.scale))
    if grid.spec.axis == 1:
        integers, scale = integers.T, scale.T
    scale = scale.reshape(grid.scale.shape).astype(np.float32)
    if grid.spec.has_zeros:
        integers = integers + spread(grid.zero_point, params)
    stored = put_integers(np.ascontiguousarray(integers).astype(np.int8), grid.spec.bits)
    return LayerParams(stored, replace(grid, scale=scale), params.bias)
