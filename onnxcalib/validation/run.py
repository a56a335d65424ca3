"""Validate a quantized model from end to end: two models and samples in, a verdict out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import starmap
from pathlib import Path

import numpy as np
from onnx import GraphProto, ModelProto

from ..config import ValidateConfig
from ..data import CalibrationSet, SampleSource, open_calibration
from ..data.labels import choose_labels, find_list
from ..errors import DataError, GateError, ModelError, escape_controls
from ..graph.draws import spell_draws
from ..graph.inspect.interface import check_interface
from ..graph.inspect.unfused import list_unfused
from ..graph.load import is_quantized, load_model, stored_bytes
from ..graph.passes.fix_inputs import fix_inputs
from ..graph.states import mark_states
from ..graph.weight_file import WeightFile
from ..lint.run import check_loaded
from ..progress import listening
from ..quantization.batches import batch_size
from ..quantization.class_axes import find_class_axes
from ..quantization.closed_loop import fill_states, offer, spread_steps
from ..quantization.flips import FLIPS, describe_flips
from ..quantization.layer_facts import describe_layers
from ..quantization.output_parts import Parts, find_parts
from ..quantization.padding_mask import PaddingMask
from ..quantization.past import fill_past
from ..quantization.saturation import SPREAD, advise, measure_saturation
from ..quantization.smoke_test import run_longest_texts
from ..report import LoggedObserver, Observer, SaturationRecord, UnfusedRecord
from ..runtime.environment import describe_environment
from ..runtime.foreign import find_runtime
from ..runtime.optimized import optimize
from ..runtime.session import Session
from ..spec import InputSpec
from ..targets import load_target
from ..verdict import ContractRecord, DeviceRecord, Explanation, ReferenceRecord, Verdict
from .arbitrate import arbitrate, find_obstacle, list_remarks
from .compare import Comparisons, compare
from .explain import explain as explain_loss
from .judge import KERNEL_GATES, check_gates, check_reference, judge
from .kernel_consistency import check_consistency, check_pairs, find_risks
from .next_tokens import reads_tokens
from .on_device import check_placed, run_on_device
from .score import Metric, load_metric
from .timing import clock

Model = str | Path | ModelProto
Labels = str | Path | np.ndarray | Sequence[float]


def validate(
    float_model: Model,
    quantized_model: Model,
    data: SampleSource,
    config: ValidateConfig | None = None,
    *,
    labels: Labels | None = None,
    explain: bool = False,
    observer: Observer | None = None,
) -> Verdict:
    """Measure how much a quantized model lost against its float model, and apply the gates of ``config``.

    labels: a file of classes (see ``labels.read_labels``), or an array or list (samples,) of numbers in the order of
    the samples, integers unless a metric takes floats. Without it the labels of the data are used, if they have any.
    explain: find the layers where the loss arises. Raises ConfigError, ModelError, DataError or GateError. A gate that
    does not hold raises nothing: ask ``Verdict.passed``.
    """
    run = _Run(ValidateConfig.take(config), observer or Observer())
    with listening(run.observer.progress), run.weights.taking():
        return run.validate((float_model, quantized_model), data, take_labels(labels), explain=explain)


class _Run:
    """One validation: its settings, its observer, and the warnings that it gave."""

    def __init__(self, config: ValidateConfig, observer: Observer):
        self.config, self.observer = config, LoggedObserver(observer)
        self.threads = config.threads or 0
        self.weights = WeightFile()
        self.target = load_target(config.target) if config.target else None
        if config.min_placed is not None:
            check_placed(self.target)
        self.warnings: list[str] = []
        self.axes: dict[str, int] = {}  # of classes, by output

    def validate(
        self,
        models: tuple[Model, Model],
        data: SampleSource,
        labels: Path | np.ndarray | None,
        *,
        explain: bool,
    ) -> Verdict:
        """The verdict on the float and the quantized model."""
        metric = load_metric(self.config.metric) if self.config.metric else None
        sources = [model if isinstance(model, ModelProto) else Path(model) for model in models]
        original, quantized = self._load(*sources)
        lint = None if self.target is None else check_loaded(quantized, self.target, _name(sources[1]))
        interface = self._match_inputs(original, quantized)
        samples = self._open_samples(data, interface, original)
        classes = self._choose_labels(labels, metric, samples)
        fused = self._asks_for_kernels()
        (session, graph), padding = self._open(quantized, fused=fused), PaddingMask(original)
        parts = find_parts(original, samples.read(range(samples.fixed_batch or 1)), self.threads)
        compared = self._compare(
            original,
            session,
            samples,
            labels=classes,
            labels_demanded=labels is not None or self.config.max_drop is not None,
            metric=metric,
            padding=padding,
            parts=parts,
        )
        few = spread_steps(samples, SPREAD)  # of sequences; other samples stay
        reference = self._arbitrate(original, quantized, few, padding, parts)
        self.observer.stage("clock")
        latency = clock(original, quantized, few, self.config.batch)
        pair, unfused = (original, quantized), tuple(starmap(UnfusedRecord, list_unfused(quantized, graph)))
        contract = self._check_kernels(quantized, few) if fused else check_pairs(quantized)
        saturation = self._saturate(pair, graph, few, padding, parts) if fused else SaturationRecord()
        self._warn_of_flips(pair, few, compared, padding, parts)
        verdict = Verdict(
            float_model=_name(sources[0]),
            quantized_model=_name(sources[1]),
            settings=self.config.model_dump(mode="json"),
            samples=len(samples),
            scores=compared.scores,
            outputs=compared.outputs,
            float_bytes=stored_bytes(sources[0]),
            quantized_bytes=stored_bytes(sources[1]),
            latency=latency,
            unfused=unfused,
            contract=contract,
            saturation=saturation,
            reference=reference,
            explanation=self._explain(original, quantized, few, parts) if explain else None,
            warnings=tuple(self.warnings),
            lint=lint,
            device=self._run_on_device(pair, few, padding, parts),
            fused=fused,
            closed_loop=compared.closed_loop,
            layers=describe_layers(quantized, graph if fused else None, unfused),
        )
        return replace(verdict, gates=judge(verdict, self.config, compared.missed), environment=describe_environment())

    def _open_samples(self, data: SampleSource, inputs: Sequence[InputSpec], original: ModelProto) -> CalibrationSet:
        inputs = mark_states(original, inputs, self.config.data.state)
        offer(original, inputs, self.config.data, self._warn)
        samples = open_calibration(data, inputs, self.config.data, limit=self.config.samples)
        samples.tell(self.observer.note, self._warn)
        if self.config.data.past == "empty" and not samples.states:
            return samples
        session = Session(original, name="the float model", threads=self.threads)
        return fill_states(session, samples, labelled=True) if samples.states else fill_past(session, samples)

    def _asks_for_kernels(self) -> bool:
        """Whether onnxruntime's kernels are judged, which are not another target's: only where a gate asks for them."""
        own = self.target is None or self.target.is_onnxruntime
        return own or not KERNEL_GATES.isdisjoint(self.config.model_fields_set)

    def _check_kernels(self, quantized: ModelProto, samples: CalibrationSet) -> ContractRecord:
        self.observer.stage("check kernels")
        return check_consistency(quantized, samples, self.threads)

    def _open(self, quantized: ModelProto, *, fused: bool) -> tuple[Session, GraphProto]:
        """A session and its graph of kernels; not ``fused``, a session without optimizations and no graph."""
        if fused:
            return optimize(quantized, self.threads, folder=self.weights.folder)
        return Session(quantized, name="the quantized model", optimize=False, threads=self.threads), GraphProto()

    def _compare(
        self,
        original: ModelProto,
        quantized: Session,
        samples: CalibrationSet,
        *,
        labels: np.ndarray | None,
        labels_demanded: bool,
        metric: tuple[str, Metric] | None,
        padding: PaddingMask,
        parts: Parts,
    ) -> Comparisons:
        """Both models' outputs, once it is clear that the gates can judge them."""
        self.observer.stage("compare")
        reference = Session(original, name="the float model", threads=self.threads)
        run_longest_texts(reference, samples)
        if self.config.class_axis or reads_tokens(samples):
            feeds = samples.read(range(samples.fixed_batch or 1))
            outputs, asked = reference.run(feeds), self.config.class_axis
            self.axes = find_class_axes(asked, outputs, parts, batched=samples.batched, inputs=feeds)
        size = batch_size(reference, samples)
        compared = compare(
            reference,
            quantized,
            samples,
            size,
            labels=labels,
            labels_demanded=labels_demanded,
            metric=metric,
            padding=padding,
            parts=parts,
            class_axes=self.axes,
        )
        for text in compared.notes:
            self._warn(text)
        check_gates(compared, self.config)
        return compared

    def _arbitrate(
        self,
        original: ModelProto,
        quantized: ModelProto,
        samples: CalibrationSet,
        padding: PaddingMask,
        parts: Parts,
    ) -> ReferenceRecord | None:
        """What onnx's evaluator says of onnxruntime's sessions, where that was asked for."""
        if self.config.reference is None:
            return None
        self.observer.stage("ask reference")
        found = arbitrate(
            original,
            quantized,
            samples,
            self.config.reference,
            padding=padding,
            parts=parts,
            class_axes=self.axes,
            threads=self.threads,
        )
        check_reference(self.config, found.reason)
        for text in list_remarks(found):
            self._warn(text)
        return found

    def _run_on_device(
        self,
        models: tuple[ModelProto, ModelProto],
        samples: CalibrationSet,
        padding: PaddingMask,
        parts: Parts,
    ) -> DeviceRecord | None:
        """The file in the target's runtime, where that is installed; a note says where it is not."""
        target = self.target
        if target is None or target.runtime is None:
            return None
        runtime, missing = find_runtime(target.runtime)
        if missing:
            self.observer.note(f"target {target.name}: the file is read and not run; {missing}")
        if runtime is None:
            return None
        self.observer.stage("run on target")
        return run_on_device(
            target.runtime,
            models,
            samples,
            padding=padding,
            parts=parts,
            axes=self.axes,
            threads=self.threads,
            seconds=self.config.device_timeout,
        )

    def _explain(
        self, original: ModelProto, quantized: ModelProto, samples: CalibrationSet, parts: Parts
    ) -> Explanation:
        self.observer.stage("explain")
        return explain_loss(original, quantized, samples, self.threads, parts=parts)

    def _warn_of_flips(
        self,
        models: tuple[ModelProto, ModelProto],
        samples: CalibrationSet,
        compared: Comparisons,
        padding: PaddingMask,
        parts: Parts,
    ) -> None:
        batches = samples.fixed_batch or 1, -(-FLIPS // (samples.fixed_batch or 1))
        for flip in describe_flips(
            *models, samples, compared.outputs, batches=batches, padding=padding, parts=parts, threads=self.threads
        ):
            self._warn(flip.text)

    def _saturate(
        self,
        models: tuple[ModelProto, ModelProto],
        graph: GraphProto,
        samples: CalibrationSet,
        padding: PaddingMask,
        parts: Parts,
    ) -> SaturationRecord:
        """What saturating sums do to the outputs; warns where they can."""
        self.observer.stage("saturate")
        found = measure_saturation(*models, graph, samples, padding=padding, parts=parts, threads=self.threads)
        for text in [*advise(found, models[1], samples), *find_risks(graph, models[1])]:
            self._warn(text)
        return found

    def _load(self, *sources: Path | ModelProto) -> tuple[ModelProto, ModelProto]:
        self.observer.stage("load")
        original, quantized = map(load_model, sources)
        self._check_models(original, quantized)
        self.weights.open_for(original)
        self.weights.open_for(quantized)
        return original, quantized

    def _check_models(self, original: ModelProto, quantized: ModelProto) -> None:
        self._check_reference(quantized)
        if drawing := spell_draws(quantized):
            self._warn(f"{drawing}; both models are run with the same draws")
        if is_quantized(quantized):
            if is_quantized(original):
                self._warn("the first model is quantized too; the loss against a float model is not measured")
            return
        if is_quantized(original):
            raise ModelError(
                "models: the first is quantized and the second is not; the float model comes first; swap the two"
            )
        self._warn("the second model has no quantized operator; two float models are compared")

    def _match_inputs(self, original: ModelProto, quantized: ModelProto) -> tuple[InputSpec, ...]:
        """The inputs that both models take, in the shapes that are set; changes the models."""
        for model in (original, quantized):
            fix_inputs(model, self.config.data.input_shapes)
        return check_interface(original, quantized)

    def _check_reference(self, quantized: ModelProto) -> None:
        """Refuse a gate that the reference cannot judge before any model runs."""
        if self.config.min_reference_sqnr is not None:
            check_reference(self.config, find_obstacle(quantized))

    def _choose_labels(
        self, labels: Path | np.ndarray | None, metric: tuple[str, Metric] | None, samples: CalibrationSet
    ) -> np.ndarray | None:
        classes = choose_labels(labels, samples)
        if self.config.max_drop is not None and classes is None and metric is None and not reads_tokens(samples):
            raise GateError(
                "max_drop: found no labels; accuracy needs the class of every sample; give --labels"
                f" {find_list(samples) or 'FILE'}, or ask for --min-agreement or --min-sqnr in its place"
            )
        return classes

    def _warn(self, text: str) -> None:
        text = escape_controls(text)  # names of models are in it
        self.warnings.append(text)
        self.observer.warn(text)


def take_labels(labels: Labels | None) -> Path | np.ndarray | None:
    """The path of a file of labels, or an array of those given. Raises DataError for anything but numbers."""
    if labels is None:
        return None
    if isinstance(labels, (str, Path)):
        return Path(labels)
    allowed = "a path, an array or a list of one number for each sample is allowed; give class indices"
    found = type(labels).__name__
    if not isinstance(labels, (np.ndarray, Sequence)) or isinstance(labels, bytes):
        raise DataError(f"labels: found {found}; {allowed}")
    try:
        values = np.asarray(labels)
    except ValueError:  # rows of unlike lengths
        raise DataError(f"labels: found {found} of unlike rows; {allowed}") from None
    if values.dtype.kind not in "iuf":
        raise DataError(f"labels: found {found} of {values.dtype}; {allowed}")
    return np.atleast_1d(values)


def _name(source: Path | ModelProto) -> str:
    return str(source) if isinstance(source, Path) else source.graph.name
