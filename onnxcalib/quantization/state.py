"""What reconstruction works on, what it stores of both models, and its state, the one object that it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from onnx import ModelProto, ValueInfoProto, helper

from ..config import FULL_BITS, QuantizeConfig
from ..data import CalibrationSet
from ..errors import ModelError
from ..graph.emit import emit_qdq
from ..graph.extract import extract, infer_types, needed_inputs
from ..graph.index import Index
from ..graph.integer_ends import give_integers, read_integers
from ..graph.layer_params import LayerParams
from ..graph.weight_readers import WeightReaders
from ..layer_record import LossRecord
from ..numeric.active_sums import ColumnSum
from ..numeric.reader_sums import ReaderSums
from ..runtime.session import Session
from ..runtime.store import Store
from ..spec import Block, Grids, LayerScheme, QParams, QuantScheme
from .output_parts import Parts
from .padding_mask import PaddingMask, find_real

# Prefixes of the names under which the store keeps the float model's activations, those of the quantized model, the
# probes of a layer's output (``quantization.probes``), and its targets and shapes (``quantization.layer_targets``).
FLOAT, QUANTIZED, PROBE, TARGET, SHAPE = "float:", "quantized:", "probe:", "target:", "shape:"
# The moments of a layer are summed over so many samples or more by themselves, and then pooled, so that they are the
# same whoever sums which.
SHARE_SAMPLES = 96
# What the store holds of a tensor: arrays, or what onnxruntime makes of a sequence.
Stored = np.ndarray | list[Any]
# Of the columns of layers that are solved together: those of the samples that are fitted, and of those held out.
Sums = tuple[ColumnSum, ColumnSum]
# The same of what other layers read by the same weight.
ReaderMoments = tuple[ReaderSums, ReaderSums]


@dataclass(frozen=True)
class Problem:
    """What reconstruction works on and never changes: the prepared model, its scheme, the settings and the device.

    index: that of the whole model's graph. types: tensor -> its type, where the graph tells it. parts: of the outputs.
    """

    model: ModelProto
    scheme: QuantScheme
    config: QuantizeConfig
    padding: PaddingMask
    device: torch.device
    index: Index
    types: Mapping[str, ValueInfoProto]
    parts: Parts

    @classmethod
    def of(
        cls,
        model: ModelProto,
        scheme: QuantScheme,
        config: QuantizeConfig,
        padding: PaddingMask,
        device: torch.device | None = None,
        *,
        parts: Parts | None = None,
    ) -> Problem:
        """The problem on a device, by default the CPU, with the index and the types of the model's graph."""
        device = device or torch.device("cpu")
        return cls(model, scheme, config, padding, device, Index(model.graph), infer_types(model), parts or {})

    @cached_property
    def layers(self) -> dict[str, LayerScheme]:
        """The scheme's layers by name."""
        return {layer.name: layer for layer in self.scheme.layers}

    @cached_property
    def readers(self) -> WeightReaders:
        """Layers that have one weight, and so one set of integers."""
        return WeightReaders.find(self.index, self.scheme, self.config.encoding)

    @property
    def threads(self) -> int:
        return self.config.threads or 0

    def block_steps(self, layers: Sequence[LayerScheme], *, solved: bool) -> int:
        """AdaQuant steps of the settings for a block of these layers. solved: whether all of them are, or can be.

        None for a block that has a weight of a layer outside, as what is learned here would not do there.
        """
        if any(self.readers.has(layer.name) for layer in layers):
            return 0
        hard = any(layer.groups > 1 and layer.activation_spec.bits < FULL_BITS for layer in layers)
        return self.config.block_steps(solved=solved, hard=hard)


class Views(Protocol):
    """Views of each sample that are stored beside the sample itself: how many, and how a batch of them is drawn."""

    @property
    def count(self) -> int: ...

    def draw(self, feeds: Mapping[str, Any], generator: np.random.Generator) -> Mapping[str, Any]: ...


