"""The nouns of the tool: small frozen records that hold names and numbers, never graph pointers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

# The version of the tool, and the key under which a file names the version that made it.
VERSION = "0.1.0"
VERSION_KEY = "onnxcalib.version"
FLOAT_BITS = 32
# Where the sums of two products saturate in kernels for x86 without VNNI.
INT16_MAX = 2**15 - 1


@dataclass(frozen=True)
class InputSpec:
    """One input of a model; an unknown or symbolic dimension is None."""

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...] | None


def spell_shape(shape: Sequence[int | None]) -> str:
    """A shape as messages have it: ``(any, 3, 8)``."""
    return "(" + ", ".join("any" if side is None else str(side) for side in shape) + ")"


@dataclass(frozen=True)
class QuantSpec:
    """How a tensor is put on an integer grid; ``axis`` is None for one scale a tensor; 32 bits stand for float.

    block: of a matrix, along the axis that is not ``axis``: so many neighbours share a scale; None: all of them do.
    pair_limit: of a weight, the largest sum of one sign that two integers may have which a kernel adds up as a pair;
    None: any.
    """

    bits: int
    signed: bool = False
    symmetric: bool = False
    axis: int | None = None
    block: int | None = None
    pair_limit: int | None = None

    @property
    def qmin(self) -> int:
        return -(2 ** (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1


@dataclass(frozen=True)
class QParams:
    """Grid of one tensor: ``x ~ scale * (q - zero_point)``.

    scale is float32 and zero_point int32, both of shape () or (channels,); of blocks a matrix with one row or column of
    blocks where the tensor has ``spec.block`` of its own.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    spec: QuantSpec


@dataclass(frozen=True)
class LayerScheme:
    """A weighted node and how its weight and its input are quantized; tensors and the node go by their names.

    A Gather of rows of a constant is one too, of float input, on which nothing is solved: its rows are its channels.

    ``input`` is the activation that it reads; ``weight_spec.axis`` counts output channels in the weight as stored.
    adder: the Add that gives a MatMul its ``bias``, and the layer's ``output``; None where the node reads its own.
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

    @property
    def takes_bias(self) -> bool:
        """Whether a bias can be had, if only a new one: all but a MatMul that no Add follows."""
        return self.op != "MatMul" or self.bias_add is not None

    @property
    def reads_float(self) -> bool:
        return self.activation_spec.bits == FLOAT_BITS

    @property
    def bits(self) -> Candidate:
        return Candidate(self.weight_spec.bits, self.activation_spec.bits)


@dataclass(frozen=True)
class QuantScheme:
    """Which tensors are quantized, and how.

    activations: tensor -> its grid as all its consumers read it.
    narrowed: tensor -> the narrower grid that weighted layers read it on, where other consumers need ``activations``.
    shared: sets of tensors that must have equal QParams (two sides of a pool, of a reshape, of a Concat).
    nonnegative: tensors that a Relu or a Clip(0, c) makes: c or infinity; zero point 0, range inside [0, c].
    embeddings: Gathers of rows of a constant, of which integers are stored.
    float_reads: Maps a float tensor to the float consumers that read it unquantized, since a Q/DQ pair there would not
    fuse.
    """

    layers: tuple[LayerScheme, ...]
    activations: dict[str, QuantSpec]
    requantized: dict[str, QuantSpec] = field(default_factory=dict)
    shared: tuple[tuple[str, ...], ...] = ()
    nonnegative: dict[str, float] = field(default_factory=dict)
    float_reads: dict[str, frozenset[str]] = field(default_factory=dict)
    embeddings: tuple[LayerScheme, ...] = ()

    @property
    def least_weight_bits(self) -> int:
        return min(layer.weight_spec.bits for layer in self.layers)


@dataclass(frozen=True)
class Grids:
    """The grids of a scheme's activations.

    activations: tensor -> the grid on which its consumers read it. requantized: tensor -> the grid of fewer bits on
    which weighted layers read it.
    """

    activations: Mapping[str, QParams]
    requantized: Mapping[str, QParams] = field(default_factory=dict)

    def of_input(self, layer: LayerScheme) -> QParams | None:
        """The grid on which a layer reads its input; None where that is float."""
        if layer.reads_float:
            return None
        requantized = self.requantized.get(layer.input)
        if requantized is not None and requantized.spec.bits == layer.activation_spec.bits:
            return requantized
        return self.activations[layer.input]

    def updated(self, activations: Mapping[str, QParams], requantized: Mapping[str, QParams] | None = None) -> Grids:
        """These grids with some replaced."""
        return Grids({**self.activations, **activations}, {**self.requantized, **(requantized or {})})


class Candidate(NamedTuple):
    """Bits that a layer may have; written ``W4A8``."""

    weight_bits: int
    activation_bits: int

    def __str__(self) -> str:
        return f"W{self.weight_bits}A{self.activation_bits}"


@dataclass(frozen=True)
class Cost:
    """What a set of layers costs at one candidate: bytes of the file, MACs times both bits, of one sample, and time."""

    bytes: int
    bops: int
    milliseconds: float = 0.0


@dataclass(frozen=True)
class BitSet:
    """Layers by name that must have one candidate, their MACs, and what each candidate loses and costs."""

    layers: tuple[str, ...]
    macs: int
    losses: dict[Candidate, float]
    costs: dict[Candidate, Cost]


@dataclass(frozen=True)
class Block:
    """A convex part of the graph, reconstructed as one: node names in topological order and the tensors at its cuts."""

    name: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[str, ...] = ()
