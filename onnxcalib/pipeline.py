"""The main job from end to end: a float model and a calibration set in, a verified QDQ model and a report out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto

from .bitplan import CANDIDATE_OF, BitPlan, read_plan
from .config import EFFORTS, FULL_BITS, LayerConfig, QuantizeConfig
from .data import CalibrationSet, open_calibration
from .errors import ConfigError, ModelError
from .graph.blocks import find_blocks
from .graph.emit import emit_qdq
from .graph.extract import infer_types
from .graph.load import inputs_of, load_model
from .graph.plan import make_plan
from .graph.save import check_output, fingerprint, model_bytes, save_model
from .graph.select import Selection, select_nodes
from .graph.shapes import describe_outputs
from .images import image_axes
from .report import BlockRecord, Observer, Report
from .runtime.device import choose_device, full_precision
from .runtime.session import Session
from .runtime.store import Store
from .spec import Candidate, QParams, QuantPlan
from .steps.align import align_inputs, keep_aligned
from .steps.allocate import Bits
from .steps.calibrate import batch_size, choose_grids, collect_histograms, with_outputs
from .steps.prepare import Prepared, check_unchanged, prepare
from .steps.probes import draw_probes
from .steps.reconstruct import reconstruct
from .steps.sensitivity import Grids, measure_sets
from .steps.solve import Walk, round_layers
from .steps.stitch import make_bit_plan
from .steps.verify import verify

__all__ = ["Result", "check_output", "plan", "quantize"]


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
    calibration: str | Path | np.ndarray | Mapping[str, np.ndarray] | CalibrationSet,
    config: QuantizeConfig | None = None,
    *,
    plan: str | Path | BitPlan | None = None,
    observer: Observer | None = None,
) -> Result:
    """Quantize a float ONNX model with a few unlabelled samples.

    Bits are those of the settings, of a bit plan, or of one made for the settings' budgets. Raises ModelError,
    DataError or ConfigError; the model given is not changed.
    """
    run = _Run(config or QuantizeConfig(), observer or Observer())
    if plan is not None and run.config.planned:
        raise ConfigError("plan: found a budget beside it; its bits are chosen already; give one of them")
    if plan is None and not run.config.planned:
        return run.call(run.quantize, model, calibration)
    if plan is None:
        plan = run.call(run.plan, model, calibration)
    else:
        plan = plan if isinstance(plan, BitPlan) else read_plan(Path(plan))
        plan.check(fingerprint(_load(model)))
    run = _Run(_with_bits(run.config, plan.settings()), run.observer)
    result = run.call(run.quantize, model, calibration)
    if run.config.max_size is not None and result.report.quantized_bytes > plan.budgets["max_size"]:
        raise ConfigError(
            f"max_size: found {result.report.quantized_bytes:,} bytes where {plan.totals.bytes:,} were planned;"
            f" {plan.budgets['max_size']:,.0f} are allowed; plan with that much less"
        )
    return result


def plan(
    model: str | Path | ModelProto,
    calibration: str | Path | np.ndarray | Mapping[str, np.ndarray] | CalibrationSet,
    config: QuantizeConfig,
    *,
    observer: Observer | None = None,
) -> BitPlan:
    """Choose the bits of every layer within the settings' budgets, by what each set of layers alone loses and costs.

    Raises ConfigError for settings without a budget, and for budgets that no plan meets, with what can be reached.
    """
    if not config.planned:
        raise ConfigError("max_size: found no budget; give max_size, max_bops or max_loss to plan within")
    run = _Run(config, observer or Observer())
    return run.call(run.plan, model, calibration)


def _load(model: str | Path | ModelProto) -> ModelProto:
    return load_model(model if isinstance(model, ModelProto) else Path(model))


@dataclass(frozen=True)
class _Ready:
    """The model as it was given and as it is prepared, its nodes' names before, and what its samples say of it."""

    original: ModelProto
    prepared: Prepared
    names: list[str]
    samples: CalibrationSet
    fixed: dict[str, QParams]


