"""Let onnx's reference evaluator judge between onnxruntime's sessions, on a few samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from onnx import ModelProto

from ..data import CalibrationSet
from ..graph.inspect.integers import GIVEN, find_integers, give_integers, open_at
from ..graph.passes.normalise import tidy
from ..progress import track
from ..quantization.output_parts import Parts
from ..quantization.output_tally import OutputTally
from ..quantization.padding_mask import PaddingMask, find_real
from ..report import OutputRecord, list_judged
from ..runtime.reference import Reference, ReferenceFault
from ..runtime.session import Session
from ..verdict import ReferenceRecord, StepsRecord
from .kernel_consistency import Difference, list_steps

# The evaluator and onnxruntime gave 110 to 130 dB on float models whose operators both compute right. What lies below
# this is no rounding of float32.
SOUND = 80.0
# Steps by which sums on the border between two of them may be rounded.
ROUNDING = 1
ADVICE = "leave --reference out, or change the operator"


def find_obstacle(quantized: ModelProto) -> str:
    """Why the evaluator is no judge of the model, as far as that shows without a run; empty where it is one."""
    try:
        Reference(quantized)
    except ReferenceFault as fault:
        return str(fault)
    return ""


def arbitrate(
    original: ModelProto,
    quantized: ModelProto,
    samples: CalibrationSet,
    count: int,
    *,
    padding: PaddingMask | None = None,
    parts: Parts | None = None,
    class_axes: Mapping[str, int] | None = None,
    threads: int = 0,
) -> ReferenceRecord:
    """Compare onnxruntime's outputs with the evaluator's, on ``count`` samples or as many as make up whole runs.

    padding, parts, class_axes: see ``compare``. Raises ModelError where onnxruntime does not run a model. What the
    evaluator does not run is in the record, by its reason.
    """
    size = samples.fixed_batch or 1
    batches = samples.split(size)[: -(-count // size)]

    def tally(model: ModelProto, sessions: Mapping[str, Session]) -> dict[str, OutputTally]:
        evaluator = Reference(model)
        tallies = {name: OutputTally(padding, parts, class_axes=class_axes) for name in sessions}
        for batch in track(batches, len):
            feeds = samples.read(batch)
            wanted = evaluator.run(feeds)
            for name, session in sessions.items():
                tallies[name].add(wanted, session.run(feeds), len(batch), find_real(feeds))
        return tallies

    done = sum(map(len, batches))
    deployed = Session(quantized, deployed=True, threads=threads)
    plain = Session(quantized, optimize=False, threads=threads)
    try:
        found = tally(quantized, {"deployed": deployed, "unoptimized": plain})
        steps = _count_steps(quantized, samples, batches, threads)
    except ReferenceFault as fault:
        return ReferenceRecord(done, reason=str(fault))
    without = ""
    try:
        control = tally(original, {"original": Session(original, threads=threads)})["original"].records()
    except ReferenceFault as fault:
        control, without = (), str(fault)
    return ReferenceRecord(
        done,
        deployed=found["deployed"].records(),
        unoptimized=found["unoptimized"].records(),
        original=control,
        missed=tuple(found["deployed"].missed),
        deployed_steps=steps[0],
        unoptimized_steps=steps[1],
        original_reason=without,
    )


def _count_steps(
    quantized: ModelProto, samples: CalibrationSet, batches: Sequence[Sequence[int]], threads: int
) -> tuple[tuple[StepsRecord, ...], tuple[StepsRecord, ...]]:
    """How far the deployed and the unoptimized kernels move each integer tensor from what the evaluator computes.

    All three compute it from the integers before it that the unoptimized session gives. Raises ReferenceFault.
    """
    model = tidy(quantized)
    integers = find_integers(model)
    if not integers:
        return (), ()
    opened = open_at(model, integers)
    evaluator, deployed = Reference(opened), Session(opened, deployed=True, threads=threads)
    plain = Session(give_integers(model, integers), optimize=False, threads=threads)
    differences = [(Difference(), Difference()) for _ in integers]
    for batch in track(batches, len):
        feeds = samples.read(batch)
        values = plain.run(feeds)
        given = {f"{GIVEN}{each.tensor}": values[name] for each, name in zip(integers, plain.outputs, strict=True)}
        right, fused = evaluator.run(feeds | given), deployed.run(feeds | given)
        for (ours, theirs), name in zip(differences, plain.outputs, strict=True):
            ours.add(right[name], fused[name])
            theirs.add(right[name], values[name])
    by_deployed, by_plain = zip(*differences, strict=True)
    return list_steps(integers, by_deployed), list_steps(integers, by_plain)


def list_remarks(found: ReferenceRecord) -> Iterator[str]:
    """Warnings of what the comparison cannot say, one line each."""
    if found.reason:
        yield f"reference: onnx's evaluator cannot judge the quantized model: {found.reason}; {ADVICE}"
        return
    if found.original_reason:
        yield f"reference: the float model has no row: {found.original_reason}; only its quantized model was judged"
    for name in found.missed:
        yield f"reference: output {name} was not compared; onnxruntime and onnx's evaluator give other shapes or types"
    for session, records in (("deployed", found.deployed_steps), ("unoptimized", found.unoptimized_steps)):
        if records and records[0].steps > ROUNDING:
            worst = records[0]
            yield (
                f"reference: the {session} session computes {worst.tensor} ({worst.op}) otherwise than the file says:"
                f" from equal integers it is {worst.steps} quantization steps away; if its sums cannot saturate here,"
                " report it to onnxruntime, and leave what computes it in float"
            )
    output = min(list_judged(found.original), key=_decibels, default=None)
    if output is not None and _decibels(output) < SOUND:
        yield (
            f"reference: onnxruntime and onnx's evaluator differ on the float model too, {_decibels(output):.1f} dB on"
            f" {output.name}; one of them computes an operator otherwise, so that the rows of the quantized model are"
            " not those of its integers alone; compare the float model in a third runtime"
        )


def _decibels(record: OutputRecord) -> float:
    return math.inf if record.sqnr_db is None else record.sqnr_db
