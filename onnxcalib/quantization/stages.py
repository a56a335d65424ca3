"""The stages after preparation, each a function from value to value: calibrate, reconstruct and tune, emit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from onnx import ModelProto

from ..bitplan import make_record
from ..config import EFFORTS, FULL_BITS
from ..data import CalibrationSet
from ..errors import ModelError
from ..graph.blocks import find_blocks
from ..graph.check import check_model, correct_shapes
from ..graph.layer_params import LayerParams
from ..graph.save import fingerprint
from ..report import BlockRecord, OutputRecord, StageRecord, name_some
from ..runtime.store import Store
from ..spec import Block, Grids, QuantScheme
from .biases import tune_biases
from .block_checkpoints import SHARED, BlockCheckpoints, digest_decisions
from .checkpoints import RANGES, TUNED, Calibrated, Tuned, find_changed
from .distill import DISTILL, STATISTICS, distill_weights, list_tuning
from .distill_all import distill_all
from .evaluate import Evaluator, Losses, is_nearer
from .final_trial import leave_refused
from .floor import check_memory
from .layer_histograms import shorten
from .layer_targets import TargetKeeper, keep_targets, may_learn
from .parallel import reconstruct_apart
from .placed_bodies import FloatBody, QuantizedBody, place_bodies
from .powers import choose_powers
from .prepared import Prepared
from .probes import draw_probes
from .ranges import Ranges, ends_of
from .reader_moments import measure_readers
from .reconstruct import reconstruct
from .recurrent import solve_recurrent
from .rotation import ROTATION, Rotation
from .shares import TOO_LARGE, explain_one_process, share_samples
from .smoothing import SMOOTHING, Smoothing
from .solve import round_embeddings, round_layers
from .state import Problem, ReconstructionState, StoredActivations, Views
from .statistics import STATISTICS_SAMPLES, tune_statistics
from .views import choose_views, stores_views

# Fewer samples misjudge: on 4 a rounded ResNet-20 seems to gain nothing, on 8 it gains 1.2 dB of the 1.6 of 32.
FIRST_LOOK = 8


@dataclass(frozen=True)
class Reconstruction:
    """The result of the third stage: all that the quantized model is made of.

    grids: those of the scheme's activations. layers: layer -> its integers, scales and bias. blocks: what was done to
    each block. stages: what each stage did to the outputs. in_float: nodes that onnxruntime refused in the file with
    these layers, with the reasons; the scheme has them no more. bodies: those that were quantized; float_bodies: those
    that were not; excluded: names of the nodes in these that the settings leave in float.
    """

    scheme: QuantScheme
    grids: Grids
    layers: Mapping[str, LayerParams]
    blocks: tuple[BlockRecord, ...] = ()
    stages: tuple[StageRecord, ...] = ()
    in_float: Mapping[str, str] = field(default_factory=dict)
    bodies: tuple[QuantizedBody, ...] = ()
    float_bodies: tuple[FloatBody, ...] = ()
    excluded: frozenset[str] = frozenset()


def calibrate_ranges(prepared: Prepared, *, alone: bool = False) -> Ranges:
    """The range of each activation, from the float model on all samples. Raises DataError.

    alone: ``reconstruct_layers`` does not follow.
    """

    def find() -> Calibrated:
        run.targets = None if alone else _open_targets(prepared)
        statistics = prepared.collect(prepared.scheme, run.targets)
        check_memory(prepared.run, prepared.model, statistics.sample_bytes)
        grids = prepared.choose_grids(prepared.scheme, statistics)
        grids = choose_powers(prepared, statistics.histograms, grids, prepared.holds_shifts)
        model = fingerprint(prepared.original)
        ranges = Ranges.of_grids(grids, model=model, batch=statistics.batch, factors=prepared.channel_factors)
        shown = {tensor: shorten(tensor, each) for tensor, each in statistics.histograms.items()}
        known = {tensor: each for tensor, each in shown.items() if each is not None}
        return Calibrated(ranges.to_json(), run.float_outputs.describe(), known)

    run = prepared.run
    with run.stage("calibrate"):
        tuning = [] if alone else list_tuning(prepared)
        later = ["reconstruct", *(["evaluate", *tuning] if tuning else []), "verify"]
        run.observer.expect([] if alone else later)
        if prepared.smoothing is not None:  # not before: now the settings are known to fit the model
            run.checkpoints.keep((SMOOTHING, prepared.smoothing, Smoothing))
        if prepared.rotation is not None:
            run.checkpoints.keep((ROTATION, prepared.rotation, Rotation))
        found = run.checkpoints.recall(RANGES, find, Calibrated)
        run.float_outputs.take(found.outputs)
        run.histograms = found.histograms
        return make_record(Ranges, json.loads(found.ranges), where="ranges", again="calibrate the model again")


def _open_targets(prepared: Prepared) -> TargetKeeper | None:
    """What keeps the targets of layers while ranges are calibrated, where one process solves them on the samples."""
    config, run = prepared.config, prepared.run
    several = config.parallel or config.scheduler is not None or (config.jobs or 1) > 1
    if several or not config.does("reconstruct") or EFFORTS[config.effort].probes or stores_views(prepared):
        return None
    problem = Problem.of(prepared.model, prepared.scheme, config, prepared.padding, run.device, parts=prepared.parts)
    state = ReconstructionState(problem, _open_store(problem, Store()), Grids({}, {}))
    blocks = find_blocks(prepared.model, prepared.scheme, index=problem.index)
    return None if any(may_learn(state, block) for block in blocks) else TargetKeeper(state, blocks)


def reconstruct_layers(prepared: Prepared, ranges: Ranges) -> Reconstruction:
    """Round or reconstruct the layers on these ranges, then tune them, according to the settings.

    Raises ConfigError for ranges that do not fit the model.
    """
    run, scheme = prepared.run, prepared.scheme
    ranges.check(fingerprint(prepared.original))
    ranges.check_factors(prepared.channel_factors)
    grids, lossless = ranges.grids(scheme), _find_lossless(prepared, ranges)
    if lossless:
        run.observer.note(f"{', '.join(lossless)}: read on the levels of their values")
    problem = Problem.of(prepared.model, scheme, prepared.config, prepared.padding, run.device, parts=prepared.parts)
    decisions = digest_decisions(prepared, ranges)
    apart = prepared.config.parallel
    with run.stage("reconstruct"), Store() if apart else run.checkpoints.open_store() as store:
        state = ReconstructionState(problem, _open_store(problem, store), grids, frozen={*lossless, *scheme.fixed})
        state.given = {} if run.shared is None else run.shared.find(prepared.model, scheme)
        state.layers |= round_embeddings(problem.index, scheme) | solve_recurrent(prepared, ranges.batch, decisions)
        blocks: tuple[BlockRecord, ...] = ()
        if prepared.config.does("reconstruct"):
            found = find_blocks(prepared.model, scheme, index=problem.index)
            blocks = _reconstruct(prepared, state, found, ranges.batch, decisions)
        else:
            round_layers(state)
        state, refused = leave_refused(prepared, state)
    prepared = prepared.leave(refused)
    (grids, layers), stages = _tune(prepared, state, ranges.batch, decisions)
    return Reconstruction(prepared.scheme, grids, layers, blocks, stages, refused)


def emit_model(prepared: Prepared, found: Reconstruction) -> ModelProto:
    """The QDQ model of a reconstruction. Raises ModelError where onnx's checker refuses it."""
    quantized = prepared.emit(found.scheme, found.grids, found.layers)
    place_bodies(quantized, found.bodies)
    correct_shapes(quantized)
    check_model(quantized)
    return quantized