class _Run:
    def __init__(self, config: QuantizeConfig, observer: Observer):
        self.config, self.observer = config, observer
        self.threads = config.threads or 0
        self.device = choose_device(config.device)
        self.seconds: dict[str, float] = {}
        self.warnings: list[str] = []

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.observer.stage(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def call(self, what: Callable[..., Any], *arguments: Any) -> Any:
        """What a method gives, computed on as many threads as the settings say."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            with full_precision():
                return what(*arguments)
        finally:
            torch.set_num_threads(before)

    def plan(self, model, calibration) -> BitPlan:
        return self._choose_bits(self._prepare(model, calibration))

    def quantize(self, model, calibration) -> Result:
        ready = self._prepare(model, calibration)
        plan = self._plan(ready)
        quantized, records = self._quantize(ready, plan)
        with self._stage("verify"):
            original, samples = ready.original, ready.samples
            found = verify(original, ready.prepared.model, quantized, plan.layers, samples, threads=self.threads)
            for name, reason in found.missed.items():
                self._warn(f"output {name} was not compared: {reason}")
        report = Report(
            settings=self.config.model_dump(mode="json"),
            passes=ready.prepared.passes,
            blocks=records,
            layers=found.layers,
            outputs=found.outputs,
            outputs_unoptimized=found.outputs_unoptimized,
            unfused=found.unfused,
            float_bytes=model_bytes(original),
            quantized_bytes=model_bytes(quantized),
            samples=len(samples),
            seconds=self.seconds,
            float_pass_seconds=found.float_pass_seconds,
            warnings=tuple(self.warnings),
        )
        return Result(quantized, report)

    def _prepare(self, model, calibration) -> _Ready:
        with self._stage("prepare"):
            original = _load(model)
            Session(original, threads=self.threads)
            samples = self._open(original, calibration)
            prepared = prepare(load_model(original), self.config)
            ready = _Ready(original, prepared, [n.name for n in original.graph.node if n.name], samples, {})
            # Bits that are planned may be more than the settings': whether to rescale must not depend on them.
            plan = self._plan(ready, **({"activation_bits": FULL_BITS} if self.config.planned else {}))
            fixed, rescaled = align_inputs(prepared.model, plan, samples, self.threads)
            if rescaled:
                prepared.passes["rescale_input"] = rescaled
                plan = self._plan(ready)
            for name, count in prepared.passes.items():
                if count:
                    self.observer.note(f"{name}: {count}")
            feeds = samples.read(range(samples.fixed_batch or 1))
            change = check_unchanged(original, prepared.model, feeds, self.threads)
            self.observer.note(f"outputs unchanged by preparation to {change:.1e} of their largest value")
            self.observer.note(f"{len(plan.layers)} layers and {len(plan.activations)} activations to quantize")
        return replace(ready, fixed=fixed)

    def _open(self, model: ModelProto, calibration) -> CalibrationSet:
        samples = open_calibration(calibration, inputs_of(model), self.config.data, limit=self.config.samples)
        for text in samples.warnings:
            self._warn(text)
        return samples

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.observer.warn(text)

    def _plan(self, ready: _Ready, layers: Mapping[str, LayerConfig] | None = None, **bits: int) -> QuantPlan:
        """The plan of the settings, or of other bits; those of ``layers``, by name, stand above both."""
        model = ready.prepared.model
        chosen = select_nodes(model, self.config, before=ready.names)
        return make_plan(
            model,
            weight_bits=bits.get("weight_bits", self.config.weight_bits),
            activation_bits=bits.get("activation_bits", self.config.activation_bits),
            first_last_bits=self.config.first_last_bits,
            selection=Selection(chosen.excluded, (*chosen.layers, *(layers or {}).items())),
        )

    def _grids(self, ready: _Ready, plan: QuantPlan, histograms) -> tuple[dict[str, QParams], dict[str, QParams]]:
        """Grids of the planned tensors, those of the model's inputs on the levels of their values if that can be."""
        activations, narrowed = choose_grids(plan, histograms, self.config)
        return activations | self._keep_aligned(ready, plan, histograms), narrowed

    def _keep_aligned(self, ready: _Ready, plan: QuantPlan, histograms) -> dict[str, QParams]:
        fixed = {t: grid for t, grid in ready.fixed.items() if plan.activations[t].bits == grid.spec.bits}
        return keep_aligned(fixed, histograms)

    def _collect(self, ready: _Ready, plan: QuantPlan):
        return collect_histograms(ready.prepared.model, list(plan.activations), ready.samples, threads=self.threads)

    def _quantize(self, ready: _Ready, plan: QuantPlan) -> tuple[ModelProto, tuple[BlockRecord, ...]]:
        """The quantized model and the blocks' records."""
        model, samples = ready.prepared.model, ready.samples
        with self._stage("calibrate"):
            histograms = self._collect(ready, plan)
            activations, narrowed = self._grids(ready, plan, histograms)
            aligned = self._keep_aligned(ready, plan, histograms)
            if aligned:
                self.observer.note(f"{', '.join(aligned)}: read on the levels of their values")
        with self._stage("reconstruct"), Store() as store:
            size = batch_size(Session(with_outputs(model, list(plan.activations)), threads=self.threads), samples)
            walk = Walk(model, infer_types(model), plan, self.config, store, [], activations, narrowed, self.device)
            walk.settled |= aligned.keys()
            records: tuple[BlockRecord, ...] = ()
            if self.config.reconstruct:
                walk.fill(samples, size, self._view_axes(samples, plan))
                self._probe(walk, samples)
                records = reconstruct(walk, find_blocks(model, plan), self.observer)
            else:
                round_layers(walk)
        quantized = self._emit(model, plan, (walk.activations, walk.narrowed), walk.layers)
        _check(quantized)
        return quantized, records

    def _emit(self, model: ModelProto, plan: QuantPlan, grids, layers, config: QuantizeConfig | None = None):
        """The QDQ model; ``config``: settings that it is to name, if not those of this run."""
        encoding = self.config.encoding
        quantized = emit_qdq(model, plan, *grids, layers, encoding=encoding, keep_outputs=False)
        _describe(quantized, plan, config or self.config)
        return quantized

    def _choose_bits(self, ready: _Ready) -> BitPlan:
        """Measure the sets and choose their bits within the settings' budgets."""
        with self._stage("plan"):
            histograms = self._collect(ready, self._plan(ready))
            uniform = {}
            for candidate in (CANDIDATE_OF[name] for name in dict.fromkeys(("W8A8", *self.config.candidates))):
                plan = self._plan(ready, **candidate._asdict())
                uniform[candidate] = Grids(plan, *self._grids(ready, plan, histograms))
            self.observer.blocks(len(uniform[candidate].plan.layers))
            tell = self.observer.planned
            model, samples = ready.prepared.model, ready.samples
            measured = measure_sets(model, uniform, samples, self.config, device=self.device, tell=tell)

            def stitch(bits: Bits) -> ModelProto:
                own = {n: c for each, c in zip(measured.sets, bits, strict=True) for n in each.layers}
                layers = {name: LayerConfig(**_bits_of(uniform[c].plan, name)._asdict()) for name, c in own.items()}
                plan = self._plan(ready, layers)
                grids = self._grids(ready, plan, histograms)
                params = {name: measured.params[name][c] for name, c in own.items()}
                return self._emit(model, plan, grids, params, config=_with_bits(self.config, layers))

            def name_of(layer: str, candidate: Candidate) -> str:
                return str(_bits_of(uniform[candidate].plan, layer))

            excluded = [k.name for k in make_plan(model).layers if k.name not in measured.params]
            return make_bit_plan(
                ready.original, measured, stitch, self.config, samples, name_of=name_of, excluded=excluded
            )

    def _view_axes(self, samples: CalibrationSet, plan: QuantPlan) -> tuple[int, int] | None:
        """Axes of rows and columns where there are to be views: of image files, and of arrays only if asked for."""
        views = self.config.image_views(plan.least_weight_bits)
        if not views or (self.config.views is None and not samples.images):
            return None
        values = list(samples.read(range(samples.fixed_batch or 1)).values())
        axes = image_axes(values[0].shape, self.config.data) if len(values) == 1 else None
        if axes is None:
            self._warn("views: none were made; one input of images is needed, of 4 dimensions and 1 or 3 channels")
        else:
            self.observer.note(f"{views} views of each image beside itself")
        return axes

    def _probe(self, walk: Walk, samples: CalibrationSet) -> None:
        count, reason = draw_probes(walk, samples, EFFORTS[self.config.effort].probes)
        if reason:
            self.observer.note(f"layers solved for the model's outputs: none, {reason}")
        elif count:
            self.observer.note(f"layers solved for the model's outputs: {count}")


def _describe(model: ModelProto, plan: QuantPlan, config: QuantizeConfig) -> None:
    """Write the tool's version, the settings and every layer's bits into the model's metadata."""
    bits = {layer.name: str(layer.bits) for layer in plan.layers}
    entries = {
        "onnxcalib.version": version("onnxcalib"),
        "onnxcalib.settings": config.model_dump_json(),
        "onnxcalib.bits": json.dumps(bits),
    }
    for key, value in entries.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value


def _with_bits(config: QuantizeConfig, layers: Mapping[str, LayerConfig]) -> QuantizeConfig:
    """The settings with these bits of single layers."""
    others = {name: each for name, each in config.layers.items() if name not in layers}
    return config.model_copy(update={"layers": {**others, **layers}})  # the last entry that names a layer holds


def _bits_of(plan: QuantPlan, name: str) -> Candidate:
    return next(layer.bits for layer in plan.layers if layer.name == name)


def _check(model: ModelProto) -> None:
    """Have onnx's checker pass the quantized model; shapes that contradict the operators are replaced.

    Files record wrong ones, which onnxruntime passes over. Raises ModelError.
    """
    try:
        try:
            onnx.checker.check_model(model, full_check=True)
        except onnx.shape_inference.InferenceError:
            del model.graph.value_info[:]
            for value in model.graph.output:
                value.type.tensor_type.ClearField("shape")
            describe_outputs(model)
            onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        found = str(error).strip().partition("\n")[0]
        raise ModelError(f"the quantized model fails onnx's checker: {found}; please report this") from error
