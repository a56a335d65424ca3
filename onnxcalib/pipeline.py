"""The main job as one function and as its stages: a float model and samples in, a quantized model and a report out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from onnx import ModelProto

from .bitplan import BitPlan, Frontier, make_record, read_plan
from .config import BUDGETS, DataConfig, QuantizeConfig
from .data import CalibrationSet, InputSpec, SampleSource
from .data import open_calibration as open_samples
from .errors import ConfigError
from .files.scratch import sweep
from .files.writing import check_folder, check_outputs
from .graph.constants import weigh_alone
from .graph.load import stored_files
from .graph.save import fingerprint, save_model
from .graph.stream import model_bytes
from .graph.values import with_values
from .graph.weight_file import WeightFile
from .lint.run import check_loaded
from .quantization.bodies import has_alone, list_excluded, list_left, reconstruct_layers, tell_of_ranges
from .quantization.checkpoints import Checkpoints, CheckpointSettings, keeping
from .quantization.floor import record_memory
from .quantization.histogram_file import take_histograms
from .quantization.in_float import find_fault_of_size
from .quantization.layer_facts import list_places
from .quantization.prepare import list_inputs, load
from .quantization.prepare import prepare as prepare_run
from .quantization.prepared import Prepared
from .quantization.ranges import Ranges, read_ranges
from .quantization.run import Run
from .quantization.speed import compare_speed, find_fault_of_speed
from .quantization.stages import Reconstruction, calibrate_ranges, emit_model
from .quantization.verify import verify as compare_models
from .report import Observer, OutputRecord, Report
from .targets import LintRecord, is_name

__all__ = [
    "Prepared",
    "Ranges",
    "Reconstruction",
    "Result",
    "calibrate",
    "emit",
    "frontier",
    "open_calibration",
    "plan",
    "prepare",
    "quantize",
    "read_ranges",
    "reconstruct",
    "verify",
]

Model = str | Path | ModelProto


@dataclass(frozen=True)
class Result:
    """The quantized model, and a report of what was done and measured.

    stored: the model, whose large weights are references to files where the float model is a large one. sources: the
    files and folders that the run read, which ``save`` leaves as they are; they must stay until then. weights: the file
    of the weights that the run made, which ends with this object. checkpoints: those of the run, which ``save`` removes
    when the file is written. A pickle or a copy has all weights in it, and no checkpoints.
    """

    stored: ModelProto = field(repr=False)
    report: Report
    sources: tuple[Path, ...] = field(default=(), repr=False, compare=False)
    checkpoints: Checkpoints = field(default_factory=Checkpoints, repr=False, compare=False)
    weights: WeightFile | None = field(default=None, repr=False, compare=False)

    def __reduce__(self) -> tuple[type[Result], tuple[ModelProto, Report, tuple[Path, ...]]]:
        return Result, (with_values(self.stored), self.report, self.sources)

    @cached_property
    def model(self) -> ModelProto:
        """The model with all its weights in memory."""
        return with_values(self.stored)

    @property
    def lint(self) -> LintRecord | None:
        """The file against the rules of the target that the settings name; None where they name none."""
        return self.report.lint

    def save(self, path: str | Path, *, report: str | Path | None = None, html: str | Path | None = None) -> None:
        """Write the model, its report and the page of it where files for these are given, aside, then rename all.

        External data hold more than 2 GB. Raises OutputError where a file cannot be written, and for one that the run
        read or that is in a folder that it read.
        """
        target, text, beside = Path(path), self.report.to_json(), dict[Path, str]()
        if report is not None:
            beside[Path(report)] = text + "\n"
        if html is not None:
            from .pages.page import draw_report  # by what no other job needs

            beside[Path(html)] = draw_report(text)
        named = {"the model": target, "the report": report, "the page": html}
        check_outputs({name: None if each is None else Path(each) for name, each in named.items()}, self.sources)
        save_model(self.stored, target, beside=beside)
        self.checkpoints.remove()


def open_calibration(
    data: SampleSource,
    model: Model | Sequence[InputSpec],
    config: DataConfig | None = None,
    *,
    limit: int | None = None,
) -> CalibrationSet:
    """Samples for the inputs of a model. They are checked once, and can be given to any of the other functions.

    data: see ``onnxcalib.data.open_calibration``. model: a file, a model, or the descriptions of its inputs. limit: the
    number of samples after which reading stops. Raises ModelError or DataError.
    """
    config = DataConfig.take(config)
    return open_samples(data, list_inputs(model, config), config, limit=limit)


def quantize(
    model: Model,
    calibration: SampleSource,
    config: QuantizeConfig | None = None,
    *,
    plan: str | Path | BitPlan | None = None,
    ranges: str | Path | Ranges | None = None,
    test: SampleSource | None = None,
    output: str | Path | None = None,
    observer: Observer | None = None,
) -> Result:
    """Quantize a float ONNX model with a few unlabelled samples.

    test: samples on which the result is measured. Without them a quarter of the others is held out for that, where
    there are 64 or more. plan: a bit plan, or its file, with the bits of every layer. Without it the settings give the
    bits; if they have a budget, a plan is made. ranges: those of activations, or their file; without them they are
    calibrated. output: the file that the result will be saved as: until then checkpoints are kept beside it, or in
    ``work_dir``, from which the next call goes on where this one is stopped. Raises ModelError, DataError, ConfigError,
    OutputError or DeviceMemoryError. The model given is not changed.
    """
    with _open_run(config, observer) as run, keeping(run):
        if plan is not None and run.config.planned:
            raise ConfigError("plan: found a budget beside it; its bits are chosen already; give one of them")
        sources = _list_sources(run.config, model, calibration, plan, ranges, test)
        if ranges is not None and run.config.planned:
            raise ConfigError(
                "ranges: found a budget beside them; a plan decides which ranges are needed; plan first, calibrate with"
                " the plan, and give both"
            )
        model, plan, given = load(model, run.config.data), _read_plan(plan), _read_ranges(ranges)
        _check_given(model, plan, given)
        beside = {name: each.to_json() for name, each in (("plan", plan), ("ranges", given)) if each is not None}
        run.checkpointing = CheckpointSettings.of(run.config, output, beside)
        if run.checkpointing.path is not None:
            check_folder(run.checkpointing.path, sources)
        prepared = prepare_run(run, model, calibration, plan, test=test)
        if given is not None and (names := sorted(run.config.model_fields_set & {"range", "percentile"})):
            run.warn(f"{', '.join(names)}: found beside ranges, which are used as they are; leave one of both out")
        if run.config.planned:
            from .planning.run import choose_bits  # whose solver takes as long to import as small models to quantize

            text = run.checkpoints.recall("plan", lambda: choose_bits(prepared).to_json(), str)
            plan = make_record(BitPlan, json.loads(text), where="plan", again="plan the model again")
            prepared = prepared.with_plan(plan)
        if given is not None:
            tell_of_ranges(prepared)
        found = reconstruct_layers(prepared, given or calibrate_ranges(prepared))
        quantized = emit_model(prepared, found)
        report = _verify(prepared, found, quantized, plan)
        if plan is not None and run.config.max_size is not None and report.quantized_bytes > plan.budgets["max_size"]:
            raise ConfigError(
                f"max_size: found {report.quantized_bytes:,} bytes where {plan.totals.bytes:,} were planned;"
                f" {plan.budgets['max_size']:,.0f} are allowed; plan with that much less"
            )
    run.checkpoints.close()
    return Result(quantized, report, sources, run.checkpoints, run.weights)


def plan(
    model: Model, calibration: SampleSource, config: QuantizeConfig, *, observer: Observer | None = None
) -> BitPlan:
    """Choose the bits of every layer within the settings' budgets, from the loss and the cost of each set of layers.

    Raises ConfigError for settings without a budget. For budgets that no plan meets it says what can be reached.
    """
    config = QuantizeConfig.take(config)
    if not config.planned:
        raise ConfigError(f"max_size: found no budget; give one of {', '.join(BUDGETS)} to plan within")
    from .planning.run import choose_bits

    with _open_run(config, observer) as run:
        return choose_bits(prepare_run(run, load(model, config.data), calibration))


def frontier(
    model: Model, calibration: SampleSource, config: QuantizeConfig | None = None, *, observer: Observer | None = None
) -> Frontier:
    """The least loss for every size of the file, from the measurements of ``plan``, which are kept in the cache."""
    config = QuantizeConfig.take(config)
    if not config.planned:  # a budget that all bits meet
        config = config.model_copy(update={"max_size": "1@8-bit"})
    from .planning.run import trace

    with _open_run(config, observer) as run:
        return trace(prepare_run(run, load(model, config.data), calibration))


def prepare(
    model: Model,
    calibration: SampleSource,
    config: QuantizeConfig | None = None,
    *,
    plan: str | Path | BitPlan | None = None,
    test: SampleSource | None = None,
    observer: Observer | None = None,
) -> Prepared:
    """The first stage: rewrite the model for quantization, and check the samples and that its outputs do not change.

    Bits are those of the settings, or of a bit plan. test: samples for ``verify``, as in ``quantize``. Raises
    ModelError, DataError or ConfigError. The model given is not changed.
    """
    with _open_run(config, observer) as run:
        if run.config.planned:
            budget = next(name for name in BUDGETS if getattr(run.config, name) is not None)
            raise ConfigError(
                f"{budget}: found a budget; stages take the bits of the settings or of a plan; plan first, and give"
                " the plan"
            )
        model, plan = load(model, run.config.data), _read_plan(plan)
        _check_given(model, plan, None)
        return prepare_run(run, model, calibration, plan, test=test)


def calibrate(
    prepared: Prepared, *, histograms: str | Path | None = None, save_histograms: str | Path | None = None
) -> Ranges:
    """The second stage: find the range of each activation.

    histograms: a file of them, which an earlier call wrote as ``save_histograms``: the samples are not read. Raises
    DataError for values that are not finite, ConfigError for a file that does not fit, and OutputError.
    """
    _check_stage(prepared, Prepared)
    tell_of_ranges(prepared)
    with prepared.run.computing():
        return calibrate_ranges(take_histograms(prepared, histograms, save_histograms), alone=True)


def reconstruct(prepared: Prepared, ranges: str | Path | Ranges | None = None) -> Reconstruction:
    """The third stage: round or reconstruct the layers, then tune them, according to the settings.

    Without ranges they are calibrated. Raises ConfigError for ranges that do not fit the model, and DeviceMemoryError.
    """
    _check_stage(prepared, Prepared)
    with prepared.run.computing():
        return reconstruct_layers(prepared, _read_ranges(ranges) or calibrate_ranges(prepared))


def emit(prepared: Prepared, found: Reconstruction) -> ModelProto:
    """The last stage: write the QDQ model, with all its weights. Raises ModelError where onnx's checker refuses it."""
    _check_stage(prepared, Prepared)
    _check_stage(found, Reconstruction)
    with prepared.run.weights.taking():
        return with_values(emit_model(prepared, found))


