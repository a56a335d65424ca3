"""What reconstruction works on, what it stores of both models, and the one object that it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, ValueInfoProto, helper

from ..config import QuantizeConfig
from ..data import CalibrationSet
from ..graph.emit import LayerParams, emit_qdq
from ..graph.extract import extract, infer_types, needed_inputs
from ..graph.index import Index
from ..numeric.views import draw_views
from ..runtime.session import Session
from ..runtime.store import Store
from ..spec import Block, Grids, LayerScheme, QParams, QuantScheme
from .padding_mask import PaddingMask, find_real

# Prefixes of the names under which the store keeps the float model's activations, those of the quantized model, and the
# probes of a layer's output (``quantization.probes``).
FLOAT, QUANTIZED, PROBE = "float:", "quantized:", "probe:"


@dataclass(frozen=True)
class Problem:
    """What reconstruction works on and never changes: the prepared model, its scheme, the settings and the device."""

    model: ModelProto
    scheme: QuantScheme
    config: QuantizeConfig
    padding: PaddingMask
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    @cached_property
    def index(self) -> Index:
        return Index(self.model.graph)

    @cached_property
    def types(self) -> dict[str, ValueInfoProto]:
        """Types of tensors, as far as the graph tells them."""
        return infer_types(self.model)

    @cached_property
    def layers(self) -> dict[str, LayerScheme]:
        """The scheme's layers by name."""
        return {layer.name: layer for layer in self.scheme.layers}

    @property
    def threads(self) -> int:
        return self.config.threads or 0


