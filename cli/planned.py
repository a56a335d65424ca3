"""What ``plan`` prints: the bits that were chosen and what they cost, or the curve of all sizes."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from onnxcalib.bitplan import BitPlan, Frontier, Point, Totals
from onnxcalib.report import FloatRecord
from onnxcalib.sentence import sum_up_plan
from onnxcalib.validation.render import spell_number
from onnxcalib.validation.sheet import Sheet

from .console import print_lines
from .reasons import describe_in_float
from .table import print_table


def print_plan(plan: BitPlan, output: Path | None, console: Console) -> None:
    """Print what each set loses at each of its candidates, the bits chosen, the totals, and the plan in short.

    output: the file that has it; None where that is standard output.
    """
    print_sets(console, plan, str(output or "standard output"))
    console.print()
    in_float = [FloatRecord(name, "", why) for name, why in plan.reasons().items()]
    lines = [
        *describe_in_float(in_float, file="plan"),
        f"all at 8 bits: {_spell_totals(plan.eight_bit)}",
        f"this plan: {_spell_totals(plan.totals)}, after {plan.rounds} round{'s' * (plan.rounds > 1)}",
        f"in short: {sum_up_plan(plan)}",
    ]
    lines += [] if output is None else [f"wrote {output}; onnxcalib quantize --plan {output} uses it"]
    print_lines(console, lines)


def print_sets(console: Console, plan: BitPlan, whole: str = "the JSON of --report") -> None:
    """Print what each set of layers, or of tensors, loses at each of its candidates, and the bits that were chosen.

    whole: what has those of all layers.
    """
    names = list(dict.fromkeys(name for each in plan.sets for name in each.loss))
    rows = []
    for each in plan.sets:
        losses = [spell_number(each.loss[name], ".2e") if name in each.loss else "" for name in names]
        rows += [(layer, plan.layers[layer], *losses) for layer in each.layers]
        rows += [] if each.layers else [(each.tensors[0], f"A{plan.tensors[each.tensors[0]]}", *losses)]
    print_table(console, Sheet(("layer", "bits", *(f"loss {name}" for name in names)), (*rows,), keys=2), whole=whole)


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


def print_frontier(frontier: Frontier, output: Path, plot: Path, console: Console) -> None:
    """Print the least sum of losses for each size, and that of one candidate everywhere."""
    points = [*(("planned", point) for point in frontier.points)]
    points += [(f"{name} everywhere", point) for name, point in frontier.uniform.items()]
    rows = tuple((name, *_spell_point(point, frontier.float_bytes)) for name, point in points)
    headers = ("choice", "bytes", "of float", "bit operations", "predicted loss")
    print_table(console, Sheet(headers, rows), after=True)
    use = "onnxcalib plan --max-size BYTES makes the plan of one size"
    print_lines(console, [f"wrote {output} and {plot}; {use}"])


def _spell_point(point: Point, whole: int) -> tuple[str, ...]:
    return f"{point.bytes:,}", f"{point.bytes / whole:.3f}", f"{point.bops:.3g}", spell_number(point.loss, ".2e")