def verify(prepared: Prepared, found: Reconstruction, quantized: ModelProto) -> Report:
    """Compare the quantized model with the float one, on the samples to measure on, and make the report."""
    with prepared.run.computing():
        return _verify(prepared, found, quantized, None)


@contextmanager
def _open_run(config: QuantizeConfig | None, observer: Observer | None) -> Iterator[Run]:
    run = Run(QuantizeConfig.take(config), observer or Observer())
    for path in sweep():
        run.observer.note(f"removed {path}, which a run that was killed had left")
    with run.computing(), run.reaching_workers():
        yield run


def _read_plan(plan: str | Path | BitPlan | None) -> BitPlan | None:
    return plan if plan is None or isinstance(plan, BitPlan) else read_plan(Path(plan))


def _check_given(model: ModelProto, plan: BitPlan | None, ranges: Ranges | None) -> None:
    """Refuse a plan or ranges of another model before any work is done."""
    if plan is not None or ranges is not None:
        found = fingerprint(model)
        for given in (plan, ranges):
            if given is not None:
                given.check(found)


_MADE_BY: dict[type, str] = {Prepared: "prepare(model, calibration)", Reconstruction: "reconstruct(prepared)"}


def _check_stage(given: object, kind: type) -> None:
    if not isinstance(given, kind):
        raise ConfigError(
            f"{kind.__name__.lower()}: found {type(given).__name__}; a stage reads what the stage before it returns;"
            f" give the result of {_MADE_BY[kind]}"
        )


