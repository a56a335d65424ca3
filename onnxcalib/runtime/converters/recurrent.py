"""LSTM, GRU and RNN, time step by time step: torch's own have another order of gates, and fewer options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .registry import Converted, OnnxGraph, OnnxNode, refuse_unless, register

Activation = Callable[[Tensor], Tensor]
State = tuple[Tensor, Tensor]  # hidden state and cell, (samples, hidden) each
# Activations without parameters, by their names in lower case.
_ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softsign": F.softsign,
}
REQUIRED = ("x", "weight", "recurrence")
OPTIONAL = ("bias", "lengths", "hidden", "cell", "peepholes")
INPUTS = (*REQUIRED, *OPTIONAL)
# For each direction whether it is reversed.
_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


class Recurrence(NamedTuple):
    """What the cell of one direction computes with.

    weight R (gates * hidden, hidden), bias (gates * hidden,), peepholes (3 * hidden,), and the activations.
    """

    weight: Tensor
    bias: Tensor
    peepholes: Tensor
    activations: Sequence[Activation]


class Recurrent(nn.Module):
    """A cell over the time steps of a sequence, in each direction; weights are inputs, as in ONNX.

    x is (time steps, samples, inputs), states are (directions, samples, hidden); with ``batch_first`` the samples come
    first in all of them. Returns the first ``outputs`` of: all hidden states (time steps, directions, samples, hidden),
    the last hidden states, the last cells. This class is RNN; the others override ``advance``.
    """

    gates = 1

    def __init__(
        self,
        directions: tuple[bool, ...],
        activations: list[Activation],
        *,
        given: Sequence[str],
        outputs: int,
        batch_first: bool,
        linear_before_reset: bool,
    ) -> None:
        super().__init__()
        self.directions, self.activations, self.given = directions, activations, given
        self.batch_first, self.outputs, self.linear_before_reset = batch_first, outputs, linear_before_reset

    def forward(self, *values: Tensor) -> tuple[Tensor, ...] | Tensor:
        """``values``: the inputs that ``given`` names, in its order."""
        inputs = dict(zip(self.given, values, strict=True))
        x, weight, recurrence = (inputs[name] for name in REQUIRED)
        bias, lengths, hidden, cell, peepholes = (inputs.get(name) for name in OPTIONAL)
        if self.batch_first:
            x = x.transpose(0, 1)
            hidden, cell = (None if state is None else state.transpose(0, 1) for state in (hidden, cell))
        size = recurrence.shape[2]
        zero = x.new_zeros(len(self.directions), x.shape[1], size)
        bias = x.new_zeros(len(self.directions), 2 * self.gates * size) if bias is None else bias
        peepholes = x.new_zeros(len(self.directions), 3 * size) if peepholes is None else peepholes
        first_hidden, first_cell = (zero if state is None else state for state in (hidden, cell))
        each = len(self.activations) // len(self.directions)
        sequences, last_hidden, last_cell = [], [], []
        for number, reverse in enumerate(self.directions):
            input_bias, recurrence_bias = bias[number].chunk(2)
            activations = self.activations[number * each : (number + 1) * each]
            direction = Recurrence(recurrence[number], recurrence_bias, peepholes[number], activations)
            drive = F.linear(x, weight[number], input_bias)
            state = (first_hidden[number], first_cell[number])
            sequence, state = self._run_direction(drive, state, direction, lengths, reverse=reverse)
            sequences.append(sequence)
            last_hidden.append(state[0])
            last_cell.append(state[1])
        results = [torch.stack(sequences, 1), torch.stack(last_hidden), torch.stack(last_cell)]
        if self.batch_first:
            results = [results[0].permute(2, 0, 1, 3), results[1].transpose(0, 1), results[2].transpose(0, 1)]
        return results[0] if self.outputs == 1 else tuple(results[: self.outputs])

    def _run_direction(
        self, drive: Tensor, state: State, recurrence: Recurrence, lengths: Tensor | None, *, reverse: bool
    ) -> tuple[Tensor, State]:
        """Hidden states of all time steps (time steps, samples, hidden), and the last state.

        drive (time steps, samples, gates * hidden): what the gates get from the inputs; lengths (samples,): valid time
        steps of each sample, None for all.
        """
        times = range(len(drive))
        sequence: list[Tensor] = [drive.new_empty(0)] * len(drive)
        for time in reversed(times) if reverse else times:
            new = self.advance(drive[time], state, recurrence)
            if lengths is None:
                state, sequence[time] = new, new[0]
                continue
            # Beyond a sample's length its state stays as it is: for the reverse direction until its last time step.
            valid = (time < lengths)[:, None]
            state = (torch.where(valid, new[0], state[0]), torch.where(valid, new[1], state[1]))
            sequence[time] = torch.where(valid, new[0], torch.zeros_like(new[0]))
        return torch.stack(sequence), state

    def advance(self, drive: Tensor, state: State, recurrence: Recurrence) -> State:
        """The state after one time step: ``H = f(drive + R H + b)``."""
        hidden, cell = state
        squash = recurrence.activations[0]
        return squash(drive + F.linear(hidden, recurrence.weight, recurrence.bias)), cell


class LSTM(Recurrent):
    """Gates in ONNX's order: input, output, forget, cell; peepholes: input, output, forget."""

    gates = 4

    def advance(self, drive: Tensor, state: State, recurrence: Recurrence) -> State:
        """``C = f(F + P_f C) C + f(I + P_i C) g(N)``, ``H = f(O + P_o C) h(C)``, with the new C in the second."""
        hidden, cell = state
        gate, squash, show = recurrence.activations
        enter, leave, keep, new = (drive + F.linear(hidden, recurrence.weight, recurrence.bias)).chunk(4, 1)
        peep_in, peep_out, peep_forget = recurrence.peepholes.chunk(3)
        cell = gate(keep + peep_forget * cell) * cell + gate(enter + peep_in * cell) * squash(new)
        return gate(leave + peep_out * cell) * show(cell), cell


