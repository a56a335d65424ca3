"""What ``validate`` measured of a quantized model, and whether it passes, as plain records."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from .report import OutputRecord, SaturationRecord, UnfusedRecord, to_json

Interval = tuple[float, float]  # of 95% confidence: (low, high)


def spell_interval(interval: Interval | None, form: str = ".2f", *, scale: float = 1.0) -> str:
    """`` (95%: low to high)`` with the space in front, or nothing."""
    return "" if interval is None else f" (95%: {' to '.join(format(scale * end, form) for end in interval)})"


@dataclass(frozen=True)
class ScoreRecord:
    """One measure against labels, or a user's own, of both models; top-1 and top-5 are in %, higher is better.

    drop: float minus quantized, in the same unit; output: the class scores that labels were compared with.
    """

    name: str
    float_score: float
    quantized_score: float
    drop: float
    drop_interval: Interval | None = None
    output: str | None = None


@dataclass(frozen=True)
class LatencyRecord:
    """Milliseconds a run of ``batch`` samples on one thread, medians of ``runs`` interleaved runs of both models.

    Spreads are the distance between the quartiles, as a share of the median; speedup is the median of float / quantized
    time over the pairs of runs.
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
    """How far graph optimizations move one tensor, given equal integers to compute it from.

    steps: largest difference, in quantization steps; share: of its values that differ at all.
    """

    tensor: str
    op: str
    steps: int
    share: float


@dataclass(frozen=True)
class ContractRecord:
    """The numerics contract: graph optimizations off against all on, layer by layer, on the first ``samples`` samples.

    tensors: the integer tensors, those that differ most first; mismatched: tensors whose QuantizeLinear and
    DequantizeLinear have unlike scales or zero points. sqnr_db: of the whole model's float outputs, the mean of their
    relative errors being the error; infinite where they are equal, None where there are none.
    """

    samples: int
    tensors: tuple[StepsRecord, ...]
    mismatched: tuple[str, ...] = ()
    sqnr_db: float | None = None

    @property
    def steps(self) -> int:
        """The largest difference of any tensor; 0 where there is none."""
        return max((record.steps for record in self.tensors), default=0)


@dataclass(frozen=True)
class LayerLoss:
    """Where loss comes from: one layer's share in it, SQNRs in dB.

    alone: of the layer's output, its input the float model's; all_before: of the layer's output in the quantized model;
    at_output: of the model's output, this layer alone being quantized, None where the model cannot be run in parts.
    reasons: what the numbers show. remedy: what to do, and the same as lines for onnxcalib.toml.
    """

    name: str
    op: str
    weight_bits: int
    activation_bits: int
    alone_db: float
    all_before_db: float
    at_output_db: float | None
    reasons: tuple[str, ...] = ()
    remedy: str = ""
    toml: str = ""


@dataclass(frozen=True)
class Explanation:
    """The layers that lose most, the worst first, and those of the model that could not be judged, with the reason.

    notes: what holds for the whole model.
    """

    samples: int
    layers: tuple[LayerLoss, ...]
    unmatched: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class GateRecord:
    """One demand: ``name`` is its setting, ``text`` says measured value and limit in one line."""

    name: str
    passed: bool
    text: str


@dataclass(frozen=True)
class Verdict:
    """Everything that ``validate`` measured; it passes when every gate does."""

    float_model: str
    quantized_model: str
    settings: dict
    samples: int
    scores: tuple[ScoreRecord, ...]
    outputs: tuple[OutputRecord, ...]
    float_bytes: int
    quantized_bytes: int
    latency: LatencyRecord
    unfused: tuple[UnfusedRecord, ...]
    contract: ContractRecord
    saturation: SaturationRecord = field(default_factory=SaturationRecord)
    gates: tuple[GateRecord, ...] = ()
    explanation: Explanation | None = None
    warnings: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)

    @property
    def size_ratio(self) -> float:
        """Bytes of the files, quantized / float."""
        return self.quantized_bytes / self.float_bytes

    def to_json(self) -> str:
        """The whole verdict as JSON text; infinities and NaN become null, as JSON has no word for them."""
        return to_json({"passed": self.passed, **asdict(self)})