def _reconstruct(
    prepared: Prepared, state: ReconstructionState, blocks: Sequence[Block], batch: int, decisions: str
) -> tuple[BlockRecord, ...]:
    """Reconstruct the blocks, from the last checkpoint on if there is one."""
    run, views = prepared.run, choose_views(prepared)
    if _takes_workers(prepared, state, blocks, views):
        shared = _reconstruct_by_shares(prepared, state, blocks, decisions + SHARED, batch=batch, views=views)
        if shared is not None:
            return shared
    kept = None if prepared.config.parallel else BlockCheckpoints(prepared, state, blocks, decisions)
    if kept is None or not kept.begun:
        state.stored.fill(
            prepared.samples, batch, views=views, seed=prepared.config.seed, quantized=run.quantized_samples
        )
        _draw_probes(prepared, state)
        if kept is not None:
            keep_targets(state, blocks, run.targets)
    run.targets = None
    _share_weights(prepared, state, batch)
    if kept is None:
        return reconstruct_apart(state, blocks, run, decisions)
    if not kept.begun:
        kept.commit(0)
    state.stored.integers = not state.stored.has_float  # then no block is learned, and no grid with it
    found = reconstruct(state, blocks, run.observer, kept)
    kept.tell()
    return found


def _share_weights(prepared: Prepared, state: ReconstructionState, batch: int) -> None:
    """Find what the later readers of weights read, and say which layers have one set of integers."""
    readers, observer = state.problem.readers, prepared.run.observer
    state.others = measure_readers(state.problem, prepared.samples, batch, {*state.layers, *state.given})
    for name, others in readers.first.items():
        weight = state.problem.layers[name].weight
        observer.note(f"{weight}: {name_some([name, *(each.name for each in others)])} have one set of integers")
    for layers in readers.apart:
        names = name_some(layer.name for layer in layers)
        observer.note(
            f"{layers[0].weight}: {names} have integers of their own; --encoding matmulnbits stores them once"
        )


