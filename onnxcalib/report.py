"""What a run did and how good its result is, as plain records that serialise to JSON."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any, cast

from .errors import OnnxCalibWarning
from .layer_record import LayerRecord, LossRecord, PlaceRecord
from .stepwise import ClosedLoopRecord
from .targets.violation import LintRecord

NAMED, PACKAGE = 3, __name__.partition(".")[0]  # names in one line; the JSON report has all of them
NUMBERS = re.compile(r"\[\n\s+(?:-?[0-9][-+.0-9e]*,?\s+)+\]")
# Silent until an application adds a handler, as Python asks of libraries: without this one, what has the level WARNING
# would go to stderr beside the Python warning that says the same.
LOGGER = logging.getLogger(PACKAGE)
LOGGER.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class BlockRecord:
    """What became of one block.

    outcome: ``reconstructed`` (AdaQuant's result is kept), ``rolled back`` (the loss on held-out samples did not
    fall), ``solved`` (the layers were solved on their Gram matrices only), ``rounded`` (initial rounding only).
    loss_before, loss_after: mean squared error of the block's outputs on held-out samples, divided by their mean
    square. losses: of the layers that were solved.
    """

    name: str
    layers: tuple[str, ...]
    outcome: str
    reason: str | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    seconds: float = 0.0
    losses: tuple[LossRecord, ...] = ()


@dataclass(frozen=True)
class ExpectedRecord:
    """Estimates for other samples of the same kind, which are nearer to the truth than what few samples have.

    SQNR is estimated from the errors of all samples, agreement from the margins of all and the errors of those held
    out. None where there is nothing to estimate from.
    """

    sqnr_db: float | None
    sqnr_interval: tuple[float, float] | None
    agreement: float | None
    agreement_interval: tuple[float, float] | None


@dataclass(frozen=True)
class OutputRecord:
    """One output of the model, the float model's values against the quantized model's.

    agreement: the share (0 to 1) of samples on which both models agree. Class scores agree where the top class is the
    same; integers, booleans and strings agree where all values are equal. Intervals are (low, high), at 95% confidence.
    positions: where each sample has several top classes, as characters or pixels have, so many of them are counted.
    broken: values of the quantized model that are not finite where the float model's are; they make the SQNR -inf.
    left_out: values of the float model that are not finite, which are left out of every measure.
    parts: the output's parts where a Concat joins several tensors; each is judged, and not the output as a whole, in
    which the largest values drown the others. They are named as numpy indexes them, ``output0[:, 4:84]``. tensors: what
    is joined in a part. median_db: the median of the samples' own SQNR. largest_share: the share of the energy that the
    sample with most of it has; where it is near 1, ``sqnr_db`` is that of one sample. expected: what is to be expected
    on other samples; None where the model was made from those compared.
    """

    name: str
    sqnr_db: float | None
    cosine: float | None
    max_abs_error: float | None
    agreement: float | None = None
    sqnr_interval: tuple[float, float] | None = None
    agreement_interval: tuple[float, float] | None = None
    broken: int = 0
    left_out: int = 0
    positions: int | None = None
    parts: tuple[OutputRecord, ...] = ()
    tensors: tuple[str, ...] = ()
    median_db: float | None = None
    largest_share: float | None = None
    expected: ExpectedRecord | None = None


def spell_positions(record: OutputRecord) -> str:
    """How many positions the agreement counts, where they are not samples: `` of 5,120``."""
    return "" if record.positions is None else f" of {record.positions:,}"


def list_rows(outputs: Iterable[OutputRecord]) -> list[OutputRecord]:
    """The outputs, each followed by its parts."""
    return [row for record in outputs for row in (record, *record.parts)]


def list_expected(outputs: Iterable[OutputRecord]) -> list[OutputRecord]:
    """Outputs and parts with the numbers that are expected on other samples, where there are estimates."""
    return [
        OutputRecord(
            row.name, found.sqnr_db, None, None, found.agreement, found.sqnr_interval, found.agreement_interval
        )
        for row in list_rows(outputs)
        if (found := row.expected) is not None
    ]


def list_judged(outputs: Iterable[OutputRecord]) -> list[OutputRecord]:
    """The outputs as they are judged: by their parts where they have some."""
    return [row for record in outputs for row in record.parts or (record,)]


def name_some(names: Iterable[str]) -> str:
    """The first few, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def spell_worst(outputs: Sequence[OutputRecord]) -> str:
    """The smallest SQNR of all outputs and parts, and the smallest agreement: ``12.8 dB, 90.1% agreement``."""
    decibels = [record.sqnr_db for record in list_judged(outputs) if record.sqnr_db is not None]
    shares = [100 * record.agreement for record in list_rows(outputs) if record.agreement is not None]
    units = {" dB": decibels, "% agreement": shares}
    return ", ".join(f"{_least(values):.1f}{unit}" for unit, values in units.items() if values)


