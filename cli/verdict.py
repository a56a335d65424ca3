"""Print what ``validate`` measured, and whether each gate holds."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from onnxcalib.report import name_some
from onnxcalib.validation.render import (
    NO_ACCURACY_GATE,
    PLAIN,
    Sheet,
    conclude,
    gather_toml,
    is_judged,
    lacks_accuracy_gate,
    list_sheets,
    spell_advice,
    spell_change,
    spell_judged,
    spell_layers,
    spell_saturation,
)
from onnxcalib.verdict import ContractRecord, Explanation, Verdict

from .console import open_console, print_lines
from .lint import list_violations
from .summary import describe_unfused

WORST_TENSORS = 5  # as many as one reads


def print_verdict(verdict: Verdict) -> None:
    """Print what was compared and measured, where the loss comes from, and last each gate and the outcome."""
    console = open_console()
    print_lines(console, [f"{verdict.quantized_model} against {verdict.float_model} on {verdict.samples} samples"])
    for sheet in list_sheets(verdict):
        _print_sheet(console, sheet)
    if lines := _describe_facts(verdict):
        print_lines(console, ["", *lines])
    _print_sheet(console, _spell_steps(verdict.contract))
    if verdict.explanation:
        _print_explanation(console, verdict, verdict.explanation)
    _print_gates(console, verdict)


def _print_sheet(console: Console, sheet: Sheet) -> None:
    if not sheet.rows:
        return
    table = Table(box=None, pad_edge=False)
    for i, header in enumerate(sheet.headers):
        table.add_column(header, justify="right" if i and sheet.named else "left", overflow="fold")
    for row in sheet.rows:
        table.add_row(*row)
    console.print()
    console.print(table)


def _describe_facts(verdict: Verdict) -> list[str]:
    """Unfused Q/DQ, integer kernels and kernel consistency, without what the gates on them say already."""
    count, *reasons = describe_unfused(verdict.unfused)
    lines = [count, *reasons]
    if is_judged(verdict, "max_unfused"):
        lines = ["unfused Q/DQ, by reason:", *reasons] if reasons else []
    if verdict.saturation.layers or not is_judged(verdict, "max_saturating"):
        lines.append(spell_saturation(verdict.saturation))
    if not verdict.fused:
        lines = [f"outputs: {PLAIN}"]
    if text := spell_judged(verdict):
        lines.append(f"steps from the reference, from equal integers: {text}")
    return lines + _describe_contract(verdict.contract, judged=is_judged(verdict, "max_steps") or not verdict.fused)


def _describe_contract(contract: ContractRecord, *, judged: bool) -> list[str]:
    steps = "at most 1 step" if contract.steps == 1 else f"at most {contract.steps} steps"
    found = steps if contract.tensors else "no integer tensor to judge"
    parts = ["" if judged else f"{found} between graph optimizations off and on", spell_change(contract)]
    text = "; ".join(filter(None, parts))
    lines = [f"kernel consistency: {text} ({contract.samples} samples)"] if text else []
    if contract.mismatched:
        lines.append(f"unlike scales or zero points in a Q/DQ pair: {name_some(contract.mismatched)}")
    if contract.unread:
        lines.append(f"not compared: {name_some(contract.unread)}")
    return lines


def _spell_steps(contract: ContractRecord) -> Sheet:
    """The tensors that differ most; no rows where none does."""
    worst = [record for record in contract.tensors if record.share > 0][:WORST_TENSORS]
    rows = tuple((record.tensor, record.op, str(record.steps), f"{100 * record.share:.3g}") for record in worst)
    return Sheet(("tensors that differ most", "op", "steps", "% of values"), rows)


def _print_explanation(console: Console, verdict: Verdict, explanation: Explanation) -> None:
    _print_sheet(console, spell_layers(verdict))
    lines = [f"  {note}" for note in explanation.notes]
    lines += [f"  {name}: {text}" for name, text in spell_advice(verdict)]
    lines += [f"not judged: {len(explanation.unmatched)}"] if explanation.unmatched else []
    lines += [f"  {text}" for text in explanation.unmatched]
    if lines:
        print_lines(console, lines)
    if toml := gather_toml(verdict):
        print("\nlines for onnxcalib.toml:", toml, sep="\n\n")  # not by rich, which may change text


def _print_gates(console: Console, verdict: Verdict) -> None:
    print_lines(console, ["", NO_ACCURACY_GATE] if lacks_accuracy_gate(verdict) else [""])
    for gate in verdict.gates:
        line = " ".join(f"{gate.name}: {gate.text}".split())  # names in it may have line breaks
        print_lines(console, [f"{'pass' if gate.passed else 'FAIL'}  {line}"], style=None if gate.passed else "red")
        if gate.name == "target" and verdict.lint is not None:
            print_lines(console, list_violations(verdict.lint))
    print_lines(console, [conclude(verdict)], style="bold green" if verdict.passed else "bold red")
