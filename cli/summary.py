"""The tables that a run ends with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from onnxcalib.bitplan import BitPlan, Frontier, Point, Totals
from onnxcalib.config import HOLD_OUT_FROM
from onnxcalib.layer_record import LayerRecord
from onnxcalib.report import (
    FloatRecord,
    MeasuredOn,
    MemoryRecord,
    OutputRecord,
    Report,
    SpeedRecord,
    UnfusedRecord,
    list_expected,
    list_rows,
    name_some,
    spell_positions,
)
from onnxcalib.stepwise import describe_loop, list_growth
from onnxcalib.validation.render import PLAIN, list_processors, spell_number, spell_saturation

from .console import open_console

MOST_REASONS = 8  # of nodes that stay in float; some are of one node each
FAR = 3.0  # dB between the SQNR of all samples and that of most from which both are shown
FLATTERED = "1 to 8 dB at 4 bits and up to 2 dB at 8"  # in docs/results.md
EXPECTED = "expected"  # the row of estimates, which has nothing but SQNR and agreement
WORST_LAYERS = 5  # as many as one reads


def print_summary(report: Report, output: Path) -> None:
    """Print on stdout what a run measured."""
    console = open_console()
    if report.plan:
        console.print(tabulate_sets(BitPlan.model_validate(report.plan)))
    if report.steps:
        console.print("stages, on the samples that they work with", _tabulate_stages(report), sep="\n")
    if report.measured_on is not None:
        estimated = "; expected: estimates for others like them" if list_expected(report.outputs) else ""
        stepwise = report.closed_loop is not None
        line = describe_measured_on(report.measured_on, report.samples, stepwise=stepwise) + estimated
        console.print(line, soft_wrap=True)
    if report.closed_loop is not None:
        console.print(f"{describe_loop(report.closed_loop)}; other sessions: single steps", soft_wrap=True)
    for table in (_tabulate_outputs(report), _tabulate_growth(report), _tabulate_layers(report)):
        if table.row_count:
            console.print(table)
    lines = [
        *_describe_rotation(report),
        *_describe_smoothing(report),
        *_describe_blocks(report),
        *describe_in_float(report.in_float),
    ]
    lines += [f"made for {report.target}: numbers are {PLAIN}"] if report.target else _describe_kernels(report)
    lines += _describe_cost(report, output)
    console.print("\n".join(lines), soft_wrap=True)


def _describe_kernels(report: Report) -> list[str]:
    """What onnxruntime's kernels make of the file."""
    return [*describe_unfused(report.unfused), spell_saturation(report.saturation)]


def _open_table(*texts: str) -> Table:
    """A table whose first columns hold these texts, such as names; long ones go on in the next line."""
    table = Table(box=None, pad_edge=False)
    for text in texts:
        table.add_column(text, overflow="fold")
    return table


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


def tabulate_sets(plan: BitPlan) -> Table:
    """What each set of layers, or of tensors, loses at each of its candidates, and the bits that were chosen."""
    names = list(dict.fromkeys(name for each in plan.sets for name in each.loss))
    table = _open_table("layer", "bits")
    for name in names:
        table.add_column(f"loss {name}", justify="right")
    for each in plan.sets:
        losses = [spell_number(each.loss[name], ".2e") if name in each.loss else "" for name in names]
        for layer in each.layers:
            table.add_row(layer, plan.layers[layer], *losses)
        if not each.layers:
            table.add_row(each.tensors[0], f"A{plan.tensors[each.tensors[0]]}", *losses)
    return table


def print_plan(plan: BitPlan, output: Path) -> None:
    """Print on stdout what each set loses at each of its candidates, the bits chosen, and the totals."""
    console = open_console()
    console.print(tabulate_sets(plan))
    in_float = [FloatRecord(name, "", why) for name, why in plan.reasons().items()]
    for line in describe_in_float(in_float, file="plan"):
        console.print(line, soft_wrap=True)
    console.print(f"all at 8 bits: {_spell_totals(plan.eight_bit)}")
    console.print(f"this plan: {_spell_totals(plan.totals)}, after {plan.rounds} round{'s' * (plan.rounds > 1)}")
    console.print(f"wrote {output}; onnxcalib quantize --plan {output} uses it", soft_wrap=True)


def _spell_totals(totals: Totals) -> str:
    measured, predicted = (
        "infinite" if loss is None else f"{loss:.2e}" for loss in (totals.measured_loss, totals.predicted_loss)
    )
    parts = [f"loss {measured} (predicted {predicted})"]
    if totals.agreement is not None:
        parts.append(f"agreement {totals.agreement:.1f}%")
    parts += [f"{totals.bytes:,} bytes", f"{totals.bops:.3g} bit operations"]
    if totals.bits_per_weight is not None:
        parts.append(f"{totals.bits_per_weight:.3f} bits a weight")
    if totals.a16 is not None:
        parts.append(f"{totals.a16:.1f}% of the elements of activations at 16 bits")
    if totals.milliseconds is not None:
        parts.append(f"{totals.milliseconds:.4g} ms")
    return ", ".join(parts)


def print_frontier(frontier: Frontier, output: Path, plot: Path) -> None:
    """Print on stdout the least sum of losses for each size, and that of one candidate everywhere."""
    console = open_console()
    table = _open_table("choice")
    for name in ("bytes", "of float", "bit operations", "predicted loss"):
        table.add_column(name, justify="right")

    def add(name: str, point: Point) -> None:
        share = point.bytes / frontier.float_bytes
        table.add_row(name, f"{point.bytes:,}", f"{share:.3f}", f"{point.bops:.3g}", spell_number(point.loss, ".2e"))

    for point in frontier.points:
        add("planned", point)
    for name, point in frontier.uniform.items():
        add(f"{name} everywhere", point)
    console.print(table)
    use = "onnxcalib plan --max-size BYTES makes the plan of one size"
    console.print(f"wrote {output} and {plot}; {use}", soft_wrap=True)


