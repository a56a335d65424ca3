"""Solve LSTM, GRU and RNN for the integers of both weights, on what the float model reads and on its own states.

The weight of what is read is solved on the moments of that, over all steps. The weight of the states is solved on those
of the states before each step, which are the float model's, and which the reset gate of a GRU may have multiplied. For
an operator on integers both are rounded as it will round them: what is read by the range of a run, and states by that
of a step. Mean errors go into the biases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto

from ..graph.edit import copy_model
from ..graph.index import Index, attribute_of, known_constant
from ..graph.layer_params import LayerParams
from ..graph.recurrent import BIAS, FIRST_STATE, GRU, INPUT, LENGTHS, STATES, WEIGHT, input_of
from ..graph.weight_file import put_integers
from ..numeric.gram import MomentSum
from ..numeric.prior import Prior, choose_prior
from ..numeric.rounding import fake_quantize_dynamically
from ..numeric.solve import Solution, round_layer, solve_layer
from ..runtime.session import Session
from ..spec import LayerScheme, QParams, QuantScheme, QuantSpec
from .column_choice import MOST_INPUTS, PRIOR_HOLDOUT
from .padding_mask import find_real
from .prepared import Prepared

# Runs that the samples make at least, so that some of them can be held out and few steps have a range in common.
LEAST_RUNS = 8


def solve_recurrent(prepared: Prepared, batch: int, decisions: str) -> dict[str, LayerParams]:
    """LayerParams of every recurrent layer of the scheme, solved where the settings do, and otherwise rounded.

    batch: samples in a run at most. decisions: see ``digest_decisions``.
    """
    layers = prepared.scheme.recurrent
    if not layers:
        return {}
    if not prepared.config.does("reconstruct"):
        return round_recurrent(Index(prepared.model.graph), prepared.scheme)

    def solve() -> dict[str, LayerParams]:
        return solve_on_states(prepared, batch)

    return prepared.run.checkpoints.recall(f"recurrent-{decisions[:16]}", solve, dict[str, LayerParams])


def round_recurrent(index: Index, scheme: QuantScheme) -> dict[str, LayerParams]:
    """LayerParams of every recurrent layer by rounding alone."""
    return {layer.name: _Cell(layer, index).make_params() for layer in scheme.recurrent}


def solve_on_states(prepared: Prepared, batch: int) -> dict[str, LayerParams]:
    """LayerParams of every recurrent layer of the scheme, solved on the states of the float model."""
    model, run, samples = _give_all_states(prepared), prepared.run, prepared.samples
    index = Index(model.graph)
    found = [_Cell(layer, index) for layer in prepared.scheme.recurrent]
    _share(found)
    session = Session(model, also=sorted({t for each in found for t in each.tensors}), threads=run.threads)
    made = [name for name in session.outputs if any(name in each.tensors for each in found)]
    size = max(1, min(batch, len(samples) // LEAST_RUNS))
    done = 0
    for number, feeds in enumerate(samples.batches(size)):
        values, count = {**feeds, **session.run(feeds, made)}, samples.count(feeds)
        for each in found:
            held = np.arange(done, done + count) if samples.batched else np.full(count, number)
            mask = prepared.padding.mask_of(each.layer.input, values[each.layer.input].shape, find_real(feeds))
            each.add(values, held % PRIOR_HOLDOUT == PRIOR_HOLDOUT - 1, mask)
        done += count
    solved = {}
    for each in found:
        params = each.solve(prepared.config.search_width(each.layer.weight_spec.bits))
        if params is None:
            reason = "no finite value of what it reads or of its states, or too many of them; its weights are rounded"
            run.leave_out(f"solving of {each.layer.name}", reason)
        solved[each.layer.name] = params or each.make_params()
    return solved


def _share(cells: Sequence[_Cell]) -> None:
    """Let cells with a weight in common solve it on what all of them read, so that the file stores it once."""
    inputs: dict[Any, _Sums] = {}
    states: dict[Any, list[_Sums]] = {}
    for each in cells:
        how = each.layer.weight_spec, each.layer.dynamic, each.resets, each.known_gate
        each.inputs = inputs.setdefault((each.node.input[WEIGHT], *how[:2]), each.inputs)
        each.states = states.setdefault((each.node.input[STATES], *how), each.states)


def _give_all_states(prepared: Prepared) -> ModelProto:
    """The model, or a copy, in which every recurrent layer of the scheme gives the states of all steps."""
    names = {layer.name for layer in prepared.scheme.recurrent}
    if all(node.output[0] for node in prepared.model.graph.node if node.name in names):
        return prepared.model
    copy = copy_model(prepared.model)
    for node in copy.graph.node:
        if node.name in names and not node.output[0]:
            node.output[0] = f"{node.name}_states"
    return copy


@dataclass
class _Sums:
    """The moments on which one weight is solved: of the samples that are fitted, and of those held out.

    rows: the weight (G, C, K). spec: of the weight.
    """

    rows: torch.Tensor
    spec: QuantSpec
    sums: tuple[MomentSum, MomentSum] = field(default_factory=lambda: (MomentSum(), MomentSum()))

    def add(self, rounded: torch.Tensor, values: torch.Tensor, held: np.ndarray, kept: np.ndarray) -> None:
        """Add what is read as it is rounded, and as it is, (G, steps, samples, K).

        held (samples): whether a sample is held out. kept (steps, samples): whether a step is none of padding.
        """
        if not self.fits:
            return
        for total, part in zip(self.sums, (~held, held), strict=True):
            chosen = torch.from_numpy(kept & part)
            total.add(rounded[:, chosen].mT, values[:, chosen].mT)

    @property
    def fits(self) -> bool:
        return self.rows.shape[2] <= MOST_INPUTS

    def solve(self, width: int) -> Solution | None:
        """The solution; None without any finite column. width: see ``solve_layer``."""
        seen = [replace(total.centre(), of_input=True) for total in self.sums if total.columns]
        if not seen or not all(moments.seen_finite and moments.finite for moments in seen):
            return None
        prior, moments = Prior(), seen[0]
        if len(seen) > 1:
            prior, moments = choose_prior(seen[0], seen[1], self.rows), seen[0].pooled(seen[1])
        summing = torch.arange(self.rows.shape[2])
        return solve_layer(moments, self.rows, self.spec, prior=prior, width=width, summing=summing).cpu()

    def round(self) -> Solution:
        """The solution that rounding alone gives, of which the bias is 0."""
        return round_layer(self.rows, self.spec, summing=torch.arange(self.rows.shape[2]))


class _Cell:
    """A recurrent layer, the moments of both its weights, and its parameters.

    tensors: what it has to see of the float model. inputs: of W, both directions of which read the same, so that their
    rows are solved as those of one. states: of R, in parts (D, C, H) whose rows read the same: those of a GRU's new
    values may read states that its reset gate has multiplied.
    """

    def __init__(self, layer: LayerScheme, index: Index) -> None:
        self.layer, self.index = layer, index
        self.node: NodeProto = index.nodes[layer.name]
        self.weight, states = (known_constant(index, self.node.input[number]) for number in (WEIGHT, STATES))
        self.directions, self.channels, self.hidden = states.shape
        rows = self.weight.reshape(1, -1, self.weight.shape[2])
        self.inputs = _Sums(torch.from_numpy(rows.copy()), layer.weight_spec)
        self.resets = layer.op == GRU and not attribute_of(self.node, "linear_before_reset", 0)
        parts = np.split(states, [2 * self.hidden], axis=1) if self.resets else [states]
        self.states = [_Sums(torch.from_numpy(part.copy()), layer.weight_spec) for part in parts]
        given = attribute_of(self.node, "activations", [b"Sigmoid"])
        self.known_gate = all(each.lower() == b"sigmoid" for each in given[::2]) if self.resets else True
        read = (input_of(self.node, number) for number in (INPUT, LENGTHS, FIRST_STATE))
        self.tensors = {name for name in (*read, self.node.output[0]) if name and name not in index.initializers}

    def add(self, values: Mapping[str, Any], held: np.ndarray, mask: np.ndarray | None) -> None:
        """Add what it reads and its states in one run. held: whether a sample is held out; mask: of padding in those.

        Where its axis of samples has another size, all of the run is held out, or nothing.
        """
        x = np.asarray(values[self.layer.input], np.float32)
        steps, count = x.shape[:2]
        held = held if len(held) == count else np.full(count, held[0])
        lengths = self._read(values, LENGTHS)
        lengths = np.full(count, steps) if lengths is None else lengths
        kept = np.arange(steps)[:, None] < lengths
        if mask is not None:
            kept = kept & np.broadcast_to(mask, x.shape)[..., 0]
        read, before = torch.from_numpy(x)[None], torch.from_numpy(self._shift(values, lengths.astype(int))).float()
        dynamic = self.layer.dynamic
        self.inputs.add(fake_quantize_dynamically(read) if dynamic else read, read, held, kept)
        rounded = before
        if dynamic:
            rounded = torch.stack([torch.stack([*map(fake_quantize_dynamically, each)]) for each in before])
        self.states[0].add(rounded, before, held, kept)
        if self.resets and self.known_gate:
            passed = before * self._open_reset_gate(read, before)
            self.states[1].add(passed, passed, held, kept)

    def _open_reset_gate(self, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """The reset gate r (D, steps, samples, H) of a GRU: sigmoid(W_r x + R_r h + b_r)."""
        own = slice(self.hidden, 2 * self.hidden)
        weight = torch.from_numpy(self.weight[:, own].copy())
        bias = torch.from_numpy(self._find_bias().reshape(self.directions, 2, -1)[:, :, own].sum(1)).float()
        gate = x @ weight[:, None].mT + before @ self.states[0].rows[:, own][:, None].mT + bias[:, None, None]
        if limit := attribute_of(self.node, "clip", 0.0):
            gate = gate.clamp(-limit, limit)
        return gate.sigmoid()

    def _find_bias(self) -> np.ndarray:
        """The biases of W and then of R (D, 2 C), zeros where it has none."""
        bias = np.zeros((self.directions, 2 * self.channels))
        if name := input_of(self.node, BIAS):
            bias += known_constant(self.index, name)
        return bias

    def _shift(self, values: Mapping[str, Any], lengths: np.ndarray) -> np.ndarray:
        """The states (D, steps, samples, H) in front of each step; samples have so many steps."""
        given = np.asarray(values[self.node.output[0]])
        first, found = self._read(values, FIRST_STATE), []
        kind = attribute_of(self.node, "direction", b"forward")
        for number, own in enumerate(given.swapaxes(0, 1)):
            start = np.zeros_like(own[0]) if first is None else first[number]
            if kind == b"reverse" or number == 1:
                before = np.concatenate((own[1:], np.zeros_like(own[:1])))
                before[np.maximum(lengths, 1) - 1, np.arange(len(lengths))] = start
            else:
                before = np.concatenate((start[None], own[:-1]))
            found.append(before)
        return np.stack(found)

    def _read(self, values: Mapping[str, Any], number: int) -> np.ndarray | None:
        name = input_of(self.node, number)
        if not name:
            return None
        return known_constant(self.index, name) if name in self.index.initializers else np.asarray(values[name])

    def solve(self, width: int) -> LayerParams | None:
        """The parameters that fit the moments; those of rows without any are rounded. None where all rows are."""
        solutions = [each.solve(width) for each in (self.inputs, *self.states)]
        return None if all(each is None for each in solutions) else self.make_params(solutions)

    def make_params(self, solutions: Sequence[Solution | None] = (None, None, None)) -> LayerParams:
        """The parameters of the solutions of W and of the parts of R; those without one are rounded."""
        sums = (self.inputs, *self.states)
        found = [own.round() if each is None else each for own, each in zip(sums, solutions, strict=False)]
        inputs, states = found[0], Solution.join(found[1:])
        bias = self._find_bias()
        bias[:, : self.channels] += inputs.bias.reshape(self.directions, self.channels).numpy()
        bias[:, self.channels :] += states.bias.numpy()
        shape, spec = (self.directions, self.channels), self.layer.weight_spec
        params = [_spell(solution, shape, spec) for solution in (inputs, states)]
        return replace(params[0], bias=bias.astype(np.float32), states=params[1])


def _spell(solution: Solution, shape: tuple[int, int], spec: QuantSpec) -> LayerParams:
    """The integers (D, C, K) and scales (D, C), or (D, C, N) with scale blocks, of one weight. shape: (D, C)."""
    integers = solution.integers.numpy().astype(np.int8).reshape(*shape, -1)
    scale = solution.scale.numpy().astype(np.float32)
    scale = scale.reshape(shape if spec.block is None else (*shape, -1))
    if not spec.signed_scale:
        scale = np.maximum(scale, np.finfo(np.float32).tiny)
    grid = QParams(scale, np.zeros(scale.shape, np.int32), spec)
    return LayerParams(put_integers(integers, spec.bits), grid, None)
