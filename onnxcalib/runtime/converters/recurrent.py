"""LSTM, GRU and RNN, step by step: torch's own have other orders of gates, and fewer options."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .registry import Converted, OnnxGraph, OnnxNode, refuse_unless, register

Activation = Callable[[Tensor], Tensor]
# Those without parameters; names are read without regard to case.
_ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softsign": F.softsign,
}
INPUTS = ("x", "weight", "recurrence", "bias", "lengths", "hidden", "cell", "peepholes")
_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


class Recurrent(nn.Module):
    """A cell over the steps of a sequence, in each direction; weights are inputs, as they are in ONNX.

    x is (steps, samples, inputs), states (directions, samples, hidden); with ``batch_first`` samples come first in all.
    Returns the first ``outputs`` of: all hidden states (steps, directions, samples, hidden), the last ones, last cells.
    """

    gates = 1

    def __init__(self, directions: tuple[bool, ...], activations: list[Activation], **options) -> None:
        super().__init__()
        self.directions, self.activations, self.given = directions, activations, options["given"]
        self.batch_first, self.outputs = bool(options["layout"]), options["outputs"]
        self.linear_before_reset = bool(options["linear_before_reset"])

    def forward(self, *values: Tensor) -> tuple[Tensor, ...] | Tensor:
        """``values``: those of the inputs that ``given`` names."""
        given = dict(zip(self.given, values, strict=True))
        x, weight, recurrence, bias, lengths, hidden, cell, peepholes = map(given.get, INPUTS)
        if self.batch_first:
            x, hidden, cell = (None if t is None else t.transpose(0, 1) for t in (x, hidden, cell))
        size = recurrence.shape[2]
        zero = x.new_zeros(len(self.directions), x.shape[1], size)
        bias = x.new_zeros(len(self.directions), 2 * self.gates * size) if bias is None else bias
        peepholes = x.new_zeros(len(self.directions), 3 * size) if peepholes is None else peepholes
        hidden, cell = (zero if state is None else state for state in (hidden, cell))
        paths, lasts, cells = [], [], []
        for number, reverse in enumerate(self.directions):
            inner, outer = bias[number].chunk(2)
            fixed = (recurrence[number], outer, peepholes[number])
            drive = F.linear(x, weight[number], inner)
            path, last, end = self._walk(drive, (hidden[number], cell[number]), fixed, (number, reverse), lengths)
            paths.append(path)
            lasts.append(last)
            cells.append(end)
        results = [torch.stack(paths, 1), torch.stack(lasts), torch.stack(cells)]
        if self.batch_first:
            results = [results[0].permute(2, 0, 1, 3), results[1].transpose(0, 1), results[2].transpose(0, 1)]
        return results[0] if self.outputs == 1 else tuple(results[: self.outputs])

    def _walk(self, drive: Tensor, state, fixed, direction: tuple[int, bool], lengths: Tensor | None):
        """Hidden states of all steps, (steps, samples, hidden), then the last hidden state and cell."""
        number, reverse = direction
        each = len(self.activations) // len(self.directions)
        activations = self.activations[number * each : (number + 1) * each]
        places = range(len(drive))
        path: list[Tensor] = [drive.new_empty(0)] * len(drive)
        for place in reversed(places) if reverse else places:
            new = self._step(drive[place], state, fixed, activations)
            if lengths is None:
                state, path[place] = new, new[0]
                continue
            # Beyond the end of a sample its state waits, which is also where the reverse direction begins.
            inside = (place < lengths)[:, None]
            state = tuple(torch.where(inside, now, before) for now, before in zip(new, state, strict=True))
            path[place] = torch.where(inside, new[0], torch.zeros_like(new[0]))
        return torch.stack(path), *state

    def _step(self, drive: Tensor, state, fixed, activations: list[Activation]) -> tuple[Tensor, Tensor]:
        """H = f(drive + H R + b)."""
        (hidden, cell), (recurrence, bias, _) = state, fixed
        return activations[0](drive + F.linear(hidden, recurrence, bias)), cell


class LSTM(Recurrent):
    """Gates in ONNX's order: input, output, forget, cell; peepholes: input, output, forget."""

    gates = 4

    def _step(self, drive, state, fixed, activations):
        (hidden, cell), (recurrence, bias, peepholes) = state, fixed
        gate, squash, show = activations
        enter, leave, keep, new = (drive + F.linear(hidden, recurrence, bias)).chunk(4, 1)
        into, out, forget = peepholes.chunk(3)
        cell = gate(keep + forget * cell) * cell + gate(enter + into * cell) * squash(new)
        return gate(leave + out * cell) * show(cell), cell


class GRU(Recurrent):
    """Gates in ONNX's order: update, reset, hidden."""

    gates = 3

    def _step(self, drive, state, fixed, activations):
        (hidden, cell), (recurrence, bias, _) = state, fixed
        gate, squash = activations
        size = hidden.shape[1]
        update, reset = gate(drive[:, : 2 * size] + F.linear(hidden, recurrence[: 2 * size], bias[: 2 * size])).chunk(
            2, 1
        )
        last = (recurrence[2 * size :], bias[2 * size :])
        back = reset * F.linear(hidden, *last) if self.linear_before_reset else F.linear(reset * hidden, *last)
        return (1 - update) * squash(drive[:, 2 * size :] + back) + update * hidden, cell


def _build(kind: type[Recurrent], node: OnnxNode, usual: tuple[str, ...]) -> Converted:
    attributes, op = node.attributes, node.operation_type
    direction = attributes.get("direction", "forward")
    refuse_unless(direction in _DIRECTIONS, f"{op}: direction {direction}")
    refuse_unless(not attributes.get("input_forget", 0), f"{op}: input_forget")
    refuse_unless("clip" not in attributes, f"{op}: clip")
    directions = _DIRECTIONS[direction]
    names = attributes.get("activations", list(usual) * len(directions))
    unknown = [name for name in names if name.lower() not in _ACTIVATIONS]
    refuse_unless(not unknown, f"{op}: activations {', '.join(unknown)}")
    module = kind(
        directions,
        [_ACTIVATIONS[name.lower()] for name in names],
        given=[name for name, value in zip(INPUTS, node.input_values, strict=False) if value],
        layout=attributes.get("layout", 0),
        outputs=len(node.output_values),
        linear_before_reset=attributes.get("linear_before_reset", 0),
    )
    return Converted(module, tuple(filter(None, node.input_values)))


# Version 14 adds ``layout``; 22 changes types alone.
@register("LSTM", 7, 14, 22)
def build_lstm(node: OnnxNode, graph: OnnxGraph) -> Converted:
    """With peepholes; without clip and coupled gates."""
    return _build(LSTM, node, ("Sigmoid", "Tanh", "Tanh"))


@register("GRU", 7, 14, 22)
def build_gru(node: OnnxNode, graph: OnnxGraph) -> Converted:
    """With the reset gate before or behind the product."""
    return _build(GRU, node, ("Sigmoid", "Tanh"))


@register("RNN", 7, 14, 22)
def build_rnn(node: OnnxNode, graph: OnnxGraph) -> Converted:
    """Of one activation function."""
    return _build(Recurrent, node, ("Tanh",))
