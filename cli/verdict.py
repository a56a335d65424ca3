"""Print what ``validate`` measured, and whether each gate holds."""

from __future__ import annotations

from rich.console import Console

from onnxcalib.report import name_some
from onnxcalib.sentence import sum_up_verdict
from onnxcalib.validation.render import (
    NO_ACCURACY_GATE,
    PLAIN,
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
from onnxcalib.validation.sheet import Sheet
from onnxcalib.verdict import ContractRecord, Explanation, Verdict

from .console import print_lines
from .lint import list_violations
from .reasons import describe_unfused
from .table import print_table

WORST_TENSORS = 5  # as many as one reads


def print_verdict(verdict: Verdict, console: Console) -> None:
    """Print what was compared and measured, where the loss comes from, and last each gate and the outcome."""
    print_lines(console, [f"{verdict.quantized_model} against {verdict.float_model} on {verdict.samples} samples"])
    for sheet in list_sheets(verdict):
        print_table(console, sheet, before=True)
    if lines := _describe_facts(verdict):
        print_lines(console, ["", *lines])
    print_table(console, _spell_steps(verdict.contract), before=True)
    if verdict.explanation:
        _print_explanation(console, verdict, verdict.explanation)
    _print_end(console, verdict)


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
    return Sheet(("tensors that differ most", "op", "steps", "% of values"), rows, keys=2)


def _print_explanation(console: Console, verdict: Verdict, explanation: Explanation) -> None:
    print_table(console, spell_layers(verdict), before=True)
    lines = [f"  {note}" for note in explanation.notes]
    lines += [f"  {name}: {text}" for name, text in spell_advice(verdict)]
    lines += [f"not judged: {len(explanation.unmatched)}"] if explanation.unmatched else []
    lines += [f"  {text}" for text in explanation.unmatched]
    if lines:
        print_lines(console, ["", *lines])
    if toml := gather_toml(verdict):
        text = f"\nlines for onnxcalib.toml:\n\n{toml}\n"
        console.file.write(text)  # not by rich, which may change text


def _print_end(console: Console, verdict: Verdict) -> None:
    short = sum_up_verdict(verdict)
    print_lines(console, ["", f"in short: {short}"] if short else [""])
    if lacks_accuracy_gate(verdict):
        print_lines(console, [NO_ACCURACY_GATE])
    print_gates(console, verdict)


def print_gates(console: Console, verdict: Verdict, *, failed: bool = False) -> None:
    """Print each gate, or only those that do not hold, and last the outcome."""
    for gate in verdict.gates:
        if failed and gate.passed:
            continue
        line = " ".join(f"{gate.name}: {gate.text}".split())  # names in it may have line breaks
        print_lines(console, [f"{'pass' if gate.passed else 'FAIL'}  {line}"], style=None if gate.passed else "red")
        if gate.name == "target" and verdict.lint is not None:
            print_lines(console, list_violations(verdict.lint))
    print_lines(console, [conclude(verdict)], style="bold green" if verdict.passed else "bold red")