def _least(values: Sequence[float]) -> float:
    """The smallest value, or NaN where there is one."""
    return math.nan if any(map(math.isnan, values)) else min(values)


@dataclass(frozen=True)
class StageRecord:
    """What one stage that changes weights or biases did to the outputs.

    outcome: ``done`` for the first stage; later ones are ``kept``, or ``rolled back`` where they brought the outputs no
    nearer to the float model's. outputs: of the model after it or its roll-back, on some 256 samples at most.
    """

    name: str
    outcome: str
    outputs: tuple[OutputRecord, ...]
    reason: str | None = None


@dataclass(frozen=True)
class UnfusedRecord:
    """A QuantizeLinear, DequantizeLinear or MatMulInteger that onnxruntime did not fuse, its tensor, the reason."""

    op: str
    tensor: str
    reason: str


@dataclass(frozen=True)
class BoundRecord:
    """The largest magnitude that the sum of two adjacent products can reach in one integer kernel."""

    name: str
    bound: int


@dataclass(frozen=True)
class SaturationRecord:
    """What a quantized model computes on x86 without VNNI, where sums of two products saturate to int16.

    kernels: how many operators multiply integers. layers: those that can saturate, the worst first. outputs: the float
    model against saturating sums, on the first ``samples`` samples. exact: that against exact sums on these, as on
    other processors. unread: kernels without emulation, whose sums are exact in ``outputs``. reason: why none was made.
    """

    kernels: int = 0
    layers: tuple[BoundRecord, ...] = ()
    samples: int = 0
    outputs: tuple[OutputRecord, ...] = ()
    exact: tuple[OutputRecord, ...] = ()
    unread: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class LeftOutRecord:
    """A part of the work that a run had to do without, such as probes or views of images, and the reason."""

    what: str
    reason: str


@dataclass(frozen=True)
class FloatRecord:
    """A node that stays in float, though it has a weight or could run on integers, and the reason.

    bytes: of its float weights; a weight that several nodes read counts for the first one alone.
    """

    name: str
    op: str
    reason: str
    bytes: int = 0


@dataclass(frozen=True)
class MeasuredOn:
    """The samples on which a result was measured.

    source: ``held out`` where they are some of the calibration samples, which nothing else has seen; ``test`` where the
    user gave them for this; ``calibration`` where the result was made from the same, so that its numbers flatter.
    indices: those held out, as they are counted in the calibration data.
    """

    source: str
    samples: int
    indices: tuple[int, ...] = ()


@dataclass(frozen=True)
class SpeedRecord:
    """Median milliseconds of a run of each model here, on one thread.

    speedup: how many times as fast as the float model; interval: (low, high) of it, at 95% confidence.
    """

    float_ms: float
    quantized_ms: float
    speedup: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class MemoryRecord:
    """Memory of the run's process, mapped files included; floor_bytes: the least that a run of this model takes.

    That is what the process had before, three times the largest segment's weights, and a sample's activations.
    """

    floor_bytes: int
    largest: str
    largest_bytes: int
    budget_bytes: int | None = None
    peak_bytes: int = 0