def _list_sources(config: QuantizeConfig, model: object, *others: object) -> tuple[Path, ...]:
    """The files and folders among what a run was given, those of the model's external data included."""
    own = stored_files(Path(model)) if isinstance(model, (str, Path)) else ()
    target = None if is_name(config.target) else config.target
    named = (*others, config.latencies, config.data.tokenizer, target)
    given = (Path(each) for each in named if isinstance(each, (str, Path)))
    return tuple(path.absolute() for path in (*own, *given))  # links are followed when an output is compared with them


def _read_ranges(ranges: str | Path | Ranges | None) -> Ranges | None:
    return ranges if ranges is None or isinstance(ranges, Ranges) else read_ranges(ranges)


def _verify(prepared: Prepared, found: Reconstruction, quantized: ModelProto, planned: BitPlan | None) -> Report:
    """Compare the quantized model with the float one, and make the report."""
    run, prepared = prepared.run, prepared.leave(found.in_float)
    with run.stage("verify"):
        measured = compare_models(prepared, quantized, found.scheme.stored)
        for text in measured.warnings:
            run.warn(text)
        _check_drop(prepared, planned, measured.outputs)
        in_float = list_left(prepared, found)
        sizes = model_bytes(prepared.original), model_bytes(quantized)
        if fault := find_fault_of_size(in_float, *sizes):
            run.warn(fault)
        speed = compare_speed(prepared, quantized) if run.target.is_onnxruntime else None
        if fault := find_fault_of_speed(speed):
            run.warn(fault)
    return Report(
        settings=prepared.config.model_dump(mode="json"),
        target=None if run.target.is_onnxruntime else run.target.name,
        passes=dict(prepared.passes),
        blocks=(*found.blocks, *(block for body in found.bodies for block in body.blocks)),
        steps=found.stages,
        layers=(*measured.layers, *(layer for body in found.bodies for layer in body.layers)),
        outputs=measured.outputs,
        outputs_unoptimized=measured.outputs_unoptimized,
        saturation=measured.saturation,
        unfused=measured.unfused,
        float_bytes=sizes[0],
        quantized_bytes=sizes[1],
        bits_per_weight=weigh_alone(prepared.original, quantized, alone=has_alone(found)),
        samples=len(prepared.samples),
        measured_on=prepared.measured_on,
        seconds=run.seconds,
        float_pass_seconds=measured.float_pass_seconds,
        memory=record_memory(run, prepared.model),
        speed=speed,
        warnings=tuple(run.warnings),
        left_out=tuple(run.left_out),
        in_float=in_float,
        plan=None if planned is None else planned.model_dump(mode="json", by_alias=True),
        closed_loop=measured.closed_loop,
        lint=_hold_to_target(prepared, quantized, list_excluded(prepared, found).union(each.name for each in in_float)),
        smoothing=None if prepared.smoothing is None else prepared.smoothing.record(),
        rotation=None if prepared.rotation is None else prepared.rotation.record(),
        places=list_places(prepared.model, prepared.scheme),
        environment=run.describe_environment(),
    )


