"""The nouns of the tool: small frozen records that hold names and numbers, never graph pointers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np

# The version of the tool, and the key under which a file names the version that made it.
VERSION = "0.1.0"
VERSION_KEY = "onnxcalib.version"
FLOAT_BITS = 32
# The sum of two products at which kernels for x86 without VNNI saturate.
INT16_MAX = 2**15 - 1
# The grid of rows that are divided by their largest magnitude: 255 levels from -1 to 1, so that the peak is on one. The
# peak of a row of zeros counts as this much.
ROW_SCALE, ROW_ZERO_POINT, LEAST_PEAK = 1 / 127, 128, 1e-30


@dataclass(frozen=True)
class InputSpec:
    """One input of a model; an unknown or symbolic dimension is None.

    alone: each run takes the values of one sample, whatever the first axis counts.
    state: the output whose value is this input in the next step of a sequence; empty for inputs that hold none.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...] | None
    state: str = field(default="", repr=False)  # what identifies samples has their values, which follow from it
    alone: bool = field(default=False, repr=False, compare=False)


def spell_shape(shape: Sequence[int | None]) -> str:
    """A shape as messages show it: ``(any, 3, 8)``."""
    return "(" + ", ".join("any" if side is None else str(side) for side in shape) + ")"


@dataclass(frozen=True)
class QuantSpec:
    """The integer grid of a tensor, without its scale and zero point.

    bits: 16, 8, 4, or of weights also 3 and 2; 32 stands for float. symmetric: the zero point is 0, or the middle of
    unsigned integers. A weight's integers and zero points are signed here; those of an asymmetric one are unsigned in
    the file. axis: the axis along which each index has its own scale; None: the tensor has one scale. block: in a
    matrix, the number of neighbours along the other axis that share a scale; None: all of them do. pair_limit: in a
    weight, the largest absolute sum of two integers of one sign whose products a kernel adds up as a pair; None: any
    sum. power_of_two: scales are 2^-p, for a whole number p. least_range: the least distance between the ends of an
    activation's grid. signed_scale: scales of a weight may be negative, for the
    integer that such a grid has more on one side of zero. half_steps: the zero point of a channel of a weight may be
    -1/2, so that there are as many levels on both sides of zero.
    """

    bits: int
    signed: bool = False
    symmetric: bool = False
    axis: int | None = None
    block: int | None = None
    pair_limit: int | None = None
    power_of_two: bool = False
    least_range: float = 0.0
    signed_scale: bool = False
    half_steps: bool = False

    @property
    def has_zeros(self) -> bool:
        """Whether a weight of this grid may have zero points other than 0."""
        return self.half_steps or not self.symmetric

    @property
    def stored_bits(self) -> int:
        """Bits of the type in which the integers are stored: 3 have 4."""
        return 4 if self.bits == 3 else self.bits

    @property
    def middle(self) -> int:
        """The zero point of a symmetric grid."""
        return (self.qmin + self.qmax + 1) // 2

    @property
    def qmin(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1


@dataclass(frozen=True)
class Requirements:
    """What a device needs of a quantization scheme; the defaults are what onnxruntime's CPU provider runs on integers.

    activation: the grid of activations of 8 bits; others differ in their bits alone. activation_bits, weight_bits:
    those that there are. weights_alone: bits of weights that may stand beside float activations. alone: operators in
    which they may, empty for all. in_blocks: whether neighbours may share a scale there; blocks: how many, empty for
    any. dynamic: whether layers may quantize activations as they come; recurrent: whether LSTMs may. recurrent_weights:
    whether those of LSTM, GRU and RNN may be integers beside float activations. asymmetric_alone: whether weights may
    have zero points there. negative_scales: whether scales of weights of less than 8 bits may be negative.
    one_weight_scale: a weight has one scale, not one for each output channel. power_of_two_weights: its scales are
    2^-p. float_biases: operators whose bias is written as float. through_cast: weights of 4 bits are read through a
    Cast to 8. takes_packed: MatMulNBits and GatherBlockQuantized of onnxruntime may be written. placing: which tensors
    get a grid: those around what onnxruntime ``fused``; the ``inputs`` of layers, and what is added to their outputs;
    or the inputs and outputs of all operators of ``grouped``, as whole ``groups``. through: operators that belong to
    the group in front of them. at_exit: operators of ``grouped`` whose output may be float at the graph's end.
    even_bits: operators that read and give as many bits. aligned: operators whose inputs and outputs share a grid.
    fixed_grids: operator and bits -> scale and zero point of what it gives. opset: the least and the most; None for
    any. for_onnxruntime: nodes are written around what its optimizer does, HardSigmoids as Adds and a Max behind
    others. wide_sums: sums in front of a norm have 16 bits where all else has 8.
    """

    activation: QuantSpec = QuantSpec(8)
    activation_bits: tuple[int, ...] = (8, 4)
    weight_bits: tuple[int, ...] = (8, 4, 3, 2)
    weights_alone: tuple[int, ...] = (8, 4, 3, 2)
    alone: frozenset[str] = frozenset()
    in_blocks: bool = True
    blocks: tuple[int, ...] = ()
    dynamic: bool = False
    recurrent: bool = False
    recurrent_weights: bool = True
    asymmetric_alone: bool = True
    negative_scales: bool = True
    one_weight_scale: bool = False
    power_of_two_weights: bool = False
    float_biases: frozenset[str] = frozenset({"ConvTranspose"})
    through_cast: bool = True
    takes_packed: bool = True
    placing: Literal["fused", "inputs", "groups"] = "fused"
    grouped: frozenset[str] = frozenset()
    through: frozenset[str] = frozenset()
    at_exit: frozenset[str] = frozenset()
    even_bits: frozenset[str] = frozenset()
    aligned: frozenset[str] = frozenset()
    fixed_grids: Mapping[tuple[str, int], tuple[float, int]] = field(default_factory=dict)
    opset: tuple[int | None, int | None] = (None, None)
    for_onnxruntime: bool = True
    wide_sums: bool = False


@dataclass(frozen=True)
class QParams:
    """Grid of one tensor: ``x ~ scale * (q - zero_point)``, with q integers in [spec.qmin, spec.qmax].

    scale (float32) and zero_point (int32, or float32 with half steps) have the same shape:

    - () without ``spec.axis``
    - (channels,) with ``spec.axis``
    - with ``spec.block``, that of the matrix, whose other axis counts groups of ``spec.block`` inputs: a matrix
      (inputs, channels) with ``spec.axis`` 1 has scales (inputs / block, channels)
    """

    scale: np.ndarray
    zero_point: np.ndarray
    spec: QuantSpec


@dataclass(frozen=True)
class Around:
    """What the graph around a body says of the body's tensors; the defaults are those of a whole model.

    grids: what they have outside too. ties: (input, output, whether neither has negative values) of what a turn hands
    on to the next. behind: inputs that layers precede. ahead: outputs that layers follow.
    """

    inside: bool = False
    grids: Mapping[str, QParams] = field(default_factory=dict)
    ties: tuple[tuple[str, str, bool], ...] = ()
    behind: frozenset[str] = frozenset()
    ahead: frozenset[str] = frozenset()


@dataclass(frozen=True)
class LayerScheme:
    """A weighted node, and how its weight and its input are quantized. The node and tensors are given by their names.

    input: the activation that the node reads. bias: None without a bias. output: that of the bias Add, if there is one.
    weight_spec: its axis is that of the output channels in the weight as stored, or None for one scale of all channels.
    bias_add: the Add behind a MatMul that adds ``bias``; None where the node itself reads its bias. channel_axis: the
    axis of the output channels where weight_spec names none. dynamic: the layer quantizes its input as it runs, each
    row, along the last axis, by its own largest magnitude, and the file has no grid for it.

    A Gather of rows of a constant, an embedding, is also described as a layer. Its input counts as float, its channels
    are the rows, and it is rounded but never solved. tied_to: the layer whose weight is the same table, if there is
    one; the file has that layer's integers for both.
    """

    name: str
    op: str
    input: str
    weight: str
    bias: str | None
    output: str
    weight_spec: QuantSpec
    activation_spec: QuantSpec
    groups: int = 1
    bias_add: str | None = None
    channel_axis: int = 0
    dynamic: bool = False
    tied_to: str | None = None

    @property
    def axis(self) -> int:
        """The axis of the output channels in the weight as stored."""
        return self.channel_axis if self.weight_spec.axis is None else self.weight_spec.axis

    @property
    def takes_bias(self) -> bool:
        """Whether the layer has a bias or can be given one: only a MatMul without a bias Add cannot."""
        return self.op != "MatMul" or self.bias_add is not None

    @property
    def reads_float(self) -> bool:
        return self.activation_spec.bits == FLOAT_BITS

    @property
    def on_grid(self) -> bool:
        """Whether the layer reads its input on a grid of the file."""
        return not (self.reads_float or self.dynamic)

    @property
    def bits(self) -> Candidate:
        return Candidate(self.weight_spec.bits, self.activation_spec.bits, self.weight_spec.block or 0)


@dataclass(frozen=True)
class QuantScheme:
    """The quantization scheme: which tensors are quantized, and how.

    layers: the weighted nodes, in the order of the graph.
    activations: tensor -> the grid on which its consumers read it.
    requantized: tensor -> the grid of fewer bits on which weighted layers read it, where its other consumers need the
    grid in ``activations``.
    shared: sets of tensors that must have equal QParams, such as the input and the output of a pool or a reshape.
    nonnegative: tensor that a Relu, a Clip(0, c) or a HardSigmoid gives -> its upper bound, infinity, c or 1; its zero
    point is 0 and its range lies in [0, bound].
    float_reads: maps a float tensor to the float consumers that read it unquantized, since a Q/DQ pair there would not
    fuse.
    embeddings: Gathers of rows of a constant, which is stored as integers. recurrent: LSTM, GRU and RNN with
    integers as weights, each described as a layer of its input's weight; dynamic ones quantize what they read and their
    states as they run.
    barred: nodes left in float that onnxruntime would compute on integers, as all around them have grids.
    gates: HardSigmoids that run on integers. constants: those of ``activations`` that are initializers, which are
    stored as integers; ``float_reads`` has the nodes that read their floats. requirements: those of the target.
    fixed: tensor -> the scale and the zero point that it must have.
    """

    layers: tuple[LayerScheme, ...]
    activations: dict[str, QuantSpec]
    requantized: dict[str, QuantSpec] = field(default_factory=dict)
    shared: tuple[tuple[str, ...], ...] = ()
    nonnegative: dict[str, float] = field(default_factory=dict)
    float_reads: dict[str, frozenset[str]] = field(default_factory=dict)
    embeddings: tuple[LayerScheme, ...] = ()
    recurrent: tuple[LayerScheme, ...] = ()
    barred: frozenset[str] = frozenset()
    gates: frozenset[str] = frozenset()
    constants: frozenset[str] = frozenset()
    requirements: Requirements = Requirements()
    fixed: dict[str, tuple[float, int]] = field(default_factory=dict)

    def members_of(self, tensor: str) -> tuple[str, ...]:
        """The tensors that must have the same QParams as this one, itself among them."""
        return self._sets.get(tensor, (tensor,))

    def bound_of(self, tensors: Iterable[str]) -> float | None:
        """The least upper bound of those of the tensors that are nonnegative; None where none is."""
        return min((self.nonnegative[t] for t in tensors if t in self.nonnegative), default=None)

    @cached_property
    def _sets(self) -> dict[str, tuple[str, ...]]:
        return {tensor: members for members in self.shared for tensor in members}

    @property
    def computed(self) -> list[str]:
        """The tensors with a grid that are no constants."""
        return [tensor for tensor in self.activations if tensor not in self.constants]

    @property
    def stored(self) -> tuple[LayerScheme, ...]:
        """All that the file has integers of."""
        return (*self.embeddings, *self.layers, *self.recurrent)

    @property
    def least_weight_bits(self) -> int:
        return min(layer.weight_spec.bits for layer in (*self.layers, *self.recurrent))

    @property
    def has_groups(self) -> bool:
        return any(layer.groups > 1 for layer in self.layers)

    def reads_fewer_bits(self, bits: int) -> bool:
        """Whether a weighted layer reads a static grid of fewer bits than these."""
        return any(not layer.dynamic and layer.activation_spec.bits < bits for layer in self.layers)


@dataclass(frozen=True)
class Grids:
    """The grids of a scheme's activations, each with one scale and one zero point of shape ().

    activations: tensor -> the grid on which its consumers read it. requantized: tensor -> the grid of fewer bits on
    which weighted layers read it.
    """

    activations: Mapping[str, QParams]
    requantized: Mapping[str, QParams] = field(default_factory=dict)

    def of_input(self, layer: LayerScheme) -> QParams | None:
        """The grid on which a layer reads its input; None where the file has none for that."""
        if not layer.on_grid:
            return None
        requantized = self.requantized.get(layer.input)
        if requantized is not None and requantized.spec.bits == layer.activation_spec.bits:
            return requantized
        return self.activations[layer.input]

    def of_bits(self, tensor: str, bits: int) -> QParams | None:
        """The grid of so many bits of a tensor, if it has one."""
        both = (self.activations.get(tensor), self.requantized.get(tensor))
        return next((grid for grid in both if grid is not None and grid.spec.bits == bits), None)

    def updated(self, activations: Mapping[str, QParams], requantized: Mapping[str, QParams] | None = None) -> Grids:
        """A copy in which these grids replace those of the same tensors."""
        return Grids({**self.activations, **activations}, {**self.requantized, **(requantized or {})})


class Candidate(NamedTuple):
    """The bits that a layer may have, written like ``W4A8``, or a tensor that no layer reads, like ``A8``.

    weight_bits: 0 without weights. block_size: inputs that share a scale where the layer reads float, written like
    ``W4A32g32``; 0: all of a channel do.
    """

    weight_bits: int
    activation_bits: int
    block_size: int = 0

    def __str__(self) -> str:
        weights, block = (
            f"W{self.weight_bits}" if self.weight_bits else "",
            f"g{self.block_size}" if self.block_size else "",
        )
        return f"{weights}A{self.activation_bits}{block}"


@dataclass(frozen=True)
class Cost:
    """The cost of a set of layers at one candidate.

    bytes: in the file. bops: for one sample, MACs times weight bits times activation bits. milliseconds: latency.
    """

    bytes: int
    bops: int
    milliseconds: float = 0.0


@dataclass(frozen=True)
class BitSet:
    """Layers and tensors, by name, that must have the same candidate.

    macs: for one sample; losses and costs: by candidate. tensors: those that share the grid on which the layers read,
    where activations may have 16 bits; without layers, tensors that no layer reads. elements: of the tensors, in one
    sample.
    """

    layers: tuple[str, ...]
    macs: int
    losses: dict[Candidate, float]
    costs: dict[Candidate, Cost]
    tensors: tuple[str, ...] = ()
    elements: int = 0

    @property
    def name(self) -> str:
        return (*self.layers, *self.tensors)[0]

    def wide_elements(self, candidate: Candidate) -> int:
        """Elements of 16 bits at a candidate."""
        return self.elements if candidate.activation_bits > 8 else 0


@dataclass(frozen=True)
class Block:
    """A convex part of the graph that is reconstructed as one, by names.

    nodes: in topological order. inputs: tensors that the nodes read from outside, without initializers. outputs:
    tensors of the nodes that are read outside, or that the graph returns. layers: the weighted ones among the nodes.
    """

    name: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[str, ...] = ()
