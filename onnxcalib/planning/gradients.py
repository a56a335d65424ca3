"""How much each weight matters to the outputs: the mean square of its gradient, of random scores of the float model.

One pass through torch, forwards and backwards, serves all layers and all bits (see ``numeric.fisher``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import ConfigError, first_line
from ..graph.index import Index, known_constant
from ..graph.layout import count_inputs, to_rows
from ..graph.load import inputs_of
from ..graph.ops import MATRIX_LAYERS
from ..graph.stream import model_bytes
from ..numeric.fisher import draw_score, share_of_solved
from ..quantization.column_choice import MOST_INPUTS
from ..quantization.compared import Compared
from ..quantization.learn import check_parity
from ..quantization.output_parts import take_parts
from ..quantization.padding_mask import find_real
from ..quantization.prepared import Prepared
from ..runtime.blocks import BlockError, layer_module, place, return_also, to_torch
from ..runtime.device import lacks_memory
from ..runtime.session import Session
from ..spec import LayerScheme

# The module is a copy of all weights, and its gradients' squares another.
MOST_MODEL_BYTES = 2**31 - 1
# Samples and positions of their outputs behind which no more samples are taken. (SmolLM2-135M, 24 samples of 128
# tokens: the losses of single layers lie within 0.8 to 1.4 of those measured.)
MOST_SAMPLES, MOST_POSITIONS = 64, 8192


@dataclass(frozen=True)
class Sensitivity:
    """What the outputs feel of the weights of each layer or table.

    squares: mean square of the gradients of its weights, as rows (G, C, K) of ``to_rows``. remaining: the share of the
    loss of rounded weights that is left where a layer's integers are solved; 1 for what is rounded alone.
    """

    squares: dict[str, torch.Tensor]
    remaining: dict[str, float]


def measure_gradients(prepared: Prepared, layers: Sequence[LayerScheme], compared: Compared) -> Sensitivity:
    """What the outputs ``compared`` feel of these layers. Raises ConfigError where torch cannot run the model."""
    size = model_bytes(prepared.model)
    try:
        if size > MOST_MODEL_BYTES:
            most = MOST_MODEL_BYTES / 2**20
            raise BlockError(f"the model has {size / 2**20:.0f} MB, more than the {most:.0f} MB for torch")
        return _Gradients(prepared, layers, compared).run()
    except BlockError as error:
        raise ConfigError(
            f"plan: found a model that torch does not take ({error}); bits of weights alone are planned by gradients,"
            " which need that; give the bits yourself"
        ) from error


class _Tap(nn.Module):
    """Passes a tensor on, and keeps the gradient with respect to it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.added = torch.zeros_like(x, requires_grad=True)
        return x + self.added


