"""What the stages of a run share: its settings, its observer, and what it collects for the report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy

from ..bitplan import BitPlan
from ..config import FLOAT_BITS, WIDE_BITS, QuantizeConfig
from ..data import CalibrationSet
from ..data.digest import digest_samples
from ..errors import ConfigError, escape_controls
from ..graph.weight_file import WeightFile
from ..layer_record import HistogramRecord
from ..progress import listening
from ..report import BlockRecord, LeftOutRecord, LoggedObserver, MemoryRecord, Observer
from ..runtime.device import choose_device, computing, explain_lack_of_memory
from ..runtime.environment import describe_environment
from ..runtime.memory import measure_peak, measure_resident, release
from ..runtime.workers import reach
from ..spec import Around
from ..targets import load_target
from .checkpoints import Checkpoints, CheckpointSettings
from .float_outputs import FloatOutputs
from .layer_targets import TargetKeeper
from .shared_weights import SharedWeights
from .target_settings import settle


class PlacedObserver(LoggedObserver):
    """Hears a run on a part of the model: each line begins with where that is."""

    def __init__(self, observer: Observer, prefix: str) -> None:
        super().__init__(observer)
        self._prefix = prefix

    def stage(self, name: str) -> None:
        self._observer.stage(name)

    def expect(self, stages: Sequence[str]) -> None:
        """What follows for a part says nothing of the run."""

    def note(self, text: str) -> None:
        self._observer.note(self._prefix + text)

    def warn(self, text: str) -> None:
        self._observer.warn(self._prefix + text)

    def block(self, record: BlockRecord) -> None:
        self._observer.block(record)


class Run:
    """The settings and the observer of a run, and what it collects for the report.

    target: what the file is made for; config: the settings, with what the target decides, without those of nodes in
    bodies; given: with these. place: of what the run quantizes in the whole model, empty for the model itself. weights:
    takes the large values that are made of a large model. seconds: stage -> time. current_stage: that goes on or fails;
    None between stages. left_out: parts of the work that were not done, with the reason. float_outputs: those of the
    samples that the file is made from; targets: of layers, that calibration has kept; histograms: of
    activations. shared: weights of a model with
    bodies. around: what the graph around says, where the run is on a body, and quantized_samples what it gives as far
    as it is quantized, in place of the float samples. plan: that gives the bits of
    layers in all graphs of the model. resident: bytes that the process had in
    memory before, and peak_before: the most that it had; memory: the floor of the run, once it is known. checkpointing:
    where checkpoints are kept; ``checkpoints`` are open once the samples are. earlier_seconds: stage -> the time that
    it took in a run that was stopped.
    """

    def __init__(self, config: QuantizeConfig, observer: Observer, settings: CheckpointSettings | None = None):
        """Raises ConfigError for settings that contradict each other, and for a device that is not there."""
        if config.planned and config.activation_bits == WIDE_BITS:
            raise ConfigError(
                f"activation_bits: found {WIDE_BITS} beside a budget, which says where activations have as many; take"
                " one of them out"
            )
        self.target = load_target(config.target)
        self.config = settle(config, self.target)
        if self.config.planned and self.config.float_activations and not self.config.planned_alone:
            raise ConfigError(
                f"layers: found activation_bits {FLOAT_BITS} of some beside a budget; weights alone are planned where"
                f" all layers have them; give activation_bits {FLOAT_BITS}, or take the budget out"
            )
        self.given = self.config
        self.place = ""
        self.observer: Observer = LoggedObserver(observer)
        self.threads = config.threads or 0
        self.weights = WeightFile()
        self.device = choose_device(config.device)
        self.resident, self.peak_before = measure_resident(), measure_peak()
        self.memory: MemoryRecord | None = None
        self.checkpointing, self.checkpoints = settings or CheckpointSettings(), Checkpoints()
        self.float_outputs = FloatOutputs()
        self.targets: TargetKeeper | None = None
        self.histograms: dict[str, HistogramRecord] = {}
        self.shared: SharedWeights | None = None
        self.around: Around | None = None
        self.quantized_samples: CalibrationSet | None = None
        self.plan: BitPlan | None = None
        self._digests: dict[CalibrationSet, str] = {}
        self.seconds: dict[str, float] = {}
        self.earlier_seconds: dict[str, float] = {}
        self.current_stage: str | None = None
        self.warnings: list[str] = []
        self.left_out: list[LeftOutRecord] = []

    def for_body(self, path: str, config: QuantizeConfig, around: Around) -> Run:
        """A run of the same target, device and memory on the body of a node, whose lines begin with its path.

        It has its own samples and no checkpoints: a run that goes on does the bodies again, with the same result.
        """
        inner = copy(self)
        inner.config = inner.given = config
        inner.around, inner.quantized_samples = around, None
        inner.place = f"{self.place}{path}/"
        inner.observer = PlacedObserver(self.observer, f"{path}: ")
        inner.checkpointing, inner.checkpoints = CheckpointSettings(), Checkpoints()
        inner.float_outputs, inner.targets, inner.histograms = FloatOutputs(), None, {}
        inner._digests, inner.seconds, inner.earlier_seconds = {}, {}, {}
        inner.warnings, inner.left_out = [], []
        return inner

    def with_bodies(self, config: QuantizeConfig) -> QuantizeConfig:
        """The settings with those of single nodes in bodies, by the plan too, whose bits may need a newer opset."""
        planned = {} if self.plan is None else self.plan.settings()
        return config.model_copy(update={"layers": {**self.given.layers, **planned, **config.layers}})

    def take(self, inner: Run, path: str) -> None:
        """Have what a run ``for_body`` has collected for the report."""
        self.warnings += [f"{path}: {text}" for text in inner.warnings]
        self.left_out += [LeftOutRecord(f"{path}: {each.what}", each.reason) for each in inner.left_out]
        for stage, seconds in inner.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Tell the observer that a stage begins, and time it."""
        self.observer.stage(name)
        self.current_stage = name
        release()
        start = time.perf_counter()
        with listening(self.observer.progress):
            yield
        self.seconds[name] = time.perf_counter() - start + self.earlier_seconds.pop(name, 0.0)
        self.current_stage = None

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Let torch compute as all runs do. Raises DeviceMemoryError where the device's memory ends."""
        self.current_stage = None
        with explain_lack_of_memory(self.device, lambda: self.current_stage), computing(), self.weights.taking():
            yield

    def reaching_workers(self) -> AbstractContextManager[None]:
        """Be connected to the scheduler of the settings. Raises ConfigError where none answers."""
        return reach(self.config.scheduler)

    def digest(self, samples: CalibrationSet) -> str:
        """What identifies samples, which are read once in a run: their owner may change them before the next.

        Raises DataError.
        """
        if samples not in self._digests:
            self._digests[samples] = digest_samples(samples)
        return self._digests[samples]

    def describe_environment(self) -> dict[str, str]:
        """What the report has of versions and the machine."""
        return describe_environment()

    def warn(self, text: str) -> None:
        """Warn the observer, and put the warning into the report, both without control characters of names in it."""
        text = escape_controls(text)
        if text not in self.warnings:  # a stage may be called again
            self.warnings.append(text)
        self.observer.warn(text)

    def leave_out(self, what: str, reason: str) -> None:
        """Tell the observer what is not done and why, and put it into the report."""
        record = LeftOutRecord(what, reason)
        if record not in self.left_out:
            self.left_out.append(record)
        self.observer.note(f"{what}: none, {reason}")
