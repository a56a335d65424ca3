"""A probe measures how a layer's rounding error changes the model's outputs.

An error e of a layer's output changes the model's outputs by J e, where J is the Jacobian of the float model. For a
random normal v the mean of ``(v^T J e)^2`` is ``|J e|^2``. A probe is ``v^T J``: the gradient of the outputs along v
with respect to the layer's output.

GuidedQuant (Kim et al. 2025) and BRECQ (Li et al. 2021) weight the error of each output position by its own gradient.
Here the positions of a sample are summed before they are squared, because the errors of different positions may
cancel. Most of the gain comes from this.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch

from ..config import FULL_BITS
from ..data import CalibrationSet
from ..errors import first_line
from ..graph.layout import count_inputs
from ..graph.load import inputs_of
from ..graph.stream import model_bytes
from ..runtime.blocks import BlockError, return_also, to_torch
from ..runtime.device import lacks_memory
from ..runtime.session import Session
from ..spec import LayerScheme
from .batches import batch_size
from .column_choice import MOST_INPUTS
from .learn import check_parity
from .output_parts import take_parts
from .state import FLOAT, PROBE, ReconstructionState

# For each direction so many random sums of a layer's channels are kept.
SIGNS = 8
# The layers' outputs for the samples that go through torch at once may take so many bytes.
MOST_BYTES = 64 * 2**20
# Values a sample of a map: integers fit the few random sums of a larger one that probes tell of. (A ViT-S with a map of
# 224 x 224 at W4A8, 64 images: 21.0 dB about the mean without probes, 17.8 with them, 19.6 where held-out samples say
# how far they are trusted.)
MOST_MAP_VALUES = 2**12
# Larger models are not converted to torch, where the module is a second copy of all weights.
MOST_MODEL_BYTES = 2**29
# The probes of all layers and samples are stored before the first is used.
MOST_STORED_BYTES = 2**32


class Drawn(NamedTuple):
    """The number of layers that have probes, and the reason where no layer has the probes that it should have."""

    layers: int = 0
    reason: str | None = None


def draw_probes(state: ReconstructionState, samples: CalibrationSet, directions: int) -> Drawn:
    """Store the probes of layers with weights of few bits, where they help, for every stored sample.

    The probes of a layer with P output positions are float16 (N, directions * SIGNS, P).
    """
    layers = {layer.output: layer for layer in list_probed(state)}
    if not directions or not layers:
        return Drawn()
    size = model_bytes(state.problem.model)
    if size > MOST_MODEL_BYTES:
        most = MOST_MODEL_BYTES / 2**20
        return Drawn(reason=f"the model has {size / 2**20:.0f} MB, more than the {most:.0f} MB for torch")
    session = Session(state.problem.model, also=list(layers), threads=state.problem.threads)
    reason = None
    try:
        _ProbeComputer(state, layers, directions).run(session, batch_size(session, samples, MOST_BYTES))
    except BlockError as error:
        for name in [name for name in state.stored.store.names() if name.startswith(PROBE)]:
            state.stored.store.drop(name)
        reason = str(error)
    return Drawn(sum(name.startswith(PROBE) for name in state.stored.store.names()), reason)


def list_probed(state: ReconstructionState) -> list[LayerScheme]:
    """Layers for which probes help: rounding their weights causes most of the loss, and the loss is small.

    A layer that reads activations of few bits loses more to these than to its weights. In a model with grouped
    convolutions of few-bit weights the loss is so large that the Jacobian no longer describes it (MobileNetV2 at W4A8:
    1 point less agreement with probes).
    """
    few = [layer for layer in state.problem.scheme.layers if layer.weight_spec.bits < FULL_BITS]
    if any(layer.groups > 1 for layer in few):
        return []
    return [
        layer
        for layer in few
        if layer.activation_spec.bits == FULL_BITS
        and layer.op != "ConvTranspose"
        and count_inputs(state.problem.index.initializers[layer.weight].dims, layer) <= MOST_INPUTS
    ]


class _ProbeComputer:
    """Computes probes by backpropagation through the float model in torch.

    layers: tensor -> the layer that gives it, for the layers that may still have probes. with_gradient: those of the
    tensors that have had a gradient other than zero.
    """

    def __init__(self, state: ReconstructionState, layers: dict[str, LayerScheme], directions: int):
        self.problem, self.stored = state.problem, state.stored
        self.layers, self.directions = layers, directions
        self.module = to_torch(state.problem.model)
        self.inputs = [i.name for i in inputs_of(state.problem.model)]
        self.outputs = [o.name for o in state.problem.model.graph.output]
        self.returned = list(layers)
        self.with_gradient: set[str] = set()
        self.generator = torch.Generator().manual_seed(state.problem.config.seed)

    def run(self, session: Session, size: int) -> None:
        """Store the probes of all batches, computed for ``size`` samples at once.

        A layer that has no probes for some sample has none at all. session: the same model in onnxruntime.
        """
        self._check_parity(session, size)
        return_also(self.module, self.returned)
        self.module.to(self.problem.device)
        for number, count in enumerate(self.stored.sizes):
            feeds = self.stored.arrays(FLOAT, self.inputs, number)
            if not self.layers:
                return
            parts = []
            for start in range(0, count, size):
                rows = range(start, min(start + size, count))
                parts.append(self._compute(_take_rows(feeds, count, rows), len(rows), self._mask_rows(number, rows)))
            for tensor in [t for t in self.layers if not all(t in part for part in parts)]:
                self._drop(tensor)
            for tensor in self.layers:
                self.stored.store.append(PROBE + tensor, np.concatenate([part[tensor] for part in parts]))
            self._check_room()
        for tensor in self.layers.keys() - self.with_gradient:
            self._drop(tensor)

    def _drop(self, tensor: str) -> None:
        del self.layers[tensor]
        if PROBE + tensor in self.stored.store:
            self.stored.store.drop(PROBE + tensor)

    def _check_room(self) -> None:
        """Raise BlockError if all probes, estimated from the first batch, would take more than MOST_STORED_BYTES."""
        size = sum(self.stored.store.batch(PROBE + tensor, 0).nbytes for tensor in self.layers)
        counts = self.stored.store.counts(f"{FLOAT}{self.inputs[0]}")
        total = size * sum(counts) / counts[0]
        if total > MOST_STORED_BYTES:
            room = MOST_STORED_BYTES / 2**30
            raise BlockError(f"their probes would take {total / 2**30:.0f} GB of disk, more than {room:.0f} GB")

    def _check_parity(self, session: Session, size: int) -> None:
        count = self.stored.sizes[0]
        feeds = _take_rows(self.stored.arrays(FLOAT, self.inputs, 0), count, range(min(size, count)))
        outputs = list(session.run(feeds, self.outputs).values())
        check_parity(self.module, self.problem.model, feeds, outputs)

    def _mask_rows(self, number: int, rows: range) -> torch.Tensor | None:
        """Mask of the tokens of these samples of a batch that are no padding; None without padding."""
        mask = self.stored.masks[number]
        return None if mask is None else torch.from_numpy(mask[rows.start : rows.stop]).to(self.problem.device)

    def _compute(self, feeds: dict[str, np.ndarray], samples: int, real: torch.Tensor | None) -> dict[str, np.ndarray]:
        """Tensor -> probes (N, directions * SIGNS, P) of these samples; zero at padding."""
        inputs = [torch.from_numpy(np.asarray(feeds[t], order="C")).to(self.problem.device) for t in self.inputs]
        with refusing():
            values = self.module(*inputs)
        given, inner = values[: -len(self.returned)], values[-len(self.returned) :]
        made = {t: value for t, value in zip(self.returned, inner, strict=True) if t in self.layers}
        fill = self.problem.padding.fill_padding
        self._refuse_maps({t: v for t, v in zip(self.outputs, given, strict=True) if v.requires_grad})
        filled = {t: fill(t, v, real) for t, v in zip(self.outputs, given, strict=True) if v.requires_grad}
        outputs = [part for t, v in filled.items() for _, (part,) in take_parts(self.problem.parts, t, v)]
        if not outputs:
            raise BlockError("no output has a gradient")
        found: dict[str, list[torch.Tensor]] = {t: [] for t in made}
        for number in range(self.directions):
            score = reduce(torch.add, [self._along_direction(v) for v in outputs])
            more = number < self.directions - 1
            with refusing():
                gradients = torch.autograd.grad(score, list(made.values()), retain_graph=more, allow_unused=True)
            for tensor, gradient in zip(made, gradients, strict=True):
                if gradient is not None and gradient.dim() > 1 and len(gradient) == samples:
                    found[tensor].append(self._mix(fill(tensor, gradient, real), self.layers[tensor]))
        probes = {t: _normalize(torch.cat(parts, 1)) for t, parts in found.items() if parts}
        self.with_gradient |= {t for t, value in probes.items() if value.any()}
        return {t: value.half().cpu().numpy() for t, value in probes.items()}

    def _refuse_maps(self, outputs: Mapping[str, torch.Tensor]) -> None:
        """Raise BlockError where all outputs are maps of more than MOST_MAP_VALUES."""
        maps = {t: math.prod(v.shape[1:]) for t, v in outputs.items() if v.dim() > 3 and math.prod(v.shape[2:]) > 1}
        if len(maps) == len(outputs) and min(maps.values(), default=0) > MOST_MAP_VALUES:
            name, values = next(iter(maps.items()))
            raise BlockError(f"{name} is a map of {values:,} values, of which few random sums tell too little")

    def _along_direction(self, output: torch.Tensor) -> torch.Tensor:
        """The component of a part of an output along a random direction, relative to its norm: all weigh the same."""
        direction = torch.randn(output.shape, generator=self.generator).to(output)
        length = torch.linalg.vector_norm(output.detach().float()).clamp_min(torch.finfo(torch.float32).tiny)
        component: torch.Tensor = (output * direction).float().sum() / length
        return component

    def _mix(self, gradient: torch.Tensor, layer: LayerScheme) -> torch.Tensor:
        """Sums of the gradient's channels with random signs, (N, SIGNS, P)."""
        if layer.op == "Conv":
            channels = gradient.flatten(2)
        else:
            channels = gradient.reshape(len(gradient), -1, gradient.shape[-1]).mT
        signs = torch.randint(2, (len(channels), SIGNS, channels.shape[1]), generator=self.generator) * 2 - 1
        return signs.to(channels) @ channels


@contextmanager
def refusing() -> Iterator[None]:
    """Turn exceptions of torch and of onnx2torch's modules, which may be of any type, into BlockError.

    Errors for lack of memory are no fault of the model, and are raised as they are.
    """
    try:
        yield
    except Exception as error:
        if lacks_memory(error):
            raise
        raise BlockError(f"torch cannot run the model ({first_line(error)})") from error


def _normalize(probes: torch.Tensor) -> torch.Tensor:
    """The probes of each sample divided by their norm, so that all samples have the same weight; zero stays zero."""
    length = torch.linalg.vector_norm(probes, dim=(1, 2), keepdim=True)
    return torch.where(length.isfinite() & (length > 0), probes / length, 0.0)


def _take_rows(feeds: Mapping[str, np.ndarray], count: int, rows: range) -> dict[str, np.ndarray]:
    """These samples of a batch of ``count``; inputs without an axis of samples are not changed."""
    of_samples = {t: np.ndim(value) > 0 and len(value) == count for t, value in feeds.items()}
    return {t: value[rows.start : rows.stop] if of_samples[t] else value for t, value in feeds.items()}