def _takes_workers(
    prepared: Prepared, state: ReconstructionState, blocks: Sequence[Block], views: Views | None
) -> bool:
    """Whether the settings name workers, and samples are shared out over them; a line says why they are not."""
    config = prepared.config
    named = config.scheduler is not None or (config.jobs or 1) > 1
    if config.parallel or not named or not state.problem.scheme.layers:
        return False
    samples = len(prepared.samples) * (1 + (views.count if views else 0))
    reason = explain_one_process(state, blocks, samples)
    if reason is not None:
        prepared.run.observer.note(f"one process reconstructs: {reason}")
    return reason is None


def _reconstruct_by_shares(
    prepared: Prepared,
    state: ReconstructionState,
    blocks: Sequence[Block],
    decisions: str,
    *,
    batch: int,
    views: Views | None,
) -> tuple[BlockRecord, ...] | None:
    """Reconstruct the blocks on workers that each have a share of the samples; ``state`` stores none of them.

    None, with a line that says why, where the samples turn out not to be shared out.
    """
    with Store() as store:
        given = _open_store(state.problem, store)
        given.fill(prepared.samples, batch, views=views, seed=prepared.config.seed)
        with share_samples(state, given, blocks, prepared.run) as shared:
            if not shared:
                prepared.run.observer.note(f"one process reconstructs: {TOO_LARGE}")
                return None
            # Not before: the checkpoints of one process are of other decisions, and would be removed.
            kept = BlockCheckpoints(prepared, state, blocks, decisions)
            _share_weights(prepared, state, batch)
            found = reconstruct(state, blocks, prepared.run.observer, kept)
    kept.tell()
    return found


def _open_store(problem: Problem, store: Store) -> StoredActivations:
    return StoredActivations(store, problem.padding, problem.types)


def _find_lossless(prepared: Prepared, ranges: Ranges) -> set[str]:
    """Tensors whose range is still that of their lossless grid: calibration kept it."""
    return {tensor for tensor, grid in prepared.lossless.items() if ranges.activations.get(tensor) == ends_of(grid)}


class _Measured(NamedTuple):
    """Grids and layers, and how the outputs of the model with them differ from the float model's."""

    grids: Grids
    layers: dict[str, LayerParams]
    outputs: tuple[OutputRecord, ...]
    losses: Losses


def _tune(
    prepared: Prepared, state: ReconstructionState, batch: int, decisions: str
) -> tuple[tuple[Grids, dict[str, LayerParams]], tuple[StageRecord, ...]]:
    """Grids and layers after the tuning stages, each kept only if it brings the outputs nearer to the float model's."""
    run, names = prepared.run, list_tuning(prepared)
    if not names:
        return (state.grids, state.layers), ()
    known = run.checkpoints.find(TUNED, Tuned)
    best, records = _Measured(state.grids, state.layers, (), {}), list[StageRecord]()
    if known is not None and known.decisions == decisions:
        grids = state.grids.updated(known.activations, known.requantized)
        best = _Measured(grids, {**state.layers, **known.layers}, known.outputs, known.losses)
        records = list(known.records)

    def keep() -> None:
        changed = {name: params for name, params in best.layers.items() if state.layers.get(name) is not params}
        activations = find_changed(state.grids.activations, best.grids.activations)
        requantized = find_changed(state.grids.requantized, best.grids.requantized)
        found = Tuned(decisions, changed, activations, requantized, best.outputs, dict(best.losses), tuple(records))
        run.checkpoints.keep((TUNED, found, Tuned))

    if len(records) > len(names):
        return best[:2], tuple(records)
    with Store() as float_outputs:
        with run.stage("evaluate"):
            evaluator = _open_evaluator(prepared, float_outputs)
            if not records:
                best = _measure(prepared, evaluator, state)
                first = "reconstruct" if prepared.config.does("reconstruct") else "round"
                records.append(StageRecord(first, "done", best.outputs))
                keep()
        for name in names[len(records) - 1 :]:
            with run.stage(name):
                found, remark = _try(prepared, state, evaluator, name, best=best, batch=batch)
            best = found or best
            records.append(StageRecord(name, "kept" if found else "rolled back", best.outputs, remark))
            run.observer.note(f"{name}: {records[-1].outcome}{f', {remark}' if remark else ''}")
            keep()
    return best[:2], tuple(records)


