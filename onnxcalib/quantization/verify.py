"""Verify: run the float and the quantized model in onnxruntime on the samples to measure on, and compare them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, starmap
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto

from ..data import CalibrationSet
from ..files.scratch import Scratch
from ..graph.inspect.unfused import list_unfused
from ..layer_record import LayerRecord
from ..numeric.metrics import Comparison
from ..progress import track
from ..report import OutputRecord, SaturationRecord, UnfusedRecord
from ..runtime.memory import release
from ..runtime.optimized import optimize
from ..runtime.session import Session
from ..runtime.store import Store
from ..spec import LayerScheme
from ..stepwise import ClosedLoopRecord
from .batches import BATCH_BYTES, batch_size, choose_step, spread_runs
from .closed_loop import run_closed, spread_steps
from .flips import FLIPS, describe_flips, lower_expected
from .growth import GrowthTally
from .joined_runs import Outputs, join_runs
from .layer_facts import complete, describe_layers
from .layer_histograms import add_histograms
from .output_tally import OutputTally
from .padding_mask import find_real
from .prepared import Prepared
from .saturation import SPREAD, measure_saturation

# Samples on which every layer is compared, which takes several times as long as running the models.
INNER = 16
# Values of a layer that are compared in so many samples, about: of MobileNetV2 they give the SQNR to 0.03 dB.
INNER_VALUES = 2**16
# Samples, of those that the model was made from, that estimates take note of; more move agreement by below 0.3 points.
SEEN = 1024
# Samples on which the float model is timed, where its outputs on all of them are known.
TIMED = 64


@dataclass(frozen=True)
class Verification:
    """What ``verify`` measured.

    outputs: the quantized model's outputs on all samples to measure on, compared with the float model's.
    outputs_unoptimized: the same on the first INNER samples, without graph optimizations, where ``outputs`` has these.
    warnings: of outputs that
    were not compared or are not finite. layers: the layers' outputs on the first INNER samples. unfused: the Q and DQ
    nodes that onnxruntime did not fuse. saturation: what saturating sums do to the outputs. float_pass_seconds: the
    time of the float model over the samples that the model was made from. closed_loop: of models with states, whose
    ``outputs`` are those of each with its own; all else is measured on single steps with the float model's states.
    """

    outputs: tuple[OutputRecord, ...]
    outputs_unoptimized: tuple[OutputRecord, ...]
    warnings: tuple[str, ...]
    layers: tuple[LayerRecord, ...]
    unfused: tuple[UnfusedRecord, ...]
    saturation: SaturationRecord
    float_pass_seconds: float
    closed_loop: ClosedLoopRecord | None = None


def verify(prepared: Prepared, quantized: ModelProto, layers: Sequence[LayerScheme]) -> Verification:
    """Compare ``quantized`` with the original model batch by batch, and list what onnxruntime leaves unfused.

    Outputs are compared on all samples with graph optimizations. Without them, outputs and the output of every layer
    are compared on the first INNER samples: onnxruntime cannot fuse a tensor that is returned. What another target will
    run is compared without optimizations alone, and what onnxruntime would make of it is not measured. Raises
    ModelError, also where nothing is left to compare.
    """
    fused = prepared.run.target.is_onnxruntime
    samples, threads, padding = prepared.test, prepared.run.threads, prepared.original_padding
    names = list(dict.fromkeys(layer.output for layer in layers))
    # Errors of samples that the model was made from are too small to tell of others.
    unseen = prepared.measured_on.source != "calibration" and not samples.states  # steps are no independent draws
    growth = GrowthTally(samples) if samples.states else None
    on, off = (
        OutputTally(padding, prepared.parts, class_axes=prepared.class_axes, estimates=each) for each in (unseen, False)
    )
    scratch = Scratch()  # ends with this function
    with Store() as store:
        inside = _compare_inside(prepared, quantized, names, store)
        release()  # what two sessions took whose layers were all outputs
        reference = Session(prepared.original, threads=threads)
        graph = GraphProto()
        if fused:
            whole, graph = optimize(quantized, threads, folder=scratch.path)
        else:
            whole = Session(quantized, optimize=False, threads=threads)
        seconds = _compare_outputs(prepared, (reference, whole), (on, off, growth), inside, store)
        if prepared.measured_on.source == "held out" and not samples.states:
            _add_seen(prepared, (reference, whole), on, inside.batch)
    on.check()
    del reference, whole  # large models are held once
    first, records = (inside.batch, -(-FLIPS // inside.batch)), on.records()
    others = None if prepared.samples is samples else prepared.samples
    unfused = tuple(starmap(UnfusedRecord, list_unfused(quantized, graph)))
    facts = describe_layers(quantized, graph if fused else None, unfused)
    measured = [_record_layer(layer, inside.layers.get(layer.output)) for layer in layers]
    options: dict[str, Any] = {"padding": padding, "parts": prepared.parts, "threads": threads}
    few = spread_steps(samples, FLIPS)
    flips = [*describe_flips(prepared.original, quantized, few, records, batches=first, others=others, **options)]
    return Verification(
        outputs=lower_expected(records, flips),
        outputs_unoptimized=off.records() if fused else (),
        warnings=(*on.warnings(), *(flip.text for flip in flips)),
        layers=add_histograms(prepared, quantized, layers, complete(measured, facts)),
        unfused=unfused,
        saturation=measure_saturation(prepared.original, quantized, graph, spread_steps(samples, SPREAD), **options)
        if fused
        else SaturationRecord(),
        float_pass_seconds=seconds * len(prepared.samples) / len(samples),
        closed_loop=None if growth is None else growth.record(),
    )


def compare_layers(prepared: Prepared, quantized: ModelProto, layers: Sequence[LayerScheme]) -> tuple[LayerRecord, ...]:
    """The layers of a model that is a part of another, their outputs compared on its first INNER samples."""
    names = list(dict.fromkeys(layer.output for layer in layers))
    with Store() as store:
        inside = _compare_inside(prepared, quantized, names, store)
    return tuple(_record_layer(layer, inside.layers.get(layer.output)) for layer in layers)


def _compare_outputs(
    prepared: Prepared,
    sessions: tuple[Session, Session],
    tallies: tuple[OutputTally, OutputTally, GrowthTally | None],
    inside: _Inside,
    store: Store,
) -> float:
    """Add all outputs to the first tally, and those in the store to the second.

    Returns the float model's seconds for all samples, from TIMED ones where calibration has kept what it gives.
    """
    (reference, quantized), (on, off, growth), samples = sessions, tallies, prepared.test

    def run_inside(number: int, feeds: Mapping[str, Any]) -> Outputs:
        outputs = reference.run(feeds)
        given = {name: store.batch(name, number) for name in outputs}
        return Outputs(outputs, given, samples.count(feeds), find_real(feeds))

    for each in starmap(run_inside, enumerate(islice(inside.samples.batches(inside.batch), inside.batches))):
        off.add(*each)
    if growth is not None:
        return _compare_loops(reference, quantized, samples, on, growth)
    known = _recall_outputs(prepared)
    size = inside.batch if known is None else prepared.run.float_outputs.size
    seconds, timed = 0.0, 0

    def run(number: int, feeds: Mapping[str, Any]) -> Outputs:
        nonlocal seconds, timed
        count = samples.count(feeds)
        if known is None or timed < TIMED:
            start = time.perf_counter()
            outputs = reference.run(feeds)
            seconds += time.perf_counter() - start
            timed += count
        else:
            outputs = known[number]
        return Outputs(outputs, quantized.run(feeds), count, find_real(feeds))

    for each in join_runs(starmap(run, enumerate(samples.batches(size)))):
        on.add(*each)
    return seconds * len(samples) / timed


def _compare_loops(
    reference: Session, quantized: Session, samples: CalibrationSet, tally: OutputTally, growth: GrowthTally
) -> float:
    """Add the outputs of both models, each with its own states, to the tallies; the float model's seconds."""
    seconds = 0.0

    def run(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        nonlocal seconds
        start = time.perf_counter()
        outputs = reference.run(feeds)
        seconds += time.perf_counter() - start
        return outputs

    for each in run_closed(run, quantized, samples, growth):
        tally.add(*each)
    return seconds


def _recall_outputs(prepared: Prepared) -> list[dict[str, np.ndarray]] | None:
    """What the float model gives on the samples to measure on, where these are the ones that calibration ran it on."""
    run, test, samples = prepared.run, prepared.test, prepared.samples
    known = run.float_outputs.of(samples)
    if known is None or (test is not samples and len(test) != len(samples)):
        return None
    return known if run.digest(test) == run.digest(samples) else None


def _add_seen(prepared: Prepared, sessions: tuple[Session, Session], tally: OutputTally, size: int) -> None:
    """Add samples that the model was made from to the estimates, evenly spread ones where they are many."""
    samples, (reference, quantized) = prepared.samples, sessions
    known = prepared.run.float_outputs.of(samples)
    runs = spread_runs(samples, size if known is None else prepared.run.float_outputs.size, SEEN)

    def run(number: int) -> Outputs:
        feeds = samples.read(runs[number])
        wanted = reference.run(feeds) if known is None else known[number]
        return Outputs(wanted, quantized.run(feeds), samples.count(feeds), find_real(feeds))

    for outputs in join_runs(map(run, track([*runs]))):
        tally.add_seen(*outputs)


def _record_layer(layer: LayerScheme, found: Comparison | None) -> LayerRecord:
    bits = layer.weight_spec.bits, layer.activation_spec.bits
    sqnr_db = None if found is None or not found.values else found.sqnr_db
    return LayerRecord(layer.name, layer.op, *bits, sqnr_db, layer.dynamic)


@dataclass(frozen=True)
class _Inside:
    """Comparisons of layers' outputs by tensor; the samples, how many a batch has, and how many batches were run."""

    layers: Mapping[str, Comparison]
    samples: CalibrationSet
    batch: int
    batches: int


def _compare_inside(prepared: Prepared, quantized: ModelProto, names: Sequence[str], store: Store) -> _Inside:
    """Compare the tensors ``names`` of the prepared and of the quantized model on the first INNER samples.

    The quantized model's outputs on these samples go into the store. Both sessions end with this function, so that
    large models are held once.
    """
    samples, threads, padding = spread_steps(prepared.test, INNER), prepared.run.threads, prepared.padding
    inner = Session(prepared.model, also=names, threads=threads)
    plain = Session(quantized, also=names, optimize=False, threads=threads)
    by_layer: dict[str, Comparison] = {}
    done, count = 0, 0
    size = samples.fixed_batch or min(batch_size(inner, samples, BATCH_BYTES // 2), INNER)  # of both models
    for feeds in samples.batches(size):
        given, real = plain.run(feeds), find_real(feeds)
        wanted, share = inner.run(feeds, names), samples.count(feeds) / INNER
        _compare_layers(
            by_layer, padding.mask_outputs(wanted, real), padding.mask_outputs(given, real), int(share * INNER_VALUES)
        )
        for value in quantized.graph.output:
            store.append(value.name, given[value.name])
        done, count = done + samples.count(feeds), count + 1
        if done >= INNER:
            break
    return _Inside(by_layer, samples, size, count)


def _compare_layers(
    comparisons: dict[str, Comparison],
    reference: Mapping[str, np.ndarray],
    other: Mapping[str, np.ndarray],
    most: int,
) -> None:
    """Compare about ``most`` values of each layer."""
    for name, value in reference.items():
        if value.shape == other[name].shape:
            step = choose_step(value.size, most)
            wanted, given = (each.reshape(-1)[::step] for each in (value, other[name]))
            comparisons.setdefault(name, Comparison()).add(wanted, given)
