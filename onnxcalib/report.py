"""What a run did and how good its result is, as plain records that serialise to JSON."""

from __future__ import annotations

import json
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
        """A stage begins: prepare, plan, calibrate, reconstruct, appraise, statistics, biases, verify.

        Those of ``validate`` are load, compare, clock, conform, explain.
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
