"""The stages behind preparation, each from a value to a value: calibrate, reconstruct and tune, emit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from onnx import ModelProto

from ..config import EFFORTS
from ..data.images import image_axes
from ..graph.blocks import find_blocks
from ..graph.check import check_model, correct_shapes
from ..graph.emit import LayerParams
from ..graph.save import fingerprint
from ..report import BlockRecord, StageRecord
from ..runtime.store import Store
from ..spec import Grids, QuantScheme
from .biases import tune_biases
from .evaluate import Evaluator, is_nearer
from .probes import draw_probes
from .ranges import Ranges, ends_of
from .reconstruct import reconstruct
from .run import Prepared
from .solve import round_embeddings, round_layers
from .state import Problem, ReconstructionState, StoredActivations
from .statistics import STATISTICS_SAMPLES, tune_statistics

STATISTICS, BIASES = "statistics", "biases"


@dataclass(frozen=True)
class Reconstruction:
    """What the layers became: grids of the scheme's activations, integers, scales and biases of the layers.

    blocks, stages: what was done to each block, and what each stage did to the outputs.
    """

    scheme: QuantScheme
    grids: Grids
    layers: Mapping[str, LayerParams]
    blocks: tuple[BlockRecord, ...] = ()
    stages: tuple[StageRecord, ...] = ()


def calibrate_ranges(prepared: Prepared) -> Ranges:
    """The range of each activation, from the float model on all samples. Raises DataError."""
    with prepared.run.stage("calibrate"):
        statistics = prepared.collect(prepared.scheme)
        grids = prepared.choose_grids(prepared.scheme, statistics)
        return Ranges.of_grids(grids, model=fingerprint(prepared.original), batch=statistics.batch)


def reconstruct_layers(prepared: Prepared, ranges: Ranges) -> Reconstruction:
    """Round or reconstruct the layers on these ranges, then tune them, as the settings say.

    Raises ConfigError for ranges that do not fit the model.
    """
    run, scheme = prepared.run, prepared.scheme
    ranges.check(fingerprint(prepared.original))
    grids, lossless = ranges.grids(scheme), _find_lossless(prepared, ranges)
    if lossless:
        run.observer.note(f"{', '.join(lossless)}: read on the levels of their values")
    problem = Problem(prepared.model, scheme, prepared.config, prepared.padding, run.device)
    with run.stage("reconstruct"), Store() as store:
        state = ReconstructionState(problem, _open_store(problem, store), grids, frozen=lossless)
        state.layers |= round_embeddings(problem.index, scheme)
        blocks: tuple[BlockRecord, ...] = ()
        if prepared.config.does("reconstruct"):
            axes = _view_axes(prepared)
            views = prepared.config.image_views(scheme.least_weight_bits) if axes else 0
            state.stored.fill(prepared.samples, ranges.batch, views=views, axes=axes, seed=prepared.config.seed)
            _draw_probes(prepared, state)
            blocks = reconstruct(state, find_blocks(prepared.model, scheme), run.observer)
        else:
            round_layers(state)
    layers, stages = _tune(prepared, state, ranges.batch)
    return Reconstruction(scheme, state.grids, layers, blocks, stages)


def emit_model(prepared: Prepared, found: Reconstruction) -> ModelProto:
    """The QDQ model of what the layers became. Raises ModelError where onnx's checker refuses it."""
    quantized = prepared.emit(found.scheme, found.grids, found.layers)
    correct_shapes(quantized)
    check_model(quantized)
    return quantized


def _open_store(problem: Problem, store: Store) -> StoredActivations:
    return StoredActivations(store, problem.padding, problem.types)


def _find_lossless(prepared: Prepared, ranges: Ranges) -> set[str]:
    """Tensors whose range is that of their lossless grid: they were kept by calibration."""
    return {tensor for tensor, grid in prepared.lossless.items() if ranges.activations.get(tensor) == ends_of(grid)}


def _tune(
    prepared: Prepared, state: ReconstructionState, batch: int
) -> tuple[dict[str, LayerParams], tuple[StageRecord, ...]]:
    """The layers after the stages behind the first, each kept where it brings the outputs nearer to the float ones."""
    run, layers = prepared.run, state.layers
    tuners: dict[str, Callable[[ReconstructionState], tuple[bool, str | None]]] = {
        STATISTICS: tune_statistics,
        BIASES: tune_biases,
    }
    wanted = [name for name in tuners if prepared.config.does(name)]
    if not wanted:
        return layers, ()
    with Store() as float_outputs:
        with run.stage("evaluate"):
            evaluator = Evaluator(
                prepared.original, prepared.samples, prepared.original_padding, float_outputs, run.threads
            )
            first = "reconstruct" if prepared.config.does("reconstruct") else "round"
            outputs, losses = evaluator.evaluate(prepared.emit(state.problem.scheme, state.grids, layers))
            records = [StageRecord(first, "done", outputs)]
        for name in wanted:
            with run.stage(name), Store() as store:
                own = replace(state, stored=_open_store(state.problem, store), layers=dict(layers))
                if name == STATISTICS:
                    own.stored.fill_some(prepared.samples, batch, STATISTICS_SAMPLES)
                else:
                    own.stored.fill(prepared.samples, batch)
                kept, remark = tuners[name](own)
                if kept:
                    found, left = evaluator.evaluate(prepared.emit(state.problem.scheme, own.grids, own.layers))
                    kept = is_nearer(left, losses)
                    remark = remark if kept else "the outputs were no nearer to the float model's"
            if kept:
                layers, outputs, losses = own.layers, found, left
            records.append(StageRecord(name, "kept" if kept else "rolled back", outputs, remark))
            run.observer.note(f"{name}: {records[-1].outcome}{f', {remark}' if remark else ''}")
    return layers, tuple(records)


def _view_axes(prepared: Prepared) -> tuple[int, int] | None:
    """Axes of rows and columns where there are to be views: of image files, and of arrays only if asked for."""
    samples, config = prepared.samples, prepared.config
    views = config.image_views(prepared.scheme.least_weight_bits)
    if not views or (config.views is None and not samples.images):
        return None
    values = list(samples.read(range(samples.fixed_batch or 1)).values())
    axes = image_axes(values[0].shape, config.data) if len(values) == 1 else None
    if axes is None:
        reason = "one input of images is needed, of 4 dimensions and 1 or 3 channels"
        prepared.run.leave_out("views", reason)
        prepared.run.warn(f"views: none were made; {reason}")
    else:
        prepared.run.observer.note(f"{views} views of each image beside itself")
    return axes


def _draw_probes(prepared: Prepared, state: ReconstructionState) -> None:
    what = "layers solved for the model's outputs"
    found = draw_probes(state, prepared.samples, EFFORTS[prepared.config.effort].probes)
    if found.reason:
        prepared.run.leave_out(what, found.reason)
    elif found.layers:
        prepared.run.observer.note(f"{what}: {found.layers}")
