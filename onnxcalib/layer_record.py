"""What is known of one layer of a quantized model, as a plain record that reports and verdicts share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HistogramRecord:
    """How the values of a tensor lie on its grid.

    low, high: ends of the first and the last bin; counts: of equal bins between them. grid: the lowest and the highest
    value that the grid holds, of all channels of a weight; None without one.
    """

    tensor: str
    low: float
    high: float
    counts: tuple[int, ...]
    grid: tuple[float, float] | None = None


@dataclass(frozen=True)
class LayerRecord:
    """The bits of one weighted layer, and what it is in the file.

    sqnr_db: of its output, where that was measured. dynamic: whether each run ranges its input. bytes: of its integers
    and their scales. on_integers: whether onnxruntime multiplies integers in it; None where that was not looked at;
    reason: why it does not. weight: its float values; input: what it read in calibration.
    """

    name: str
    op: str
    weight_bits: int
    activation_bits: int
    sqnr_db: float | None = None
    dynamic: bool = False
    bytes: int = 0
    on_integers: bool | None = None
    reason: str = ""
    weight: HistogramRecord | None = None
    input: HistogramRecord | None = None


@dataclass(frozen=True)
class LossRecord:
    """What a layer's integers add to the squared error of its outputs, as shares of the power of these outputs.

    Measured about their mean on the samples that the layer is solved on, with the best bias. Where it is solved for
    what an activation function lets through, the other outputs count a tenth. rounded: by rounding the float weight to
    the nearest integers; solved: as they were solved, below zero where they also make up for some of the error of what
    the layer reads.
    """

    layer: str
    rounded: float
    solved: float


@dataclass(frozen=True)
class PlaceRecord:
    """Where a block of a graph stands. after: the blocks whose outputs it reads; layers: those in it, in order."""

    name: str
    after: tuple[str, ...]
    layers: tuple[str, ...]
