"""The walk through a model's blocks: what is known so far, and the two models' activations where it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, ValueInfoProto, helper

from ..config import QuantizeConfig
from ..data import CalibrationSet
from ..graph.emit import LayerParams, emit_qdq, input_grid
from ..graph.extract import extract, needed_inputs
from ..graph.index import Index
from ..numeric.views import draw_views
from ..runtime.session import Session
from ..runtime.store import Store
from ..spec import Block, LayerScheme, QParams, QuantScheme
from .padding_mask import Padding, find_real

# Of the names under which the store keeps the probes of a layer's output (``steps.probes``).
PROBE = "probe:"


@dataclass
class ReconstructionState:
    """The walk through the blocks: what it knows so far; grids and layers grow and settle as it goes.

    sizes: samples of each stored batch, of all ``passes`` over the calibration set: itself, then views of its images.
    masks: which tokens of each stored batch count, bool (samples, tokens), None where all do; padding: where they are.
    """

    model: ModelProto
    types: dict[str, ValueInfoProto]
    scheme: QuantScheme
    config: QuantizeConfig
    store: Store
    sizes: list[int]
    activations: dict[str, QParams]
    requantized: dict[str, QParams]
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    passes: int = 1
    layers: dict[str, LayerParams] = field(default_factory=dict)
    frozen: set[str] = field(default_factory=set)
    masks: list[np.ndarray | None] = field(default_factory=list)
    padding: Padding | None = None

    def __post_init__(self) -> None:
        self.index = Index(self.model.graph)
        self.padding = self.padding or Padding(self.model)

    def fill(self, samples: CalibrationSet, size: int, axes: tuple[int, int] | None = None) -> None:
        """Store the model's inputs over the whole set; they are the same in both models.

        With ``axes``, those of an image's rows and columns, so many passes with views follow as the settings say.
        """
        self.passes = 1 + (self.config.image_views(self.scheme.least_weight_bits) if axes else 0)
        generator = np.random.default_rng(self.config.seed)
        for number in range(self.passes):
            for feeds in samples.batches(size):
                change = partial(draw_views, axes=axes, generator=generator) if number else None
                self._store(feeds, samples.count(feeds), change)

    def fill_some(self, samples: CalibrationSet, size: int, most: int) -> None:
        """Store the model's inputs for about so many samples from all over the set."""
        run = samples.fixed_batch or 1
        starts = np.unique(np.linspace(0, len(samples) // run - 1, max(1, most // run)).astype(int)) * run
        chosen = [int(start) + place for start in starts for place in range(run)]
        for part in samples.split(size, chosen):
            self._store(samples.read(part), len(part))

    def _store(self, feeds: Mapping[str, Any], count: int, change: Callable | None = None) -> None:
        self.sizes.append(count)
        self.masks.append(find_real(feeds))
        for name, value in feeds.items():
            value = value if change is None else change(value)
            self.keep("float:", name, value)
            self.keep("quantized:", name, value)

    def has_padding(self, tensors: Sequence[str]) -> bool:
        """Whether some of these tensors count tokens, not all of which count."""
        return any(mask is not None for mask in self.masks) and any(t in self.padding.axes for t in tensors)

    def real_tokens(self) -> list[np.ndarray]:
        """The masks of a walk with padding, those too in which all tokens count."""
        length = next(mask.shape[1] for mask in self.masks if mask is not None)
        pairs = zip(self.masks, self.sizes, strict=True)
        return [np.ones((size, length), bool) if mask is None else mask for mask, size in pairs]

    def count(self, *, by_sample: bool) -> int:
        """Samples, or else stored batches, of one pass over the calibration set."""
        return (sum(self.sizes) if by_sample else len(self.sizes)) // self.passes

    def keep(self, prefix: str, tensor: str, value: np.ndarray | list) -> None:
        """Store the next batch of a tensor; where nothing else tells its type, the value does."""
        self.store.append(prefix + tensor, value)
        known = self.types.get(tensor)
        if isinstance(value, np.ndarray) and not (known and known.type.WhichOneof("value")):
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            self.types[tensor] = helper.make_tensor_value_info(tensor, kind, None)

    def input_grid(self, layer: LayerScheme) -> QParams | None:
        """The grid on which a layer reads its input; None where that is float."""
        return input_grid(layer, self.activations, self.requantized)

    def float_cut(self, block: Block, outputs) -> ModelProto:
        """The float model from the block's inputs, as far as they are read, to ``outputs``."""
        return extract(self.model, self.types, inputs=self.inputs_read(block, outputs), outputs=outputs)

    def quantized_cut(self, block: Block, outputs) -> ModelProto:
        """The same part with the grids and the layers that stand by now."""
        cut = self.float_cut(block, outputs)
        return emit_qdq(cut, self.scheme, self.activations, self.requantized, self.layers)

    def inputs_read(self, block: Block, outputs) -> list[str]:
        """Inputs of the block on which ``outputs`` depend."""
        return needed_inputs(self.index, block.inputs, outputs)

    def feeds(self, prefix: str, tensors, number: int) -> dict[str, np.ndarray | list]:
        """Stored batch ``number`` of ``tensors``, by name, of the model that ``prefix`` stands for."""
        return {t: self.store.batch(prefix + t, number) for t in tensors}

    def forget(self, later: set[str]) -> None:
        """Drop what is stored of tensors that are not among those read later; probes stay."""
        for name in self.store.names():
            if name.partition(":")[2] not in later and not name.startswith(PROBE):
                self.store.drop(name)


def read_later(state: ReconstructionState, blocks: Sequence[Block], end: set[str]) -> list[set[str]]:
    """For each block the tensors that the blocks behind it need to be solved and learned, and those of ``end``."""
    later = [end]
    for block in reversed(blocks[1:]):
        read = block.inputs if block.layers else state.inputs_read(block, [t for t in block.outputs if t in later[0]])
        later.insert(0, later[0].union(read))
    return later


def run(state: ReconstructionState, block: Block, later: set[str], *, quantized: bool) -> None:
    """Compute the block's outputs over the whole set from its stored inputs, into the store.

    Those alone that are read later, or that are the targets of its own layers.
    """
    prefix = "quantized:" if quantized else "float:"
    kept = later.union(() if quantized or not block.layers else block.outputs)
    outputs = [t for t in block.outputs if t in kept and f"{prefix}{t}" not in state.store]
    if not outputs:
        return
    make = state.quantized_cut if quantized else state.float_cut
    session = Session(make(block, outputs), name=f"block {block.name}", threads=state.config.threads or 0)
    for number in range(len(state.sizes)):
        for name, value in session.run(state.feeds(prefix, session.inputs, number)).items():
            state.keep(prefix, name, value)


class SubgraphRunner:
    """Tensors inside a block, computed batch by batch from its stored inputs; inputs themselves are passed through."""

    def __init__(self, state: ReconstructionState, block: Block, tensors, *, quantized: bool):
        self.state, self.tensors = state, tensors
        self.prefix = "quantized:" if quantized else "float:"
        self.given = [t for t in tensors if t in block.inputs]
        inner = [t for t in tensors if t not in block.inputs]
        self.session = None
        if inner:
            make = state.quantized_cut if quantized else state.float_cut
            self.session = Session(make(block, inner), name=f"block {block.name}", threads=state.config.threads or 0)

    def run(self, number: int) -> dict[str, np.ndarray]:
        values = self.state.feeds(self.prefix, self.given, number)
        if self.session is not None:
            values |= self.session.run(self.state.feeds(self.prefix, self.session.inputs, number))
        return values
