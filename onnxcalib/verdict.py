"""What ``validate`` measured of a quantized model, and whether it passes, as plain records that serialise to JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .layer_record import LayerRecord
from .report import OutputRecord, SaturationRecord, UnfusedRecord, to_json
from .stepwise import ClosedLoopRecord
from .targets.violation import LintRecord

Interval = tuple[float, float]  # (low, high), at 95% confidence


def spell_interval(interval: Interval | None, form: str = ".2f", *, scale: float = 1.0) -> str:
    """`` (95%: low to high)`` with the space in front, or an empty text where there is no interval."""
    return "" if interval is None else f" (95%: {' to '.join(format(scale * end, form) for end in interval)})"


@dataclass(frozen=True)
class ScoreRecord:
    """The score of both models by labels or by a user's metric; higher is better, top-1 and top-5 are in %.

    drop: float_score - quantized_score. output: the class scores that the labels were compared with.
    """

    name: str
    float_score: float
    quantized_score: float
    drop: float
    drop_interval: Interval | None = None
    output: str | None = None


@dataclass(frozen=True)
class LatencyRecord:
    """Milliseconds for ``batch`` samples on one thread: medians of ``runs`` runs of both models in turn.

    Spreads are (upper quartile - lower quartile) / median. speedup: the median, over the pairs of runs, of float time /
    quantized time.
    """

    batch: int
    runs: int
    float_ms: float
    quantized_ms: float
    float_spread: float
    quantized_spread: float
    speedup: float
    speedup_interval: Interval


@dataclass(frozen=True)
class StepsRecord:
    """How far graph optimizations move one integer tensor that is computed from equal integers.

    steps: the largest difference, in quantization steps. share: the share of its values that differ.
    """

    tensor: str
    op: str
    steps: int
    share: float


@dataclass(frozen=True)
class ContractRecord:
    """The kernel consistency: graph optimizations off against on, layer by layer, on the first ``samples`` samples.

    tensors: the integer tensors, those that differ most first. mismatched: tensors whose QuantizeLinear and
    DequantizeLinear have different scales or zero points. sqnr_db: SQNR of the whole model's float outputs, from the
    mean of their relative errors; infinite where they are equal, None where there are none. unread: bodies of If, Loop
    and Scan whose tensors were not compared, with the reason.
    """

    samples: int
    tensors: tuple[StepsRecord, ...]
    mismatched: tuple[str, ...] = ()
    sqnr_db: float | None = None
    unread: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """The largest difference of any tensor; 0 where there are no tensors."""
        return max((record.steps for record in self.tensors), default=0)


@dataclass(frozen=True)
class LayerLoss:
    """What one layer, or one product of activations, loses, as SQNR in dB.

    weight_bits: None for a product, which has no weight. alone_db: of the layer's output, computed from the float
    model's input. all_before_db: of the layer's output in the quantized model. at_output_db: of the model's outputs
    where only this layer is quantized; None where the model cannot be run in parts. reasons: what the numbers show.
    remedy: what to do; toml: the same as lines for onnxcalib.toml.
    """

    name: str
    op: str
    weight_bits: int | None
    activation_bits: int
    alone_db: float
    all_before_db: float
    at_output_db: float | None
    reasons: tuple[str, ...] = ()
    remedy: str = ""
    toml: str = ""


@dataclass(frozen=True)
class Explanation:
    """The layers that lose most, the worst first, measured on ``samples`` samples.

    unmatched: layers that could not be measured, each with the reason. notes: remarks on the whole model. others: what
    all other layers lose, in graph order, without reasons.
    """

    samples: int
    layers: tuple[LayerLoss, ...]
    unmatched: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    others: tuple[LayerLoss, ...] = ()


@dataclass(frozen=True)
class ReferenceRecord:
    """Outputs of onnxruntime against those of onnx's reference evaluator, on the first ``samples`` samples.

    deployed: of the quantized model as users run it. unoptimized: of the same without graph optimizations. original: of
    the float model, which shows whether the two agree where nothing is quantized. missed: outputs of the deployed model
    that could not be compared. deployed_steps, unoptimized_steps: how far each session moves each integer tensor from
    the evaluator's, where all compute it from equal integers; those that differ most first. reason: why there is
    nothing of the quantized model; original_reason: why there is nothing of the float model.
    """

    samples: int
    deployed: tuple[OutputRecord, ...] = ()
    unoptimized: tuple[OutputRecord, ...] = ()
    original: tuple[OutputRecord, ...] = ()
    missed: tuple[str, ...] = ()
    deployed_steps: tuple[StepsRecord, ...] = ()
    unoptimized_steps: tuple[StepsRecord, ...] = ()
    reason: str = ""
    original_reason: str = ""


@dataclass(frozen=True)
class OffRecord:
    """One node that the device does not run as it should. node and op: in the file. reason: as its runtime tells it."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class DeviceRecord:
    """The file in the runtime of a target.

    runtime: with its version. fault: why it was not run to the end; empty where it was. placed_of: what is counted, in
    words; total: how many there are; off: those that are not placed. samples: how many were run, of those in the data.
    against_float: its outputs against the float model's. against_unoptimized: against those of the quantized file in
    onnxruntime without graph optimizations. onnxruntime: these against the float model's. All are on the same samples.
    speedup: how many times as fast it is as the float model there; None where that is a simulator, or a run failed.
    """

    runtime: str
    fault: str = ""
    placed_of: str = ""
    total: int = 0
    off: tuple[OffRecord, ...] = ()
    samples: int = 0
    seconds: float = 0.0
    against_float: tuple[OutputRecord, ...] = ()
    against_unoptimized: tuple[OutputRecord, ...] = ()
    onnxruntime: tuple[OutputRecord, ...] = ()
    speedup: float | None = None
    speedup_interval: Interval | None = None

    @property
    def placed(self) -> float:
        """The share of nodes that are placed, in %; 100 where none is counted."""
        return 100 * (1 - len(self.off) / self.total) if self.total else 100.0

    @property
    def placement(self) -> str:
        """How many nodes are placed, in words."""
        return f"{self.total - len(self.off)} of {self.total} {self.placed_of} ({self.placed:.2f}%)"