class _Gradients:
    """Sums the squares of gradients, sample by sample.

    sums: layer -> of its weight as torch has it; table -> rows as stored.
    """

    def __init__(self, prepared: Prepared, layers: Sequence[LayerScheme], compared: Compared) -> None:
        self.prepared, self.compared = prepared, compared
        self.index, self.device = Index(prepared.model.graph), prepared.run.device
        self.layers = [layer for layer in layers if layer.op != "Gather"]
        self.tables = [layer for layer in layers if layer.op == "Gather"]
        self.inputs = [value.name for value in inputs_of(prepared.model)]
        self.outputs = [value.name for value in prepared.model.graph.output]
        self.generator = torch.Generator().manual_seed(prepared.config.seed)
        self.module = to_torch(prepared.model)
        self._check_parity()
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
        self.sums: dict[str, torch.Tensor] = {}
        self.taps: dict[str, _Tap] = {}
        for layer in self.tables:
            self.taps[layer.name] = _Tap()
            place(self.module, layer.output, self.taps[layer.name])
            self.sums[layer.name] = torch.zeros(tuple(self.index.initializers[layer.weight].dims), device=self.device)
        self.looked_up = [t for t in dict.fromkeys(k.input for k in self.tables) if t not in self.index.initializers]
        return_also(self.module, self.looked_up)
        self.module.to(self.device)
        self.moments: dict[str, torch.Tensor] = {}
        for layer in self.layers:
            self._sum_squares(layer)
            self._sum_moments(layer)

    def _check_parity(self) -> None:
        feeds = next(iter(self.prepared.samples.batches(1)))
        session = Session(self.prepared.model, threads=self.prepared.run.threads)
        check_parity(self.module, self.prepared.model, feeds, list(session.run(feeds, self.outputs).values()))

    def _sum_squares(self, layer: LayerScheme) -> None:
        """Add the square of the weight's gradient as soon as it is known, so that one gradient is held at a time."""
        weight = layer_module(self.module, layer.name).weight
        assert isinstance(weight, torch.Tensor), layer.name
        total = self.sums[layer.name] = torch.zeros_like(weight)

        def add(weight: torch.Tensor) -> None:
            if weight.grad is not None:
                total.addcmul_(weight.grad, weight.grad)
                weight.grad = None

        weight.requires_grad_(True)
        weight.register_post_accumulate_grad_hook(add)

    def _sum_moments(self, layer: LayerScheme) -> None:
        """Add up ``X^T X`` (K, K) over the inputs of a matrix, once for those that read the same tensor."""
        inputs = count_inputs(self.index.initializers[layer.weight].dims, layer)
        if layer.op not in MATRIX_LAYERS or layer.input in self.moments or inputs > MOST_INPUTS:
            return
        total = self.moments[layer.input] = torch.zeros(inputs, inputs, device=self.device)

        def add(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            rows = given[0].detach().flatten(0, -2)
            total.addmm_(rows.T, rows)

        layer_module(self.module, layer.name).register_forward_pre_hook(add)

    def run(self) -> Sensitivity:
        count = 0
        for feeds in self._list_feeds():
            self._backward(feeds)
            count += 1
        squares = {k.name: self._take_rows(k) / count for k in (*self.layers, *self.tables)}
        shares = {tensor: share_of_solved(moments) for tensor, moments in self.moments.items()}
        return Sensitivity(squares, {k.name: shares.get(k.input, 1.0) for k in self.layers})

    def _list_feeds(self) -> Iterator[Mapping[str, Any]]:
        """Samples one by one, of MOST_SAMPLES and MOST_POSITIONS the fewer."""
        samples = min(MOST_SAMPLES, max(1, MOST_POSITIONS // self.compared.positions), len(self.prepared.samples))
        for number, feeds in enumerate(self.prepared.samples.batches(1)):
            if number >= samples:
                return
            yield feeds

    def _backward(self, feeds: Mapping[str, Any]) -> None:
        """Add the squares of one sample's gradients."""
        inputs = [torch.from_numpy(np.asarray(feeds[name], order="C")).to(self.device) for name in self.inputs]
        try:
            values = self.module(*inputs)
            given = dict(zip(self.outputs, values, strict=False))
            score = self._draw(given, find_real(feeds))
            score.backward()
        except BlockError:
            raise
        except Exception as error:  # torch and onnx2torch's modules may raise anything
            if lacks_memory(error):
                raise
            raise BlockError(f"torch cannot run the model ({first_line(error)})") from error
        indices = dict(zip(self.looked_up, values[len(self.outputs) :], strict=True))
        for table in self.tables:
            self._add_table(table, indices)

    def _draw(self, given: Mapping[str, torch.Tensor], real: np.ndarray | None) -> torch.Tensor:
        """A random score of all outputs that are compared, which weigh the same."""
        mask = None if real is None else torch.from_numpy(real).to(self.device)
        parts = [
            (self.compared.axes.get(name), part)
            for name in self.compared.names
            if given[name].requires_grad
            for _, (part,) in take_parts(
                self.prepared.parts, name, self.prepared.padding.fill_padding(name, given[name], mask)
            )
        ]
        if not parts:
            raise BlockError("no output has a gradient")
        scores = [draw_score(part, axis, self.generator) for axis, part in parts]
        return reduce(torch.add, scores) / math.sqrt(len(scores))

    def _add_table(self, table: LayerScheme, indices: Mapping[str, torch.Tensor]) -> None:
        """Add the squares of the gradients of a table's rows, each summed over all places that look it up."""
        tap, total = self.taps[table.name], self.sums[table.name]
        given, gradient = indices.get(table.input), tap.added.grad
        if gradient is None:
            return
        if given is None:
            given = torch.from_numpy(known_constant(self.index, table.input).copy()).to(self.device)
        rows, places = torch.unique(given.flatten().long() % len(total), return_inverse=True)
        summed = torch.zeros(len(rows), total.shape[1], device=self.device)
        summed.index_add_(0, places, gradient.reshape(len(places), -1))
        total[rows] += summed.square()

    def _take_rows(self, layer: LayerScheme) -> torch.Tensor:
        """The sums as rows; what torch has as a Linear is rows already."""
        total = self.sums.pop(layer.name).cpu()
        if layer.op in ("Conv", "ConvTranspose"):
            return torch.from_numpy(to_rows(total.numpy(), layer))
        return total[None]
