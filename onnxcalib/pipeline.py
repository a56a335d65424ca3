"""The main job from end to end: a float model and a calibration set in, a verified QDQ model and a report out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto

from .config import EFFORTS, QuantizeConfig
from .data import CalibrationSet, open_calibration
from .errors import ModelError
from .graph.blocks import find_blocks
from .graph.emit import emit_qdq
from .graph.extract import infer_types
from .graph.load import inputs_of, load_model
from .graph.plan import make_plan
from .graph.save import check_output, model_bytes, save_model
from .graph.select import select_nodes
from .graph.shapes import describe_outputs
from .images import image_axes
from .report import BlockRecord, Observer, Report
from .runtime.device import choose_device, full_precision
from .runtime.session import Session
from .runtime.store import Store
from .spec import QParams, QuantPlan
from .steps.align import align_inputs, keep_aligned
from .steps.calibrate import batch_size, choose_grids, collect_histograms, with_outputs
from .steps.prepare import check_unchanged, prepare
from .steps.probes import draw_probes
from .steps.reconstruct import reconstruct
from .steps.solve import Walk, round_layers
from .steps.verify import verify

__all__ = ["Result", "check_output", "quantize"]


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
    observer: Observer | None = None,
) -> Result:
    """Quantize a float ONNX model with a few unlabelled samples.

    Raises ModelError, DataError or ConfigError; the model given is not changed.
    """
    return _Run(config or QuantizeConfig(), observer or Observer()).quantize(model, calibration)


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

    def quantize(self, model, calibration) -> Result:
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            with full_precision():
                return self._run(model, calibration)
        finally:
            torch.set_num_threads(before)

    def _run(self, model, calibration) -> Result:
        with self._stage("prepare"):
            original = load_model(model if isinstance(model, ModelProto) else Path(model))
            Session(original, threads=self.threads)
            samples = self._open(original, calibration)
            prepared = prepare(load_model(original), self.config)
            names = [node.name for node in original.graph.node if node.name]
            plan = self._plan(prepared.model, names)
            fixed, rescaled = align_inputs(prepared.model, plan, samples, self.threads)
            if rescaled:
                prepared.passes["rescale_input"] = rescaled
                plan = self._plan(prepared.model, names)
            for name, count in prepared.passes.items():
                if count:
                    self.observer.note(f"{name}: {count}")
            feeds = samples.read(range(samples.fixed_batch or 1))
            change = check_unchanged(original, prepared.model, feeds, self.threads)
            self.observer.note(f"outputs unchanged by preparation to {change:.1e} of their largest value")
            self.observer.note(f"{len(plan.layers)} layers and {len(plan.activations)} activations to quantize")
        quantized, records = self._quantize(prepared.model, plan, fixed, samples)
        with self._stage("verify"):
            found = verify(original, prepared.model, quantized, plan.layers, samples, threads=self.threads)
            for name, reason in found.missed.items():
                self._warn(f"output {name} was not compared: {reason}")
        report = Report(
            settings=self.config.model_dump(mode="json"),
            passes=prepared.passes,
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

    def _open(self, model: ModelProto, calibration) -> CalibrationSet:
        samples = open_calibration(calibration, inputs_of(model), self.config.data, limit=self.config.samples)
        for text in samples.warnings:
            self._warn(text)
        return samples

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.observer.warn(text)

    def _plan(self, model: ModelProto, before: list[str]) -> QuantPlan:
        return make_plan(
            model,
            weight_bits=self.config.weight_bits,
            activation_bits=self.config.activation_bits,
            first_last_bits=self.config.first_last_bits,
            selection=select_nodes(model, self.config, before=before),
        )

    def _quantize(self, model: ModelProto, plan: QuantPlan, fixed: dict[str, QParams], samples: CalibrationSet):
        """The quantized model and the blocks' records; ``fixed``: what ``align_inputs`` gives."""
        with self._stage("calibrate"):
            histograms = collect_histograms(model, list(plan.activations), samples, threads=self.threads)
            activations, narrowed = choose_grids(plan, histograms, self.config)
            aligned = keep_aligned(fixed, histograms)
            activations |= aligned
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
        quantized = emit_qdq(
            model,
            plan,
            walk.activations,
            walk.narrowed,
            walk.layers,
            encoding=self.config.encoding,
            keep_outputs=False,
        )
        self._describe(quantized, plan)
        _check(quantized)
        return quantized, records

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

    def _describe(self, model: ModelProto, plan: QuantPlan) -> None:
        """Write the tool's version, the settings and every layer's bits into the model's metadata."""
        bits = {k.name: f"W{k.weight_spec.bits}A{k.activation_spec.bits}" for k in plan.layers}
        entries = {
            "onnxcalib.version": version("onnxcalib"),
            "onnxcalib.settings": self.config.model_dump_json(),
            "onnxcalib.bits": json.dumps(bits),
        }
        for key, value in entries.items():
            entry = model.metadata_props.add()
            entry.key, entry.value = key, value


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
