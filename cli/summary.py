"""The tables that a run ends with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from onnxcalib.bitplan import BitPlan
from onnxcalib.config import HOLD_OUT_FROM
from onnxcalib.layer_record import LayerRecord
from onnxcalib.report import (
    MeasuredOn,
    MemoryRecord,
    OutputRecord,
    Report,
    SpeedRecord,
    list_expected,
    list_rows,
    name_some,
    spell_positions,
)
from onnxcalib.sentence import sum_up_report
from onnxcalib.stepwise import describe_loop, list_growth
from onnxcalib.validation.render import PLAIN, list_processors, spell_number, spell_saturation
from onnxcalib.validation.sheet import Sheet

from .console import print_lines
from .planned import print_sets
from .reasons import describe_in_float, describe_unfused
from .table import print_table

FAR = 3.0  # dB between the SQNR of all samples and that of most from which both are shown
FLATTERED = "1 to 8 dB at 4 bits and up to 2 dB at 8"  # in docs/results.md
EXPECTED = "expected"  # the row of estimates, which has nothing but SQNR and agreement
LARGE = 1e8  # bytes from which memory is told in GB
WORST_LAYERS = 5  # as many as one reads


def print_summary(report: Report, output: Path, console: Console) -> None:
    """Print what a run measured: the tables, what became of the layers, what it cost, and last all of it in short."""
    if report.plan:
        print_sets(console, BitPlan.model_validate(report.plan))
        console.print()
    if report.steps:
        print_lines(console, ["stages, on the samples that they work with"])
        print_table(console, _spell_stages(report), after=True)
    if report.measured_on is not None:
        estimated = "; expected: estimates for others like them" if list_expected(report.outputs) else ""
        stepwise = report.closed_loop is not None
        line = describe_measured_on(report.measured_on, report.samples, stepwise=stepwise) + estimated
        print_lines(console, [line])
    if report.closed_loop is not None:
        print_lines(console, [f"{describe_loop(report.closed_loop)}; other sessions: single steps"])
    print_table(console, _spell_outputs(report), after=True)
    if report.closed_loop is not None:
        print_table(console, Sheet(*list_growth(report.closed_loop)), after=True)
    print_table(console, _spell_layers(report), after=True)
    lines = [
        *_describe_rotation(report),
        *_describe_smoothing(report),
        *_describe_blocks(report),
        *describe_in_float(report.in_float),
    ]
    lines += [f"made for {report.target}: numbers are {PLAIN}"] if report.target else _describe_kernels(report)
    lines += _describe_cost(report)
    short = sum_up_report(report)
    lines += [f"in short: {short}"] if short else []
    print_lines(console, [*lines, f"wrote {output}"])


def _describe_kernels(report: Report) -> list[str]:
    """What onnxruntime's kernels make of the file."""
    return [*describe_unfused(report.unfused), spell_saturation(report.saturation)]


def describe_measured_on(found: MeasuredOn, samples: int, *, stepwise: bool = False) -> str:
    """What the tables of outputs and layers were measured on, and what that means for their numbers.

    stepwise: samples are steps of sequences.
    """
    if found.source == "held out":
        return f"result, on {found.samples} samples held out; it was made from the other {samples}"
    if found.source == "test":
        return f"result, on the {found.samples} samples of --test; it was made from {samples} others"
    enough = f"four sequences of {HOLD_OUT_FROM} steps together" if stepwise else f"{HOLD_OUT_FROM} samples"
    return (
        f"result, on the {found.samples} samples that it was made from; on others SQNR was lower by {FLATTERED} where"
        f" it was measured; give others with --test, or {enough}, of which a quarter is held out"
    )


def _spell_outputs(report: Report) -> Sheet:
    sessions = {
        EXPECTED: list_expected(report.outputs),
        "unoptimized" if report.target else "optimized": report.outputs,
        **({} if report.target else {"unoptimized": report.outputs_unoptimized}),
        **list_processors(report.saturation),
    }
    unlike = any(map(_differs, list_rows([record for records in sessions.values() for record in records])))
    medians = ("median dB",) if unlike else ()
    rows = []
    for session, records in sessions.items():
        for record in list_rows(records):
            decibels, *errors, agreement = _spell_output(record)
            decibels += _spell_range(record.sqnr_interval)
            agreement += _spell_range(record.agreement_interval, 100)
            median = [spell_number(record.median_db)] if unlike else []
            if session == EXPECTED:
                median, errors = [""] * len(median), [""] * len(errors)
            rows.append((record.name, session, agreement, decibels, *median, *errors))
    headers = ("output", "session", "agreement % (95%)", "SQNR dB (95%)", *medians, "cosine", "max error")
    return Sheet(headers, (*rows,), keys=2)


def _spell_stages(report: Report) -> Sheet:
    """What each stage did to the outputs, in order."""
    rows = []
    for stage in report.steps:
        for record in list_rows(stage.outputs):
            numbers = _spell_output(record)
            rows.append((record.name, stage.name, stage.outcome, numbers[-1], numbers[0]))
    return Sheet(("output", "stage", "outcome", "agreement %", "SQNR dB"), (*rows,), keys=3)