class GRU(Recurrent):
    """Gates in ONNX's order: update, reset, hidden."""

    gates = 3

    def advance(self, drive: Tensor, state: State, recurrence: Recurrence) -> State:
        """``H = (1 - z) g(drive + R_h (r H)) + z H``, or ``r (R_h H)`` inside g if ``linear_before_reset``."""
        hidden, cell = state
        gate, squash = recurrence.activations
        weight, bias, split = recurrence.weight, recurrence.bias, 2 * hidden.shape[1]
        update, reset = gate(drive[:, :split] + F.linear(hidden, weight[:split], bias[:split])).chunk(2, 1)
        last = (weight[split:], bias[split:])
        back = reset * F.linear(hidden, *last) if self.linear_before_reset else F.linear(reset * hidden, *last)
        return (1 - update) * squash(drive[:, split:] + back) + update * hidden, cell


def _build(kind: type[Recurrent], node: OnnxNode, default_activations: tuple[str, ...]) -> Converted:
    attributes, op = node.attributes, node.operation_type
    direction = attributes.get("direction", "forward")
    refuse_unless(direction in _DIRECTIONS, f"{op}: direction {direction}")
    refuse_unless(not attributes.get("input_forget", 0), f"{op}: input_forget")
    refuse_unless("clip" not in attributes, f"{op}: clip")
    directions = _DIRECTIONS[direction]
    names = attributes.get("activations", list(default_activations) * len(directions))
    unknown = [name for name in names if name.lower() not in _ACTIVATIONS]
    refuse_unless(not unknown, f"{op}: activations {', '.join(unknown)}")
    module = kind(
        directions,
        [_ACTIVATIONS[name.lower()] for name in names],
        given=[name for name, value in zip(INPUTS, node.input_values, strict=False) if value],
        outputs=len(node.output_values),
        batch_first=bool(attributes.get("layout", 0)),
        linear_before_reset=bool(attributes.get("linear_before_reset", 0)),
    )
    return Converted(module, tuple(filter(None, node.input_values)))


# Version 14 adds ``layout``; 22 changes types alone.
@register("LSTM", 7, 14, 22)
def build_lstm(node: OnnxNode, graph: OnnxGraph) -> Converted:
    """With peepholes; refuses clip and coupled gates."""
    return _build(LSTM, node, ("Sigmoid", "Tanh", "Tanh"))


@register("GRU", 7, 14, 22)
def build_gru(node: OnnxNode, graph: OnnxGraph) -> Converted:
    """With the reset gate in front of the product or behind it."""
    return _build(GRU, node, ("Sigmoid", "Tanh"))


@register("RNN", 7, 14, 22)
def build_rnn(node: OnnxNode, graph: OnnxGraph) -> Converted:
    """With one activation function."""
    return _build(Recurrent, node, ("Tanh",))