def _tabulate_outputs(report: Report) -> Table:
    table = _open_table("output", "session")
    sessions = {
        EXPECTED: list_expected(report.outputs),
        "unoptimized" if report.target else "optimized": report.outputs,
        **({} if report.target else {"unoptimized": report.outputs_unoptimized}),
        **list_processors(report.saturation),
    }
    unlike = any(map(_differs, list_rows([record for records in sessions.values() for record in records])))
    medians = ["median dB"] if unlike else []
    for name in ("SQNR dB", "95%", *medians, "cosine", "max error", "agreement %", "95%"):
        table.add_column(name, justify="right")
    for session, records in sessions.items():
        for record in list_rows(records):
            decibels, *errors, agreement = _spell_output(record)
            ranges = _spell_range(record.sqnr_interval, ".1f"), _spell_range(record.agreement_interval, ".1f", 100)
            median = [spell_number(record.median_db)] if unlike else []
            if session == EXPECTED:
                median, errors = [""] * len(median), [""] * len(errors)
            table.add_row(record.name, session, decibels, ranges[0], *median, *errors, agreement, ranges[1])
    return table


def _tabulate_growth(report: Report) -> Table:
    """How far the models grow apart over the steps of sequences; no rows for models without states."""
    headers, rows = (("",), ()) if report.closed_loop is None else list_growth(report.closed_loop)
    table = _open_table(headers[0])
    for name in headers[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _tabulate_stages(report: Report) -> Table:
    """What each stage did to the outputs, in order."""
    table = _open_table("stage", "outcome", "output")
    for name in ("SQNR dB", "agreement %"):
        table.add_column(name, justify="right")
    for stage in report.steps:
        for record in list_rows(stage.outputs):
            numbers = _spell_output(record)
            table.add_row(stage.name, stage.outcome, record.name, numbers[0], numbers[-1])
    return table


def _spell_output(record: OutputRecord) -> Sequence[str]:
    agreement = None if record.agreement is None else 100 * record.agreement
    errors = spell_number(record.cosine, ".6f"), spell_number(record.max_abs_error, ".4g")
    return spell_number(record.sqnr_db), *errors, spell_number(agreement) + spell_positions(record)


def _differs(record: OutputRecord) -> bool:
    """Whether SQNR over all samples is far from what most samples have."""
    found = record.sqnr_db, record.median_db
    return None not in found and abs((found[0] or 0) - (found[1] or 0)) > FAR


def _spell_range(ends: tuple[float, float] | None, form: str, scale: float = 1) -> str:
    return "" if ends is None else " to ".join(spell_number(scale * end, form) for end in ends)


def _tabulate_layers(report: Report) -> Table:
    table = _open_table("worst layers", "op", "bits")
    table.add_column("SQNR dB", justify="right")
    measured = [(layer.sqnr_db, layer) for layer in report.layers if layer.sqnr_db is not None]
    for sqnr, layer in sorted(measured, key=lambda each: each[0])[:WORST_LAYERS]:
        table.add_row(layer.name, layer.op, _spell_bits(layer), f"{sqnr:.2f}")
    return table


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
    streams, before, after = found["streams"], found["tried_db"]["off"], found["tried_db"]["on"]
    parts = [f"{streams} residual stream{'s' * (streams != 1)}"] if streams else []
    parts += [f"the values of {found['heads']} attentions"] if found["heads"] else []
    return [f"rotation: {' and '.join(parts)}; {before:.1f} -> {after:.1f} dB by the rounding around them"]


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


def describe_in_float(in_float: Sequence[FloatRecord], *, file: str = "report") -> list[str]:
    """The number of nodes that stay in float, and their names by reason; nothing where there is none.

    file: which has all of them.
    """
    reasons: dict[str, list[FloatRecord]] = defaultdict(list)
    for record in in_float:
        reasons[f"{record.op}: {record.reason}" if record.bytes else record.reason].append(record)
    lines = [f"left in float: {len(in_float)}{_spell_bytes(in_float)}"] if in_float else []
    lines += [
        f"  {reason}: {name_some([record.name for record in records])}{_spell_bytes(records)}"
        for reason, records in list(reasons.items())[:MOST_REASONS]
    ]
    more = len(reasons) - MOST_REASONS
    return [*lines, f"  and {more} other reasons, in the {file} under in_float"] if more > 0 else lines


def _spell_bytes(records: Sequence[FloatRecord]) -> str:
    total = sum(record.bytes for record in records)
    return f" ({total:,} bytes of weights)" if total else ""


def describe_unfused(unfused: Sequence[UnfusedRecord]) -> list[str]:
    """The number of Q/DQ that onnxruntime did not fuse, and their tensors by reason."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for record in unfused:
        reasons[f"{record.op}: {record.reason}"].append(record.tensor)
    lines = [f"unfused Q/DQ: {len(unfused)}"]
    return lines + [f"  {reason}: {name_some(tensors)}" for reason, tensors in reasons.items()]


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
    peak, floor, largest = (f"{size / 1e9:.2f} GB" for size in sizes)
    return [f"memory: {peak} taken; {floor} are needed at least, with {largest} in the largest segment"]


def _describe_cost(report: Report, output: Path) -> list[str]:
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
        f"wrote {output}",
    ]