def _spell_output(record: OutputRecord) -> Sequence[str]:
    agreement = None if record.agreement is None else 100 * record.agreement
    errors = spell_number(record.cosine, ".6f"), spell_number(record.max_abs_error, ".4g")
    return spell_number(record.sqnr_db), *errors, spell_number(agreement) + spell_positions(record)


def _differs(record: OutputRecord) -> bool:
    """Whether SQNR over all samples is far from what most samples have."""
    found = record.sqnr_db, record.median_db
    return None not in found and abs((found[0] or 0) - (found[1] or 0)) > FAR


def _spell_range(ends: tuple[float, float] | None, scale: float = 1) -> str:
    return "" if ends is None else f" ({' to '.join(f'{scale * end:.1f}' for end in ends)})"


def _spell_layers(report: Report) -> Sheet:
    measured = [(layer.sqnr_db, layer) for layer in report.layers if layer.sqnr_db is not None]
    worst = sorted(measured, key=lambda each: each[0])[:WORST_LAYERS]
    rows = ((layer.name, layer.op, _spell_bits(layer), f"{sqnr:.2f}") for sqnr, layer in worst)
    return Sheet(("worst layers", "op", "bits", "SQNR dB"), (*rows,), keys=3)


def _spell_bits(layer: LayerRecord) -> str:
    return f"W{layer.weight_bits}A{layer.activation_bits}{' dynamic' if layer.dynamic else ''}"


def _describe_blocks(report: Report) -> list[str]:
    outcomes: dict[str, int] = defaultdict(int)
    reasons: dict[str, list[str]] = defaultdict(list)
    for block in report.blocks:
        outcomes[block.outcome] += 1
        if block.reason:
            reasons[f"{block.outcome}: {block.reason}"].append(block.name)
    if not outcomes:
        return []
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    return [f"blocks: {counts}", *(f"  {reason}: {name_some(names)}" for reason, names in reasons.items())]


def _describe_rotation(report: Report) -> list[str]:
    """What was rotated, and what that gained; nothing where nothing was."""
    found = report.rotation
    if found is None or not found["chosen"]:
        return []
    streams, before = found["streams"], found["tried_db"]["off"]
    after = found["tried_db"]["mixed" if found["mixed"] else "on"]
    parts = [f"{streams} residual stream{'s' * (streams != 1)}"] if streams else []
    parts += [f"the values of {found['heads']} attentions"] if found["heads"] else []
    mixed = len(found["mixed"])
    parts += [f"{mixed} input{'s' * (mixed != 1)} of layers by a MatMul"] if mixed else []
    return [f"rotation: {', '.join(parts)}; {before:.1f} -> {after:.1f} dB by the rounding around them"]


def _describe_smoothing(report: Report) -> list[str]:
    """How the inputs of layers were smoothed, and how many; nothing where none were."""
    found = report.smoothing
    if found is None or not found["smoothed"]:
        return []
    muls = sum(each["mul"] is not None for each in found["smoothed"])
    layers = sum(len(each["layers"]) for each in found["smoothed"])
    name = f"{found['exponent']:g}" if found["reach"] is None else f"reach {found['reach']:g}"
    name += " fitted" if found["fitted"] else ""
    what = f"exponent {name}" if found["reach"] is None else name
    before, after = (found["tried_db"][each] for each in ("off", name))
    return [
        f"smoothing: {what} for {layers} layers, {muls} Muls in front of them; {before:.1f} -> {after:.1f} dB by the"
        " rounding of these alone"
    ]


def _describe_speed(record: SpeedRecord | None) -> list[str]:
    if record is None:
        return []
    low, high = record.interval
    times = f"{record.float_ms:.3g} -> {record.quantized_ms:.3g} ms"
    return [f"speed: {times} on one thread here, {record.speedup:.2f} times float ({low:.2f} to {high:.2f})"]


def _describe_memory(record: MemoryRecord | None) -> list[str]:
    if record is None:
        return []
    sizes = (record.peak_bytes, record.floor_bytes, record.largest_bytes)
    peak, floor, largest = (f"{size / 1e9:.2f} GB" if size >= LARGE else f"{size / 1e6:.1f} MB" for size in sizes)
    return [f"memory: {peak} taken; {floor} are needed at least, with {largest} in the largest segment"]


def _describe_cost(report: Report) -> list[str]:
    ratio = f", {report.quantized_bytes / report.float_bytes:.3f} of float" if report.float_bytes else ""
    bits = "" if report.bits_per_weight is None else f", {report.bits_per_weight:.3f} bits a weight"
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report.seconds.items())
    total = sum(report.seconds.values())
    passes = f", {total / report.float_pass_seconds:.0f} float passes" if report.float_pass_seconds else ""
    return [
        f"size: {report.float_bytes:,} -> {report.quantized_bytes:,} bytes{ratio}{bits}",
        *_describe_speed(report.speed),
        f"time: {total:.1f} s ({stages}){passes}, {report.samples} samples",
        *_describe_memory(report.memory),
    ]
