"""The main job from end to end: a float model and a calibration set in, a verified QDQ model and a report out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from onnx import ModelProto

from .bitplan import BitPlan, Frontier, read_plan
from .config import BUDGETS, EFFORTS, QuantizeConfig
from .data import CalibrationSet
from .data.images import image_axes
from .errors import ConfigError
from .graph.blocks import find_blocks
from .graph.check import check_model
from .graph.extract import infer_types
from .graph.save import check_output, fingerprint, model_bytes, save_model
from .planning.run import choose_bits, trace
from .quantization.biases import tune_biases
from .quantization.calibrate import batch_size
from .quantization.evaluate import Evaluator, is_nearer
from .quantization.probes import draw_probes
from .quantization.reconstruct import reconstruct
from .quantization.run import Ready, Run, load
from .quantization.solve import round_embeddings, round_layers
from .quantization.state import ReconstructionState
from .quantization.statistics import SAMPLES, tune_statistics
from .quantization.verify import verify
from .report import BlockRecord, Observer, OutputRecord, Report, StepRecord
from .runtime.device import computing
from .runtime.session import Session
from .runtime.store import Store
from .spec import QuantScheme

__all__ = ["Result", "check_output", "frontier", "plan", "quantize"]


@dataclass(frozen=True)
class Result:
    """The quantized model, and what was done and measured."""

    model: ModelProto
    report: Report

    def save(self, path: str | Path) -> None:
        """Write the model aside and rename it; more than 2 GB goes to external data. Raises OutputError."""
        save_model(self.model, Path(path))


def quantize(
    model: str | Path | ModelProto,
    calibration: str | Path | np.ndarray | Mapping[str, np.ndarray] | Sequence[str] | CalibrationSet,
    config: QuantizeConfig | None = None,
    *,
    plan: str | Path | BitPlan | None = None,
    observer: Observer | None = None,
) -> Result:
    """Quantize a float ONNX model with a few unlabelled samples.

    Bits are those of the settings, of a bit plan, or of one made for the settings' budgets. Raises ModelError,
    DataError or ConfigError; the model given is not changed.
    """
    run = Run(config or QuantizeConfig(), observer or Observer())
    if plan is not None and run.config.planned:
        raise ConfigError("plan: found a budget beside it; its bits are chosen already; give one of them")
    with computing(run.config.threads):
        if plan is not None:
            plan = plan if isinstance(plan, BitPlan) else read_plan(Path(plan))
            plan.check(fingerprint(load(model)))
            run.obey(plan)
        ready = run.prepare(model, calibration)
        if run.config.planned:
            plan = choose_bits(run, ready)
            run.obey(plan)
        result = _quantize(run, ready, plan)
    if run.config.max_size is not None and result.report.quantized_bytes > plan.budgets["max_size"]:
        raise ConfigError(
            f"max_size: found {result.report.quantized_bytes:,} bytes where {plan.totals.bytes:,} were planned;"
            f" {plan.budgets['max_size']:,.0f} are allowed; plan with that much less"
        )
    return result


def plan(
    model: str | Path | ModelProto,
    calibration: str | Path | np.ndarray | Mapping[str, np.ndarray] | Sequence[str] | CalibrationSet,
    config: QuantizeConfig,
    *,
    observer: Observer | None = None,
) -> BitPlan:
    """Choose the bits of every layer within the settings' budgets, by what each set of layers alone loses and costs.

    Raises ConfigError for settings without a budget, and for budgets that no plan meets, with what can be reached.
    """
    if not config.planned:
        raise ConfigError(f"max_size: found no budget; give one of {', '.join(BUDGETS)} to plan within")
    run = Run(config, observer or Observer())
    with computing(config.threads):
        return choose_bits(run, run.prepare(model, calibration))


def frontier(
    model: str | Path | ModelProto,
    calibration: str | Path | np.ndarray | Mapping[str, np.ndarray] | Sequence[str] | CalibrationSet,
    config: QuantizeConfig | None = None,
    *,
    observer: Observer | None = None,
) -> Frontier:
    """The least loss for every size of the file, from the measurements that ``plan`` makes, or made."""
    config = config or QuantizeConfig()
    if not config.planned:  # one that every choice keeps
        config = config.model_copy(update={"max_size": "1@8-bit"})
    run = Run(config, observer or Observer())
    with computing(config.threads):
        return trace(run, run.prepare(model, calibration))


def _quantize(run: Run, ready: Ready, planned: BitPlan | None = None) -> Result:
    scheme = run.scheme(ready)
    quantized, records, steps = _settle(run, ready, scheme)
    with run.stage("verify"):
        original, samples = ready.original, ready.samples
        layers = (*scheme.embeddings, *scheme.layers)
        found = verify(original, ready.prepared.model, quantized, layers, samples, threads=run.threads)
        for name, reason in found.missed.items():
            run.warn(f"output {name} was not compared: {reason}")
        _check_drop(run, planned, found.outputs)
    report = Report(
        settings=run.config.model_dump(mode="json"),
        passes=ready.prepared.passes,
        blocks=records,
        steps=steps,
        layers=found.layers,
        outputs=found.outputs,
        outputs_unoptimized=found.outputs_unoptimized,
        saturation=found.saturation,
        unfused=found.unfused,
        float_bytes=model_bytes(original),
        quantized_bytes=model_bytes(quantized),
        samples=len(samples),
        seconds=run.seconds,
        float_pass_seconds=found.float_pass_seconds,
        warnings=tuple(run.warnings),
        plan=None if planned is None else planned.model_dump(mode="json", by_alias=True),
    )
    return Result(quantized, report)


def _check_drop(run: Run, planned: BitPlan | None, outputs: Sequence[OutputRecord]) -> None:
    """Warn where the model drops more than its plan, which was measured on layers that are solved, was to."""
    least = min((record.agreement for record in outputs if record.agreement is not None), default=1.0)
    allowed = planned.budgets.get("max_drop", 100.0) if planned else 100.0
    if 100 * (1 - least) > allowed:
        run.warn(
            f"max_drop: found {100 * (1 - least):.4g} in the model where {allowed:.4g} was planned for; reconstruct its"
            " layers, or plan with less"
        )


def _settle(run: Run, ready: Ready, scheme: QuantScheme):
    """The quantized model, the records of its blocks, and those of the steps."""
    model, samples = ready.prepared.model, ready.samples
    with run.stage("calibrate"):
        histograms = run.collect(ready, scheme)
        activations, requantized = run.grids(ready, scheme, histograms)
        lossless = run.keep_lossless(ready, scheme, histograms)
        if lossless:
            run.observer.note(f"{', '.join(lossless)}: read on the levels of their values")
    with run.stage("reconstruct"), Store() as store:
        size = batch_size(Session(model, also=list(scheme.activations), threads=run.threads), samples)
        state = ReconstructionState(
            model, infer_types(model), scheme, run.config, store, [], activations, requantized, run.device
        )
        state.frozen |= lossless.keys()
        state.layers |= round_embeddings(state.index, scheme)
        records: tuple[BlockRecord, ...] = ()
        if run.config.does("reconstruct"):
            state.fill(samples, size, _view_axes(run, samples, scheme))
            _probe(run, state, samples)
            records = reconstruct(state, find_blocks(model, scheme), run.observer)
        else:
            round_layers(state)
    steps = _tune(run, ready, state, size)
    quantized = _emit(run, ready, state)
    check_model(quantized)
    return quantized, records, steps


def _emit(run: Run, ready: Ready, state: ReconstructionState) -> ModelProto:
    return run.emit(ready.prepared.model, state.scheme, (state.activations, state.requantized), state.layers)


def _tune(run: Run, ready: Ready, state: ReconstructionState, size: int) -> tuple[StepRecord, ...]:
    """The steps behind the first, each kept where it brings the outputs nearer to the float model's."""
    tuners = {"statistics": _tune_statistics, "biases": tune_biases}
    wanted = [name for name in tuners if run.config.does(name)]
    if not wanted:
        return ()
    with Store() as wanted_outputs:
        with run.stage("evaluate"):
            evaluator = Evaluator(ready.original, ready.samples, wanted_outputs, run.threads)
            first = "reconstruct" if run.config.does("reconstruct") else "round"
            outputs, losses = evaluator.evaluate(_emit(run, ready, state))
            records = [StepRecord(first, "done", outputs)]
        for name in wanted:
            with run.stage(name), Store() as store:
                again = replace(state, store=store, sizes=[], masks=[], passes=1, layers=dict(state.layers))
                if name == "statistics":
                    again.fill_some(ready.samples, size, SAMPLES)
                else:
                    again.fill(ready.samples, size)
                kept, remark = tuners[name](again)
                if kept:
                    found, left = evaluator.evaluate(_emit(run, ready, again))
                    kept = is_nearer(left, losses)
                    remark = remark if kept else "the outputs were no nearer to the float model's"
            if kept:
                state.layers, outputs, losses = again.layers, found, left
            records.append(StepRecord(name, "kept" if kept else "rolled back", outputs, remark))
            run.observer.note(f"{name}: {records[-1].outcome}{f', {remark}' if remark else ''}")
    return tuple(records)


def _tune_statistics(state: ReconstructionState) -> tuple[bool, None]:
    tune_statistics(state)
    return True, None


def _view_axes(run: Run, samples: CalibrationSet, scheme: QuantScheme) -> tuple[int, int] | None:
    """Axes of rows and columns where there are to be views: of image files, and of arrays only if asked for."""
    views = run.config.image_views(scheme.least_weight_bits)
    if not views or (run.config.views is None and not samples.images):
        return None
    values = list(samples.read(range(samples.fixed_batch or 1)).values())
    axes = image_axes(values[0].shape, run.config.data) if len(values) == 1 else None
    if axes is None:
        run.warn("views: none were made; one input of images is needed, of 4 dimensions and 1 or 3 channels")
    else:
        run.observer.note(f"{views} views of each image beside itself")
    return axes


def _probe(run: Run, state: ReconstructionState, samples: CalibrationSet) -> None:
    count, reason = draw_probes(state, samples, EFFORTS[run.config.effort].probes)
    if reason:
        run.observer.note(f"layers solved for the model's outputs: none, {reason}")
    elif count:
        run.observer.note(f"layers solved for the model's outputs: {count}")
