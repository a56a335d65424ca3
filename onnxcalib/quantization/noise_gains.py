"""How noise in front of a layer and behind it changes the model's outputs, channel by channel.

Noise e of one tensor changes the outputs by J e, with the Jacobian J of the float model. Where e is white and v a
random vector of signs, the mean of ``|J e|^2`` is that of ``(v^T J)^2``, summed over places, times the power of e.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial, reduce

import numpy as np
import torch
from onnx import ModelProto
from torch import nn

from ..data import CalibrationSet
from ..graph.load import inputs_of
from ..graph.stream import model_bytes
from ..numeric.equalize import Gains
from ..runtime.blocks import BlockError, layer_module, to_torch
from ..runtime.session import Session
from .batches import batch_size
from .learn import check_parity
from .probes import MOST_BYTES, MOST_MODEL_BYTES, refusing

# Samples, and random vectors for each.
SAMPLES, DIRECTIONS = 64, 4


def measure_gains(
    model: ModelProto, layers: Mapping[str, str], samples: CalibrationSet, threads: int = 0
) -> dict[str, Gains]:
    """The gains of layers, relative to the power of the outputs; none where torch cannot tell those of all of them.

    layers: Conv or Gemm, each with the tensor that it gives, which has channels on axis 1.
    """
    if model_bytes(model) > MOST_MODEL_BYTES:
        return {}
    session = Session(model, also=list(layers.values()), name="the prepared model", threads=threads)
    size = batch_size(session, samples, MOST_BYTES)
    chosen = range(0, len(samples), max(1, len(samples) // SAMPLES))
    try:
        measuring = _Measuring(model, layers)
        for part in samples.split(size, chosen):
            measuring.add(session, samples.read(part))
        return measuring.read_gains()
    except BlockError:
        return {}


class _Measuring:
    """The float model in torch, with what each layer read and gave in its last run."""

    def __init__(self, model: ModelProto, layers: Mapping[str, str]) -> None:
        self.model, self.layers, self.runs = model, list(layers), 0
        self.module = to_torch(model).requires_grad_(False)
        self.read: dict[str, torch.Tensor] = {}
        self.given: dict[str, torch.Tensor] = {}
        self.sums: list[np.ndarray] = []
        self.generator = torch.Generator().manual_seed(0)
        for name in self.layers:
            part = layer_module(self.module, name)
            part.register_forward_pre_hook(partial(self._keep_read, name))
            part.register_forward_hook(partial(self._keep_given, name))

    def _keep_read(self, name: str, _part: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        self.read[name] = inputs[0].view_as(inputs[0])  # whose gradient is by this layer alone
        return (self.read[name],)

    def _keep_given(self, name: str, _part: nn.Module, _inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        self.given[name] = output

    def add(self, session: Session, feeds: Mapping[str, np.ndarray]) -> None:
        """Take in a run. Raises BlockError where torch does not run the model, or not as onnxruntime does."""
        if not self.runs:
            wanted = session.run(feeds, [each.name for each in self.model.graph.output])
            check_parity(self.module, self.model, feeds, list(wanted.values()))
        inputs = [torch.from_numpy(np.asarray(feeds[each.name], order="C")) for each in inputs_of(self.model)]
        with refusing():
            outputs = self.module(*(x.requires_grad_(x.is_floating_point()) for x in inputs))
            moved = [each for each in outputs if each.requires_grad]
            kept = [*(self.read[name] for name in self.layers), *(self.given[name] for name in self.layers)]
            for number in range(DIRECTIONS if moved else 0):
                score = reduce(torch.add, map(self._along_direction, moved))
                gradients = torch.autograd.grad(score, kept, retain_graph=number < DIRECTIONS - 1)
                found = [each.square().reshape(*each.shape[:2], -1).sum((0, 2)).double().numpy() for each in gradients]
                self.sums = [a + b for a, b in zip(self.sums, found, strict=True)] if self.sums else found
        self.runs += 1

    def _along_direction(self, output: torch.Tensor) -> torch.Tensor:
        """The component of an output along a random vector of signs, relative to its norm."""
        signs = torch.randint(2, output.shape, generator=self.generator) * 2 - 1
        length = float(torch.linalg.vector_norm(output.detach()))
        component: torch.Tensor = (output * signs).sum() / (length or 1.0)
        return component

    def read_gains(self) -> dict[str, Gains]:
        """The gains by the runs taken in; none where no output depends on a layer, or some gain is not finite."""
        if not self.sums or not all(np.isfinite(each).all() for each in self.sums):
            return {}
        found = [each / (self.runs * DIRECTIONS) for each in self.sums]
        count = len(self.layers)
        return {name: Gains(found[i], found[count + i]) for i, name in enumerate(self.layers)}