@dataclass(frozen=True)
class Report:
    """Everything that ``quantize`` did and measured.

    passes: graph pass -> the number of its rewrites. steps: the stages that change weights or biases, empty where only
    the first was done. plan: the bit plan that was followed, as its file holds it. left_out: what could not be done,
    though the result holds without it. samples: those that it was made from. measured_on: those that layers, outputs
    and saturation were measured on; None before that. speed: None for models that are too large to be timed. in_float:
    nodes that stay in float, but those that the settings exclude. target: what the file is made for, None for
    onnxruntime; what that makes of other targets' files, saturation, unfused and speed, is not measured. lint: by the
    settings' target. smoothing, rotation: their ``record``. bits_per_weight: see ``constants``. closed_loop: of states.
    places: the blocks of the graph in order. environment: versions and the processor.
    """

    settings: dict[str, Any]
    target: str | None = None
    passes: dict[str, int] = field(default_factory=dict)
    blocks: tuple[BlockRecord, ...] = ()
    steps: tuple[StageRecord, ...] = ()
    layers: tuple[LayerRecord, ...] = ()
    outputs: tuple[OutputRecord, ...] = ()
    outputs_unoptimized: tuple[OutputRecord, ...] = ()
    saturation: SaturationRecord = field(default_factory=SaturationRecord)
    unfused: tuple[UnfusedRecord, ...] = ()
    float_bytes: int = 0
    quantized_bytes: int = 0
    bits_per_weight: float | None = None
    samples: int = 0
    measured_on: MeasuredOn | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    float_pass_seconds: float = 0.0
    memory: MemoryRecord | None = None
    speed: SpeedRecord | None = None
    warnings: tuple[str, ...] = ()
    plan: dict[str, Any] | None = None
    left_out: tuple[LeftOutRecord, ...] = ()
    in_float: tuple[FloatRecord, ...] = ()
    lint: LintRecord | None = None
    smoothing: dict[str, Any] | None = None
    rotation: dict[str, Any] | None = None
    closed_loop: ClosedLoopRecord | None = None
    places: tuple[PlaceRecord, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The whole report as JSON text; infinities and NaN become null, as JSON cannot hold them."""
        return to_json(asdict(self))


def to_json(value: Mapping[str, Any]) -> str:
    """JSON text of plain values, lists of numbers on one line; infinities and NaN become null."""
    text = json.dumps(_plain(value), indent=2)
    return NUMBERS.sub(lambda found: f"[{' '.join(found[0][1:-1].split())}]", text)  # a text in JSON has no line breaks


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


class Observer:
    """Hears what a run does while it does it.

    Subclasses override what they want to hear, and need not call super: the library's log and the report have
    everything too. The CLI's draws a progress bar.
    """

    def stage(self, name: str) -> None:
        """A stage begins.

        Those of ``quantize`` are prepare, plan, calibrate, reconstruct, evaluate, statistics, biases, verify; those of
        ``validate`` are load, compare, clock, check kernels, saturate, explain.
        """

    def expect(self, stages: Sequence[str]) -> None:
        """These stages follow the current one, and then the run ends."""

    def note(self, text: str) -> None:
        """One line worth reading in a log."""

    def warn(self, text: str) -> None:
        """One line that the user should act on; issued as an OnnxCalibWarning unless a subclass overrides it."""
        warnings.warn(text, OnnxCalibWarning, stacklevel=_count_own_frames() + 1)

    def progress(self, done: int, total: int) -> None:
        """So much of a pass of the current stage is done: of its samples or layers. A stage may make several passes."""

    def blocks(self, total: int) -> None:
        """Reconstruction begins, on this many blocks; or planning, on this many layers."""

    def planned(self, layer: str) -> None:
        """What a layer loses and costs at each candidate is known."""

    def block(self, record: BlockRecord) -> None:
        """One block is done."""


class LoggedObserver(Observer):
    """Passes on what it hears, and logs stages and notes as INFO, single blocks and layers as DEBUG, and warnings."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def stage(self, name: str) -> None:
        LOGGER.info("%s ...", name)
        self._observer.stage(name)

    def expect(self, stages: Sequence[str]) -> None:
        self._observer.expect(stages)

    def note(self, text: str) -> None:
        LOGGER.info("%s", text)
        self._observer.note(text)

    def warn(self, text: str) -> None:
        LOGGER.warning("%s", text)
        self._observer.warn(text)

    def progress(self, done: int, total: int) -> None:
        self._observer.progress(done, total)

    def blocks(self, total: int) -> None:
        LOGGER.debug("%d blocks or layers", total)
        self._observer.blocks(total)

    def planned(self, layer: str) -> None:
        LOGGER.debug("layer %s: measured at each candidate", layer)
        self._observer.planned(layer)

    def block(self, record: BlockRecord) -> None:
        loss = "" if record.loss_before is None else f", loss {record.loss_before} -> {record.loss_after}"
        LOGGER.debug("block %s: %s%s", record.name, record.outcome, loss)
        self._observer.block(record)


def _count_own_frames() -> int:
    """Frames between the caller of this function, included, and the code that called this package."""
    count, frame = 0, cast("FrameType | None", sys._getframe(1))
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == PACKAGE:
        frame, count = frame.f_back, count + 1
    return count