def _open_evaluator(prepared: Prepared, float_outputs: Store) -> Evaluator:
    return Evaluator(
        prepared.original,
        prepared.samples,
        prepared.original_padding,
        float_outputs,
        parts=prepared.parts,
        class_axes=prepared.class_axes,
        threads=prepared.run.threads,
        fused=prepared.run.target.is_onnxruntime,
        known=prepared.run.float_outputs,
        quantized_samples=prepared.run.quantized_samples,
    )


def _measure(prepared: Prepared, evaluator: Evaluator, state: ReconstructionState) -> _Measured:
    quantized = prepared.emit(state.problem.scheme, state.grids, state.layers)
    return _Measured(state.grids, state.layers, *evaluator.evaluate(quantized))


@dataclass(frozen=True)
class _Look:
    """One try of a tuning stage, on so many samples; None: all. Behind one that gains nothing none follows."""

    name: str
    samples: int | None = None

    def spell(self, samples: CalibrationSet) -> str:
        few = self.name == STATISTICS and self.samples == FIRST_LOOK < len(samples)
        return f"by a first look on {FIRST_LOOK} samples " if few else ""


def _choose_looks(prepared: Prepared, name: str) -> tuple[_Look, ...]:
    """The looks of a tuning stage.

    Layers that were solved in order have the float model's means already, so that statistics are first looked at on few
    samples.
    """
    if name != STATISTICS:
        return (_Look(name),)
    whole = _Look(name, STATISTICS_SAMPLES)
    config = prepared.config
    solved = config.does("reconstruct") and not config.parallel and len(prepared.samples) > FIRST_LOOK
    return (_Look(name, FIRST_LOOK), whole) if solved else (whole,)


def _try(
    prepared: Prepared, state: ReconstructionState, evaluator: Evaluator, name: str, *, best: _Measured, batch: int
) -> tuple[_Measured | None, str | None]:
    """What a tuning stage makes of ``state``, None where the outputs come no nearer; and a remark."""
    tuned, remark = None, None
    for look in _choose_looks(prepared, name):
        tuned, remark = _look(
            prepared, replace(state, grids=best.grids, layers=dict(best.layers)), evaluator, look, batch
        )
        if tuned is None:
            break
        # Distilled weights are kept for what they gain on samples that they were not trained on.
        if name != DISTILL and not is_nearer(tuned.losses, best.losses):
            return None, f"{look.spell(prepared.samples)}the outputs were no nearer to the float model's"
    return tuned, remark


def _look(
    prepared: Prepared, state: ReconstructionState, evaluator: Evaluator, look: _Look, batch: int
) -> tuple[_Measured | None, str | None]:
    """Tune ``state`` and measure the outputs, None where nothing changed; and a remark."""
    with Store() as store:
        own = replace(state, stored=_open_store(state.problem, store))
        if look.name == DISTILL:
            distill = distill_all if prepared.scheme.reads_fewer_bits(FULL_BITS) else distill_weights
            changed, remark = distill(prepared, own)
        elif look.name == STATISTICS:
            assert look.samples is not None
            own.stored.fill_some(prepared.samples, batch, look.samples, quantized=prepared.run.quantized_samples)
            changed, remark = tune_statistics(own)
        else:
            own.stored.fill(prepared.samples, batch, quantized=prepared.run.quantized_samples)
            changed, remark = tune_biases(own)
        try:
            return (_measure(prepared, evaluator, own) if changed else None), remark
        except ModelError as error:  # the file without this stage is one that onnxruntime takes
            return None, str(error)


def _draw_probes(prepared: Prepared, state: ReconstructionState) -> None:
    found = draw_probes(state, prepared.samples, EFFORTS[prepared.config.effort].probes)
    if found.reason:
        prepared.run.leave_out("probes", found.reason)
    elif found.layers:
        prepared.run.observer.note(f"layers solved for the model's outputs, by probes: {found.layers}")