class StoredActivations:
    """Activations of both models over the calibration set, batch by batch, on disk.

    sizes: samples of each stored batch, in all ``passes`` over the calibration set; the first stores the samples, the
    others store views of them. own: the numbers of the batches that are stored here; None: all of them are.
    masks: for each stored batch the mask of the tokens that are no padding, bool (samples, tokens), or None without
    padding. types: types of the stored tensors. integers: those of the quantized model are stored as the integers on
    their grids where these have 8 bits, as the grids do not change any more.
    """

    def __init__(self, store: Store, padding: PaddingMask, types: Mapping[str, ValueInfoProto]) -> None:
        self.store, self.padding, self.types = store, padding, dict(types)
        self.sizes: list[int] = []
        self.masks: list[np.ndarray | None] = []
        self.passes = 1
        self.own: range | None = None
        self.integers = False

    @property
    def numbers(self) -> range:
        """The stored batches that are here, by their numbers in all of the set."""
        return range(len(self.sizes)) if self.own is None else self.own

    @property
    def shares(self) -> list[range]:
        """The batches that are here in runs of SHARE_SAMPLES or more: those of all batches, wherever they are."""
        count = len(self.sizes)
        parts = max(1, min(sum(self.sizes) // SHARE_SAMPLES, count))
        ends = [round(count * (part + 1) / parts) for part in range(parts)]
        found = [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        return [share for share in found if share.start in self.numbers]

    def place(self, number: int) -> int:
        """Where the store has the batch of this number."""
        return number - self.numbers.start

    def fill(
        self,
        samples: CalibrationSet,
        size: int,
        *,
        views: Views | None = None,
        seed: int = 0,
        quantized: CalibrationSet | None = None,
    ) -> None:
        """Store the inputs of both models, which are the same, over the whole set: ``size`` samples a batch at most.

        ``views.count`` passes over the set follow, each of which stores one view of every sample. quantized: inputs of
        the quantized model where they are others, which have the same shapes.
        """
        size = samples.fixed_batch or min(size, SHARE_SAMPLES // 2)  # so that shares are about even
        if quantized is not None:
            for feeds, others in zip(samples.batches(size), quantized.batches(size), strict=True):
                self.add(feeds, samples.count(feeds), others)
            return
        for feeds in samples.batches(size):
            self.add(feeds, samples.count(feeds))
        if views is None:
            return
        self.passes = 1 + views.count
        generator = np.random.default_rng(seed)
        for _ in range(views.count):
            for feeds in samples.batches(size):
                self.add(views.draw(feeds, generator), samples.count(feeds))

    def fill_some(
        self, samples: CalibrationSet, size: int, most: int, *, quantized: CalibrationSet | None = None
    ) -> None:
        """Store the model's inputs for about ``most`` samples, spread evenly over the set; ``quantized`` as above."""
        at_once = samples.fixed_batch or 1
        starts = np.unique(np.linspace(0, len(samples) // at_once - 1, max(1, most // at_once)).astype(int)) * at_once
        chosen = [int(start) + offset for start in starts for offset in range(at_once)]
        for part in samples.split(size, chosen):
            self.add(samples.read(part), len(part), None if quantized is None else quantized.read(part))

    def add(self, feeds: Mapping[str, Any], count: int, quantized: Mapping[str, Any] | None = None) -> None:
        """Store the inputs of both models for the next batch, of ``count`` samples; ``quantized`` are the others'."""
        self.add_float(feeds, count)
        for name, value in (quantized or feeds).items():
            self.keep(QUANTIZED, name, value)

    def add_float(self, feeds: Mapping[str, Any], count: int) -> None:
        """Store the inputs of the float model alone for the next batch, of ``count`` samples."""
        self.sizes.append(count)
        self.masks.append(find_real(feeds))
        for name, value in feeds.items():
            self.keep(FLOAT, name, value)

    def name_of(self, prefix: str, tensor: str) -> str:
        """The name under which the store keeps a tensor, FLOAT or QUANTIZED."""
        return prefix + tensor

    def keep(self, prefix: str, tensor: str, value: Stored, *, integers: bool = False) -> None:
        """Store the next batch of a tensor. Where the graph does not tell the tensor's type, the value does.

        integers: the values are those on the tensor's grid.
        """
        self.store.append(self.name_of(prefix, tensor), value)
        known = self.types.get(tensor)
        if isinstance(value, np.ndarray) and not (known and known.type.WhichOneof("value")):
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(np.float32) if integers else value.dtype)
            self.types[tensor] = helper.make_tensor_value_info(tensor, kind, None)

    def feeds(self, prefix: str, tensors: Iterable[str], number: int) -> dict[str, Stored]:
        """Stored batch ``number`` of the tensors by name, FLOAT or QUANTIZED."""
        return {t: self.store.batch(self.name_of(prefix, t), self.place(number)) for t in tensors}

    def arrays(self, prefix: str, tensors: Iterable[str], number: int) -> dict[str, np.ndarray]:
        """The same for tensors that the caller knows to be no sequences."""
        values: dict[str, Any] = dict(self.feeds(prefix, tensors, number))
        return values

    def count(self, *, by_sample: bool) -> int:
        """The number of samples in one pass over the calibration set, or of stored batches."""
        return (sum(self.sizes) if by_sample else len(self.sizes)) // self.passes

    def has_padding(self, tensors: Iterable[str]) -> bool:
        """Whether some of these tensors hold padding in some batch."""
        return any(mask is not None for mask in self.masks) and any(t in self.padding.axes for t in tensors)

    def real_tokens(self) -> list[np.ndarray]:
        """The mask of every batch, where some batch has padding; all true for a batch without padding."""
        length = next(mask.shape[1] for mask in self.masks if mask is not None)
        pairs = zip(self.masks, self.sizes, strict=True)
        return [np.ones((size, length), bool) if mask is None else mask for mask, size in pairs]

    def forget(self, later: set[str]) -> None:
        """Drop the activations of all tensors but those in ``later``; what belongs to layers stays."""
        for name in self.store.names():
            if name.partition(":")[2] not in later and name.startswith((FLOAT, QUANTIZED)):
                self.store.drop(name)

    def holds_integers(self, tensor: str) -> bool:
        """Whether the quantized model's tensor, one of floating point, is stored as integers."""
        name = QUANTIZED + tensor
        kind = self.store.dtype(name) if name in self.store else None
        return kind is not None and kind.kind in "ui"

    @property
    def has_float(self) -> bool:
        """Whether the float model's activations are stored, and not the targets of layers alone."""
        return any(name.startswith(FLOAT) for name in self.store.names())


class FloatActivations(StoredActivations):
    """Activations of the float model alone, which its quantized parts read too: none depends on another."""

    def name_of(self, prefix: str, tensor: str) -> str:
        return FLOAT + tensor

    def add(self, feeds: Mapping[str, Any], count: int, quantized: Mapping[str, Any] | None = None) -> None:
        self.add_float(feeds, count)


@dataclass
class ReconstructionState:
    """What reconstruction has found: the one object that its functions change.

    grids: those of all activations, at first as calibrated. layers: layer -> its parameters once it is rounded, solved
    or learned. frozen: tensors whose grids must not change any more, because a layer was solved on them. sum_elsewhere:
    gives the sums of the columns of layers that are solved together, where the samples are not stored here. given:
    layer -> the weight that it has, as another graph of the model has it too. others: the first layer that has a weight
    -> the moments of those that have it later. losses: of the layers that were solved.
    """

    problem: Problem
    stored: StoredActivations
    grids: Grids
    layers: dict[str, LayerParams] = field(default_factory=dict)
    frozen: set[str] = field(default_factory=set)
    sum_elsewhere: Callable[[Sequence[LayerScheme]], Sums] | None = None
    given: Mapping[str, LayerParams] = field(default_factory=dict)
    others: Mapping[str, ReaderMoments] = field(default_factory=dict)
    losses: dict[str, LossRecord] = field(default_factory=dict)

    def take_first(self, layers: Sequence[LayerScheme]) -> None:
        """Give layers the weights that the first readers of these have by now."""
        leaders = self.problem.readers.leaders
        firsts = {layer.name: leaders[layer.name].name for layer in layers if layer.name in leaders}
        found = {name: self.layers[first] for name, first in firsts.items() if first in self.layers}
        self.given = {**found, **self.given}

    def integer_grid(self, tensor: str) -> QParams | None:
        """The grid on whose integers the quantized model's tensor is stored; None where it is stored in float."""
        scheme, grid = self.problem.scheme, self.grids.activations.get(tensor)
        if not self.stored.integers or grid is None or grid.spec.bits != FULL_BITS:
            return None
        return grid if tensor in scheme.activations and not scheme.float_reads.get(tensor) else None

    def input_grid(self, layer: LayerScheme) -> QParams | None:
        """The grid on which a layer reads its input; None where that is float."""
        return self.grids.of_input(layer)

    def float_subgraph(self, block: Block, outputs: Sequence[str]) -> ModelProto:
        """The float model from those of the block's inputs that ``outputs`` need to ``outputs``."""
        problem, inputs = self.problem, self.inputs_read(block, outputs)
        return extract(problem.model, self.stored.types, inputs=inputs, outputs=outputs, index=problem.index)

    def quantized_subgraph(self, block: Block, outputs: Sequence[str]) -> ModelProto:
        """The float subgraph, quantized with the present grids and layers."""
        return emit_qdq(self.float_subgraph(block, outputs), self.problem.scheme, self.grids, self.layers)

    def inputs_read(self, block: Block, outputs: Sequence[str]) -> list[str]:
        """Inputs of the block on which ``outputs`` depend."""
        return needed_inputs(self.problem.index, block.inputs, outputs)


class SubgraphRunner:
    """Computes tensors inside a block from its stored inputs, one stored batch at a time.

    Those of the tensors that are inputs of the block are read from the store. integers: False computes the values in
    float, in front of their own grids, where others may be integers.
    """

    def __init__(
        self,
        state: ReconstructionState,
        block: Block,
        tensors: Sequence[str],
        *,
        quantized: bool,
        integers: bool = True,
    ):
        self.stored = state.stored
        self.prefix = QUANTIZED if quantized else FLOAT
        self.given = [t for t in tensors if t in block.inputs]
        inner = [t for t in tensors if t not in block.inputs]
        self.session = _open(state, block, inner, quantized=quantized, integers=integers) if inner else None

    def run(self, number: int) -> dict[str, np.ndarray]:
        """The tensors, by name, of stored batch ``number``; those of the quantized model may be integers."""
        values = self.stored.arrays(self.prefix, self.given, number)
        if self.session is not None:
            values |= self.session.run(self.stored.feeds(self.prefix, self.session.inputs, number))
        return values


def run_block(state: ReconstructionState, block: Block, later: set[str], *, quantized: bool) -> None:
    """Compute the block's outputs over the whole set from its stored inputs, and store them.

    Only outputs in ``later`` are stored. In the float model all outputs of a block with layers are, as its targets.
    """
    stored, prefix = state.stored, QUANTIZED if quantized else FLOAT
    kept = later.union(() if quantized or not block.layers else block.outputs)
    outputs = [t for t in block.outputs if t in kept and stored.name_of(prefix, t) not in stored.store]
    if not outputs:
        return
    session = _open(state, block, outputs, quantized=quantized)
    for number in stored.numbers:
        for name, value in session.run(stored.feeds(prefix, session.inputs, number)).items():
            stored.keep(prefix, name, value, integers=name in session.integers)


class _Part:
    """A session of a part of a model whose ends may be integers; ``integers``: the outputs that are."""

    def __init__(self, session: Session, names: Mapping[str, str]):
        """names: tensor -> the output that is its integers."""
        self._session, self._tensors = session, {name: tensor for tensor, name in names.items()}
        self.inputs, self.integers = session.inputs, set(names)

    def run(self, feeds: Mapping[str, Stored]) -> dict[str, np.ndarray]:
        return {self._tensors.get(name, name): value for name, value in self._session.run(feeds).items()}


def _open(
    state: ReconstructionState, block: Block, outputs: Sequence[str], *, quantized: bool, integers: bool = True
) -> _Part:
    """integers: whether outputs are given as integers where the store keeps them so."""
    make = state.quantized_subgraph if quantized else state.float_subgraph
    model, threads, names = make(block, outputs), state.problem.threads, dict[str, str]()
    if quantized:
        ends = (*block.inputs, *(outputs if integers else ()))
        grids = {t: grid for t in ends if (grid := state.integer_grid(t)) is not None}
        read_integers(model, {t: grid for t, grid in grids.items() if state.stored.holds_integers(t)})
        names = give_integers(model, grids)
    try:
        return _Part(Session(model, name=f"block {block.name}", threads=threads), names)
    except ModelError:  # by an optimization; the node that it is about stays in float in the end
        return _Part(Session(model, name=f"block {block.name}", optimize=False, threads=threads), names)


def read_later(state: ReconstructionState, blocks: Sequence[Block], end: set[str]) -> list[set[str]]:
    """For each block the tensors that the blocks after it need to be solved and learned, and those of ``end``."""
    later = [end]
    for block in reversed(blocks[1:]):
        needed = [t for t in block.outputs if t in later[0]]
        read = block.inputs if block.layers else state.inputs_read(block, needed)
        later.insert(0, later[0].union(read))
    return later
