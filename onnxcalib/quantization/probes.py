"""Probes: random directions of the model's outputs, pulled back to what each layer gives.

An error e of a layer's output moves the model's outputs by J e, J the float model's Jacobian, and for a normal v the
mean of ``(v^T J e)^2`` is ``|J e|^2``. What a layer's rounding does to the outputs is therefore seen through ``v^T J``
(GuidedQuant, Kim et al. 2025, from BRECQ, Li et al. 2021, weights each place by itself with it; here a sample's places
are summed first, as what one place adds another may take away, which is most of the gain).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from ..config import FULL_BITS
from ..data import CalibrationSet
from ..graph.index import constant
from ..graph.layout import to_rows
from ..graph.load import inputs_of
from ..graph.save import model_bytes
from ..runtime.blocks import BlockError, return_also, to_torch
from ..runtime.session import Session, first_line
from ..spec import LayerScheme
from .calibrate import batch_size
from .learn import check_parity
from .solve import MOST_INPUTS
from .state import FLOAT, PROBE, ReconstructionState

# Random sums of a layer's channels, as which each direction is kept.
SIGNS = 8
# What the layers give for the samples that go through torch at once may take so many bytes.
MOST_BYTES = 64 * 2**20
# Larger models stay out of torch: as one module it holds all weights once more.
MOST_MODEL_BYTES = 2**29
# The probes of all layers and samples are stored before the first is used.
MOST_STORED_BYTES = 2**32


class Drawn(NamedTuple):
    """How many layers have probes, and why none has where they were to have some."""

    layers: int = 0
    reason: str | None = None


def draw_probes(state: ReconstructionState, samples: CalibrationSet, directions: int) -> Drawn:
    """Store the probes of layers with weights of few bits, where they help, for every stored sample.

    The probes of a layer with P output positions are (N, directions * SIGNS, P).
    """
    layers = {layer.output: layer for layer in _list_layers(state)}
    if not directions or not layers:
        return Drawn()
    size = model_bytes(state.problem.model)
    if size > MOST_MODEL_BYTES:
        most = MOST_MODEL_BYTES / 2**20
        return Drawn(reason=f"the model has {size / 2**20:.0f} MB, more than the {most:.0f} MB for torch")
    session = Session(state.problem.model, also=list(layers), threads=state.problem.threads)
    reason = None
    try:
        _Puller(state, layers, directions).run(session, batch_size(session, samples, MOST_BYTES))
    except BlockError as error:
        for name in [name for name in state.stored.store.names() if name.startswith(PROBE)]:
            state.stored.store.drop(name)
        reason = str(error)
    return Drawn(sum(name.startswith(PROBE) for name in state.stored.store.names()), reason)


def _list_layers(state: ReconstructionState) -> list[LayerScheme]:
    """Layers whose rounding is most of what the outputs lose, so that the float model's Jacobian holds for it.

    Those that read few bits lose more to these than to their own weights. Few-bit weights in several groups lose so
    much that the model leaves the Jacobian's reach (MobileNetV2 at W4A8: 1 point less agreement with probes).
    """
    few = [layer for layer in state.problem.scheme.layers if layer.weight_spec.bits < FULL_BITS]
    if any(layer.groups > 1 for layer in few):
        return []
    return [
        layer
        for layer in few
        if layer.activation_spec.bits == FULL_BITS
        and layer.op != "ConvTranspose"
        and to_rows(constant(state.problem.index, layer.weight), layer).shape[2] <= MOST_INPUTS
    ]


class _Puller:
    """The float model in torch, through which directions of its outputs are pulled back."""

    def __init__(self, state: ReconstructionState, layers: dict[str, LayerScheme], directions: int):
        self.problem, self.stored = state.problem, state.stored
        self.layers, self.directions = layers, directions
        self.module = to_torch(state.problem.model)
        self.inputs = [i.name for i in inputs_of(state.problem.model)]
        self.outputs = [o.name for o in state.problem.model.graph.output]
        self.returned = list(layers)
        self.felt: set[str] = set()
        self.generator = torch.Generator().manual_seed(state.problem.config.seed)

    def run(self, session: Session, size: int) -> None:
        """Store the probes of all batches, ``size`` samples at once; of layers without any for a sample, none.

        ``session`` is the same model in onnxruntime.
        """
        self._check_parity(session, size)
        return_also(self.module, self.returned)
        self.module.to(self.problem.device)
        for number, count in enumerate(self.stored.sizes):
            feeds = self.stored.feeds(FLOAT, self.inputs, number)
            if not self.layers:
                return
            rows = [range(at, min(at + size, count)) for at in range(0, count, size)]
            parts = [self._pull(_take_rows(feeds, count, part), len(part), self._real(number, part)) for part in rows]
            for tensor in [t for t in self.layers if not all(t in part for part in parts)]:
                self._drop(tensor)
            for tensor in self.layers:
                self.stored.store.append(PROBE + tensor, np.concatenate([part[tensor] for part in parts]))
            self._check_room()
        for tensor in self.layers.keys() - self.felt:
            self._drop(tensor)

    def _drop(self, tensor: str) -> None:
        del self.layers[tensor]
        if PROBE + tensor in self.stored.store:
            self.stored.store.drop(PROBE + tensor)

    def _check_room(self) -> None:
        """Refuse what would fill the disk, from the size of the first batch."""
        size = sum(self.stored.store.batch(PROBE + tensor, 0).nbytes for tensor in self.layers)
        counts = self.stored.store.counts(f"{FLOAT}{self.inputs[0]}")
        total = size * sum(counts) / counts[0]
        if total > MOST_STORED_BYTES:
            room = MOST_STORED_BYTES / 2**30
            raise BlockError(f"their probes would take {total / 2**30:.0f} GB of disk, more than {room:.0f} GB")

    def _check_parity(self, session: Session, size: int) -> None:
        count = self.stored.sizes[0]
        feeds = _take_rows(self.stored.feeds(FLOAT, self.inputs, 0), count, range(min(size, count)))
        outputs = list(session.run(feeds, self.outputs).values())
        check_parity(self.module, self.problem.model, feeds, outputs)

    def _real(self, number: int, rows: range) -> torch.Tensor | None:
        """Which tokens of these samples of a batch count; None where all do."""
        mask = self.stored.masks[number]
        return None if mask is None else torch.from_numpy(mask[rows.start : rows.stop]).to(self.problem.device)

    def _pull(self, feeds: dict[str, np.ndarray], samples: int, real: torch.Tensor | None) -> dict[str, np.ndarray]:
        """Probes (N, directions * SIGNS, P) of these samples, by the layer's output; zero at padding."""
        inputs = [torch.from_numpy(np.ascontiguousarray(feeds[t])).to(self.problem.device) for t in self.inputs]
        blank = partial(self.problem.padding.fill_padding, real=real)
        with _refusing():
            values = self.module(*inputs)
        given, inner = values[: -len(self.returned)], values[-len(self.returned) :]
        made = {t: value for t, value in zip(self.returned, inner, strict=True) if t in self.layers}
        outputs = [blank(t, v) for t, v in zip(self.outputs, given, strict=True) if v.requires_grad]
        if not outputs:
            raise BlockError("no output has a gradient")
        found: dict[str, list[torch.Tensor]] = {t: [] for t in made}
        for number in range(self.directions):
            score = sum(self._direct(v) for v in outputs)
            more = number < self.directions - 1
            with _refusing():
                pulled = torch.autograd.grad(score, list(made.values()), retain_graph=more, allow_unused=True)
            for tensor, gradient in zip(made, pulled, strict=True):
                if gradient is not None and gradient.dim() > 1 and len(gradient) == samples:
                    found[tensor].append(self._mix(blank(tensor, gradient), self.layers[tensor]))
        probes = {t: _level(torch.cat(parts, 1)) for t, parts in found.items() if parts}
        self.felt |= {t for t, value in probes.items() if value.any()}
        return {t: value.half().cpu().numpy() for t, value in probes.items()}

    def _direct(self, output: torch.Tensor) -> torch.Tensor:
        """The output along a random direction, in units of its length: several outputs count alike."""
        direction = torch.randn(output.shape, generator=self.generator).to(output)
        length = torch.linalg.vector_norm(output.detach().float()).clamp_min(torch.finfo(torch.float32).tiny)
        return (output * direction).float().sum() / length

    def _mix(self, gradient: torch.Tensor, layer: LayerScheme) -> torch.Tensor:
        """Sums (N, SIGNS, P) of the channels under random signs."""
        if layer.op == "Conv":
            channels = gradient.flatten(2)
        else:
            channels = gradient.reshape(len(gradient), -1, gradient.shape[-1]).mT
        signs = torch.randint(2, (len(channels), SIGNS, channels.shape[1]), generator=self.generator) * 2 - 1
        return signs.to(channels) @ channels


@contextmanager
def _refusing() -> Iterator[None]:
    """Turns faults of torch and of onnx2torch's modules, which may raise anything, into BlockError.

    Too little memory says nothing of the model, and stays what it is.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise BlockError(f"{type(error).__name__}: {first_line(error)}") from error


def _level(probes: torch.Tensor) -> torch.Tensor:
    """Each sample's probes at a length of one: as many samples as can be have a say. Those without a gradient, zero."""
    length = torch.linalg.vector_norm(probes, dim=(1, 2), keepdim=True)
    return torch.where(length.isfinite() & (length > 0), probes / length, 0.0)


def _take_rows(feeds: dict[str, np.ndarray], count: int, rows: range) -> dict[str, np.ndarray]:
    """These samples of a batch of ``count``; inputs that do not count samples as they are."""
    of_samples = {t: np.ndim(value) > 0 and len(value) == count for t, value in feeds.items()}
    return {t: value[rows.start : rows.stop] if of_samples[t] else value for t, value in feeds.items()}
