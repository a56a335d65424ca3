"""What a run did and how good its result is, as plain records that serialise to JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class BlockRecord:
    """What became of one block.

    outcome: ``reconstructed`` (AdaQuant kept), ``rolled back`` (its loss on held-out samples did not fall),
    ``solved`` (layers solved on their Gram matrices alone), ``rounded`` (initial rounding alone).
    Losses are mean squared errors of the block's outputs on held-out samples, relative to the outputs' power.
    """

    name: str
    layers: tuple[str, ...]
    outcome: str
    reason: str | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class LayerRecord:
    """Bits of one weighted layer, and the SQNR of its output in the quantized model, in dB."""

    name: str
    op: str
    weight_bits: int
    activation_bits: int
    sqnr_db: float | None = None


@dataclass(frozen=True)
class OutputRecord:
    """Float against quantized on one model output.

    agreement: share (0 to 1) of samples with equal top class, where the output is class scores, or with all values
    equal, where they are no floats and have no error to speak of. Intervals are those of 95% confidence, (low, high).
    """

    name: str
    sqnr_db: float | None
    cosine: float | None
    max_abs_error: float | None
    agreement: float | None = None
    sqnr_interval: tuple[float, float] | None = None
    agreement_interval: tuple[float, float] | None = None


def spell_worst(outputs: Sequence[OutputRecord]) -> str:
    """Least SQNR and least agreement of all outputs: ``12.8 dB, 90.1% agreement``."""
    decibels = [record.sqnr_db for record in outputs if record.sqnr_db is not None]
    shares = [100 * record.agreement for record in outputs if record.agreement is not None]
    found = [f"{_least(decibels):.1f} dB"] if decibels else []
    return ", ".join([*found, *([f"{_least(shares):.1f}% agreement"] if shares else [])])


def _least(values: Sequence[float]) -> float:
    """The smallest value, or NaN where there is one."""
    return math.nan if any(map(math.isnan, values)) else min(values)


@dataclass(frozen=True)
class StepRecord:
    """What one step did to the outputs, on the calibration set, in the order of the steps.

    outcome: ``done``, ``kept``, or ``rolled back`` (it brought the outputs no nearer to the float model's);
    outputs: those of the model as it then was, after a roll-back too.
    """

    name: str
    outcome: str
    outputs: tuple[OutputRecord, ...]
    reason: str | None = None


@dataclass(frozen=True)
class UnfusedRecord:
    """A QuantizeLinear or DequantizeLinear that onnxruntime left standing, the tensor it works on, and why."""

    op: str
    tensor: str
    reason: str


@dataclass(frozen=True)
class BoundRecord:
    """The largest magnitude that a sum of two products can have in one integer kernel."""

    name: str
    bound: int


@dataclass(frozen=True)
class SaturationRecord:
    """What a quantized model gives on x86 without VNNI, where sums of two products saturate at the ends of int16.

    kernels: how many operators multiply integers; layers: those that can saturate there, the worst first. outputs: the
    float model's against those of saturating sums, on the first ``samples`` samples; exact: on the same samples against
    those of exact sums, as other processors have them. unread: kernels whose sums do not saturate in ``outputs``,
    as they cannot be emulated. reason: why nothing could be measured.
    """

    kernels: int = 0
    layers: tuple[BoundRecord, ...] = ()
    samples: int = 0
    outputs: tuple[OutputRecord, ...] = ()
    exact: tuple[OutputRecord, ...] = ()
    unread: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class Report:
    """Everything that a run measured.

    steps: empty where nothing came behind the first; plan: the bit plan that was obeyed, as its file has it.
    """

    settings: dict
    passes: dict[str, int] = field(default_factory=dict)
    blocks: tuple[BlockRecord, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    layers: tuple[LayerRecord, ...] = ()
    outputs: tuple[OutputRecord, ...] = ()
    outputs_unoptimized: tuple[OutputRecord, ...] = ()
    saturation: SaturationRecord = field(default_factory=SaturationRecord)
    unfused: tuple[UnfusedRecord, ...] = ()
    float_bytes: int = 0
    quantized_bytes: int = 0
    samples: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    float_pass_seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    plan: dict | None = None

    def to_json(self) -> str:
        """The whole report as JSON text; infinities and NaN become null, as JSON has no word for them."""
        return to_json(asdict(self))


def to_json(value: dict) -> str:
    """JSON text of plain values; infinities and NaN become null."""
    return json.dumps(_plain(value), indent=2)


def _plain(value):
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


class Observer:
    """Hears what a run does while it does it; this one is silent, the CLI's draws a progress bar."""

    def stage(self, name: str) -> None:
        """A stage begins: prepare, plan, calibrate, reconstruct, evaluate, statistics, biases, verify.

        Those of ``validate`` are load, compare, clock, conform, saturate, explain.
        """

    def note(self, text: str) -> None:
        """One line worth reading in a log."""

    def warn(self, text: str) -> None:
        """One line that the user should act on."""

    def blocks(self, total: int) -> None:
        """Reconstruction begins, on so many blocks; or planning, on so many layers."""

    def planned(self, layer: str) -> None:
        """What a layer loses and costs at each candidate is known."""

    def block(self, record: BlockRecord) -> None:
        """One block is done."""