@dataclass(frozen=True)
class GateRecord:
    """One gate. name: its setting; text: the measured value and the limit in one line.

    limit: the largest value allowed, or the smallest for names that begin with ``min_``. measured: in its unit, with
    the interval at 95% confidence. All are None where there is no number, as for a target's rules.
    """

    name: str
    passed: bool
    text: str
    limit: float | None = None
    measured: float | None = None
    interval: Interval | None = None
    unit: str = ""


@dataclass(frozen=True)
class Verdict:
    """Everything that ``validate`` measured. It passes when every gate does.

    lint: the file against the rules of a target, where one was named. device: the file in the target's runtime, where
    that is installed. fused: whether outputs are those of onnxruntime's optimized session, and its kernels were judged;
    otherwise those of exact sums, as another target's runtime has kernels of its own. closed_loop: of models with
    states, whose outputs are those of each with its own. layers: of the quantized file, in graph order.
    environment: versions and the processor.
    """

    float_model: str
    quantized_model: str
    settings: dict[str, Any]
    samples: int
    scores: tuple[ScoreRecord, ...]
    outputs: tuple[OutputRecord, ...]
    float_bytes: int
    quantized_bytes: int
    latency: LatencyRecord
    unfused: tuple[UnfusedRecord, ...]
    contract: ContractRecord
    saturation: SaturationRecord = field(default_factory=SaturationRecord)
    reference: ReferenceRecord | None = None
    gates: tuple[GateRecord, ...] = ()
    explanation: Explanation | None = None
    warnings: tuple[str, ...] = ()
    lint: LintRecord | None = None
    device: DeviceRecord | None = None
    fused: bool = True
    closed_loop: ClosedLoopRecord | None = None
    layers: tuple[LayerRecord, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)

    @property
    def size_ratio(self) -> float:
        """Bytes of the quantized file / bytes of the float file."""
        return self.quantized_bytes / self.float_bytes

    def to_json(self) -> str:
        """The whole verdict as JSON text; infinities and NaN become null, as JSON cannot hold them."""
        return to_json({"passed": self.passed, **asdict(self)})