def _hold_to_target(prepared: Prepared, quantized: ModelProto, meant: Set[str]) -> LintRecord | None:
    """The lint of the file that was made, where the user named its target. meant: names of nodes that are float."""
    run = prepared.run
    if "target" not in run.config.model_fields_set:
        return None
    return check_loaded(quantized, run.target, quantized.graph.name, in_float=meant)


def _check_drop(prepared: Prepared, planned: BitPlan | None, outputs: Sequence[OutputRecord]) -> None:
    """Warn if more answers differ than the plan allows: it was made from layers that were solved, but not learned.

    Samples that the plan has not seen, which are few, must differ in so many answers that chance does not explain it.
    """
    seen = prepared.measured_on.source == "calibration"
    found = ((r.agreement, r.agreement_interval) for r in outputs if r.agreement is not None)
    least = min((own if seen or ends is None else ends[1] for own, ends in found), default=1.0)
    allowed = planned.budgets.get("max_disagreement", 100.0) if planned else 100.0
    if 100 * (1 - least) > allowed:
        found_in = (
            "in the model" if seen else f"or more on the {prepared.measured_on.samples} samples it is measured on"
        )
        prepared.run.warn(
            f"max_disagreement: found {100 * (1 - least):.4g} {found_in} where {allowed:.4g} was planned for;"
            " reconstruct its layers, or plan with less"
        )