class StoredActivations:
    """Activations of both models over the calibration set, batch by batch, on disk.

    sizes: samples of each stored batch, of all ``passes`` over the calibration set: the set itself, then views of its
    images. masks: which tokens of each stored batch count, bool (samples, tokens), None where all do. types: types of
    the stored tensors.
    """

    def __init__(self, store: Store, padding: PaddingMask, types: Mapping[str, ValueInfoProto]) -> None:
        self.store, self.padding, self.types = store, padding, dict(types)
        self.sizes: list[int] = []
        self.masks: list[np.ndarray | None] = []
        self.passes = 1

    def fill(
        self,
        samples: CalibrationSet,
        size: int,
        *,
        views: int = 0,
        axes: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        """Store the model's inputs over the whole set; they are the same in both models.

        ``views`` more passes follow with views of the images, whose rows and columns are ``axes``.
        """
        self.passes = 1 + views
        generator = np.random.default_rng(seed)
        for number in range(self.passes):
            for feeds in samples.batches(size):
                change = partial(draw_views, axes=axes, generator=generator) if number else None
                self.add(feeds, samples.count(feeds), change)

    def fill_some(self, samples: CalibrationSet, size: int, most: int) -> None:
        """Store the model's inputs for about ``most`` samples from all over the set."""
        at_once = samples.fixed_batch or 1
        starts = np.unique(np.linspace(0, len(samples) // at_once - 1, max(1, most // at_once)).astype(int)) * at_once
        chosen = [int(start) + offset for start in starts for offset in range(at_once)]
        for part in samples.split(size, chosen):
            self.add(samples.read(part), len(part))

    def add(
        self, feeds: Mapping[str, Any], count: int, change: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> None:
        """Store the model's inputs of the next batch, of ``count`` samples, as ``change`` makes them."""
        feeds = feeds if change is None else {name: change(value) for name, value in feeds.items()}
        self.add_float(feeds, count)
        for name, value in feeds.items():
            self.keep(QUANTIZED, name, value)

    def add_float(self, feeds: Mapping[str, Any], count: int) -> None:
        """The same for the float model alone."""
        self.sizes.append(count)
        self.masks.append(find_real(feeds))
        for name, value in feeds.items():
            self.keep(FLOAT, name, value)

    def keep(self, prefix: str, tensor: str, value: np.ndarray | list) -> None:
        """Store the next batch of a tensor; where nothing else tells its type, the value does."""
        self.store.append(prefix + tensor, value)
        known = self.types.get(tensor)
        if isinstance(value, np.ndarray) and not (known and known.type.WhichOneof("value")):
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            self.types[tensor] = helper.make_tensor_value_info(tensor, kind, None)

    def feeds(self, prefix: str, tensors: Iterable[str], number: int) -> dict[str, np.ndarray | list]:
        """Stored batch ``number`` of ``tensors``, by name, of the model that ``prefix`` stands for."""
        return {t: self.store.batch(prefix + t, number) for t in tensors}

    def count(self, *, by_sample: bool) -> int:
        """Samples, or else stored batches, of one pass over the calibration set."""
        return (sum(self.sizes) if by_sample else len(self.sizes)) // self.passes

    def has_padding(self, tensors: Iterable[str]) -> bool:
        """Whether some of these tensors count tokens, not all of which count."""
        return any(mask is not None for mask in self.masks) and any(t in self.padding.axes for t in tensors)

    def real_tokens(self) -> list[np.ndarray]:
        """The masks of all batches where some have padding, those too in which all tokens count."""
        length = next(mask.shape[1] for mask in self.masks if mask is not None)
        pairs = zip(self.masks, self.sizes, strict=True)
        return [np.ones((size, length), bool) if mask is None else mask for mask, size in pairs]

    def forget(self, later: set[str]) -> None:
        """Drop what is stored of tensors that are not among those read later; probes stay."""
        for name in self.store.names():
            if name.partition(":")[2] not in later and not name.startswith(PROBE):
                self.store.drop(name)


@dataclass
class ReconstructionState:
    """What reconstruction knows so far: the one object that its functions change.

    grids: of all activations, first as they were calibrated. layers: what each layer has become. frozen: tensors whose
    grids must not change any more, as later layers were solved on them.
    """

    problem: Problem
    stored: StoredActivations
    grids: Grids
    layers: dict[str, LayerParams] = field(default_factory=dict)
    frozen: set[str] = field(default_factory=set)

    def input_grid(self, layer: LayerScheme) -> QParams | None:
        """The grid on which a layer reads its input; None where that is float."""
        return self.grids.of_input(layer)

    def float_subgraph(self, block: Block, outputs: Sequence[str]) -> ModelProto:
        """The float model from the block's inputs, as far as they are read, to ``outputs``."""
        problem, inputs = self.problem, self.inputs_read(block, outputs)
        return extract(problem.model, self.stored.types, inputs=inputs, outputs=outputs)

    def quantized_subgraph(self, block: Block, outputs: Sequence[str]) -> ModelProto:
        """The same part with the grids and the layers as they are now."""
        return emit_qdq(self.float_subgraph(block, outputs), self.problem.scheme, self.grids, self.layers)

    def inputs_read(self, block: Block, outputs: Sequence[str]) -> list[str]:
        """Inputs of the block on which ``outputs`` depend."""
        return needed_inputs(self.problem.index, block.inputs, outputs)


class SubgraphRunner:
    """Tensors inside a block, computed batch by batch from its stored inputs; inputs themselves are passed through."""

    def __init__(self, state: ReconstructionState, block: Block, tensors: Sequence[str], *, quantized: bool):
        self.stored = state.stored
        self.prefix = QUANTIZED if quantized else FLOAT
        self.given = [t for t in tensors if t in block.inputs]
        inner = [t for t in tensors if t not in block.inputs]
        self.session = _open(state, block, inner, quantized=quantized) if inner else None

    def run(self, number: int) -> dict[str, np.ndarray]:
        """The tensors, by name, of stored batch ``number``."""
        values = self.stored.feeds(self.prefix, self.given, number)
        if self.session is not None:
            values |= self.session.run(self.stored.feeds(self.prefix, self.session.inputs, number))
        return values


def run_block(state: ReconstructionState, block: Block, later: set[str], *, quantized: bool) -> None:
    """Compute the block's outputs over the whole set from its stored inputs, into the store.

    Only outputs that are read later are computed, and those that are the targets of the block's own layers.
    """
    stored, prefix = state.stored, QUANTIZED if quantized else FLOAT
    kept = later.union(() if quantized or not block.layers else block.outputs)
    outputs = [t for t in block.outputs if t in kept and f"{prefix}{t}" not in stored.store]
    if not outputs:
        return
    session = _open(state, block, outputs, quantized=quantized)
    for number in range(len(stored.sizes)):
        for name, value in session.run(stored.feeds(prefix, session.inputs, number)).items():
            stored.keep(prefix, name, value)


def _open(state: ReconstructionState, block: Block, outputs: Sequence[str], *, quantized: bool) -> Session:
    make = state.quantized_subgraph if quantized else state.float_subgraph
    return Session(make(block, outputs), name=f"block {block.name}", threads=state.problem.threads)


def read_later(state: ReconstructionState, blocks: Sequence[Block], end: set[str]) -> list[set[str]]:
    """For each block the tensors that the blocks behind it need to be solved and learned, and those of ``end``."""
    later = [end]
    for block in reversed(blocks[1:]):
        needed = [t for t in block.outputs if t in later[0]]
        read = block.inputs if block.layers else state.inputs_read(block, needed)
        later.insert(0, later[0].union(read))
    return later
