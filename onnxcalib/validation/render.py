"""Write a verdict as JUnit XML for pipelines or Markdown for a pull request; both spell numbers alike."""

from __future__ import annotations

import math
from dataclasses import replace
from xml.etree import ElementTree

from ..report import OutputRecord, SaturationRecord, list_rows, name_some, spell_positions, spell_worst
from ..stepwise import list_growth
from ..verdict import (
    ContractRecord,
    DeviceRecord,
    Explanation,
    Interval,
    LatencyRecord,
    LayerLoss,
    ReferenceRecord,
    ScoreRecord,
    Verdict,
    spell_interval,
)
from .markup import add_case, draw_table, escape, spell_code, spell_text
from .render_lint import draw_lint
from .sheet import ABSENT, INTERVAL, Sheet, draw_sheet, list_lines

ACCURACY_GATES = ("max_drop", "min_agreement", "min_sqnr")
NO_ACCURACY_GATE = f"no accuracy gate was asked for: {', '.join(ACCURACY_GATES[:-1])} or {ACCURACY_GATES[-1]}"
PERCENT_SCORES = ("top-1", "top-5")  # other scores are a user's own, in a unit that is not known
WORST_LAYERS = 10  # more would hardly be read
MOST_OFF = 20  # nodes that a device does not run
# What stands in place of what onnxruntime's kernels make of a file for another target.
PLAIN = "of exact sums, by onnxruntime without its optimizations"
MEASURES = (f"agreement %{INTERVAL}", f"SQNR dB{INTERVAL}", "cosine", "max error")
MEASURE_HEADERS = ("measure", "float", "quantized", "")


def conclude(verdict: Verdict) -> str:
    """PASSED or FAILED, and how many gates hold, in one line."""
    failed = [gate.name for gate in verdict.gates if not gate.passed]
    total = len(verdict.gates)
    gates = "gate" if total == 1 else "gates"
    if failed:
        verb = "does" if len(failed) == 1 else "do"
        return f"FAILED: {len(failed)} of {total} {gates} {verb} not hold: {', '.join(failed)}"
    if not total:
        return "PASSED: no gate was asked for"
    return f"PASSED: {total} of {total} {gates} {'holds' if total == 1 else 'hold'}"


def lacks_accuracy_gate(verdict: Verdict) -> bool:
    return not any(gate.name in ACCURACY_GATES for gate in verdict.gates)


def spell_measures(verdict: Verdict) -> Sheet:
    """The measures of whole models: scores, file size and latency."""
    rows = (
        *(_spell_score(score) for score in verdict.scores),
        (
            "file bytes",
            f"{verdict.float_bytes:,}",
            f"{verdict.quantized_bytes:,}",
            f"{verdict.size_ratio:.3f} of float",
        ),
        _spell_latency(verdict.latency),
    )
    return Sheet(MEASURE_HEADERS, rows, named=False, prose=(3,))


def spell_facts(verdict: Verdict) -> Sheet:
    """Unfused Q/DQ, kernel consistency and integer kernels, without what the gates on them say already."""
    contract, saturation = verdict.contract, verdict.saturation
    judged = spell_judged(verdict)
    reference = [("steps from the reference", ABSENT, ABSENT, judged)] if judged else []
    if not verdict.fused:
        return Sheet(MEASURE_HEADERS, (("outputs", ABSENT, ABSENT, PLAIN), *reference), named=False)
    rows: list[tuple[str, ...]] = []
    if not is_judged(verdict, "max_unfused"):
        rows.append(("unfused Q/DQ", ABSENT, str(len(verdict.unfused)), ""))
    if is_judged(verdict, "max_steps"):
        text = "; ".join(filter(None, (_spell_differing(contract), spell_change(contract))))
        rows += [("kernel consistency", ABSENT, ABSENT, text)] if text else []
    else:
        rows.append(_spell_contract(contract))
    rows += reference
    if not is_judged(verdict, "max_saturating"):
        rows.append(("integer kernels", ABSENT, str(saturation.kernels), _spell_bounds(saturation)))
    return Sheet(MEASURE_HEADERS, tuple(rows), named=False)


def is_judged(verdict: Verdict, gate: str) -> bool:
    return any(record.name == gate for record in verdict.gates)


def list_sheets(verdict: Verdict) -> list[Sheet]:
    """The sheets of measures, outputs, saturated outputs, the reference and a device, without those without rows."""
    sheets = [spell_measures(verdict), spell_outputs(verdict), spell_saturated(verdict), spell_reference(verdict)]
    sheets += spell_device(verdict.device)
    sheets += [] if verdict.closed_loop is None else [Sheet(*list_growth(verdict.closed_loop))]
    return [sheet for sheet in sheets if sheet.rows]


def _list_all(verdict: Verdict) -> list[Sheet]:
    """As ``list_sheets``, with the facts as further rows of the measures."""
    measures, *others = list_sheets(verdict)
    return [replace(measures, rows=measures.rows + spell_facts(verdict).rows), *others]


def spell_outputs(verdict: Verdict) -> Sheet:
    """The outputs; a last column counts values that are not finite, where there are any."""
    headers = ("output", *MEASURES)
    records = list_rows(verdict.outputs)
    rows = tuple(map(_spell_output, records))
    if not any(record.broken or record.left_out for record in records):
        return Sheet(headers, rows)
    counts = (f"{record.broken:,} quantized, {record.left_out:,} float" for record in records)
    return Sheet((*headers, "not finite"), tuple((*row, count) for row, count in zip(rows, counts, strict=True)))


def spell_saturated(verdict: Verdict) -> Sheet:
    """The outputs with exact and with saturating sums; no rows where no kernel can saturate."""
    headers = ("output", "session", *MEASURES)
    rows = (
        (name, session, *cells)
        for session, records in list_processors(verdict.saturation).items()
        for name, *cells in map(_spell_output, list_rows(records))
    )
    return Sheet(headers, tuple(rows), keys=2)


def spell_reference(verdict: Verdict) -> Sheet:
    """onnxruntime's outputs against those of onnx's evaluator; no rows where that was not asked for."""
    found = verdict.reference or ReferenceRecord(0)
    headers = (f"reference ({found.samples} samples)", "session", *MEASURES)
    sessions = {"deployed": found.deployed, "unoptimized": found.unoptimized, "float model": found.original}
    rows = (
        (name, session, *cells)
        for session, records in sessions.items()
        for name, *cells in map(_spell_output, list_rows(records))
    )
    return Sheet(headers, tuple(rows), keys=2)


def spell_judged(verdict: Verdict) -> str:
    """How far both sessions are from the evaluator where they compute from equal integers; empty where unknown."""
    found = verdict.reference
    if found is None or not found.deployed_steps:
        return ""
    sessions = {"deployed": found.deployed_steps, "unoptimized": found.unoptimized_steps}
    parts = []
    for session, records in sessions.items():
        moved = sum(each.share > 0 for each in records)
        parts.append(f"{session} at most {records[0].steps} ({moved} of {len(records)} tensors moved)")
    return ", ".join(parts)


def spell_device(device: DeviceRecord | None) -> tuple[Sheet, ...]:
    """The outputs on a target's device against others on the same samples, and the nodes that it does not run."""
    if device is None:
        return ()
    headers = ("output", f"compared on {device.samples} samples", *MEASURES)
    pairs = {
        "device and float": device.against_float,
        "device and onnxruntime unoptimized": device.against_unoptimized,
        "onnxruntime unoptimized and float": device.onnxruntime,
    }
    rows = (
        (name, pair, *cells)
        for pair, records in pairs.items()
        for name, *cells in map(_spell_output, list_rows(records))
    )
    left = len(device.off) - MOST_OFF
    off = [(each.node, each.op, each.reason) for each in device.off[:MOST_OFF]]
    off += [(f"and {left} more", "", "all are in the JSON report")] if left > 0 else []
    nodes = Sheet(("off the device", "op", "reason"), tuple(off), keys=2, prose=(2,))
    return Sheet(headers, tuple(rows), keys=2), nodes


def list_processors(found: SaturationRecord) -> dict[str, tuple[OutputRecord, ...]]:
    """The outputs on processors with exact sums and on those without VNNI, by the label of their rows."""
    sessions = {"exact sums": found.exact, "without VNNI": found.outputs}
    return {f"{session} ({found.samples} samples)": records for session, records in sessions.items()}


def spell_saturation(found: SaturationRecord) -> str:
    """How many integer kernels there are, which of them can saturate on x86 without VNNI, and the outputs there."""
    if not found.kernels:
        return "integer kernels: none"
    line = f"integer kernels: {found.kernels}, {_spell_bounds(found)}"
    if not found.layers:
        return line
    worst, unread = found.layers[0], name_some(found.unread)
    line += f" (worst {worst.name}: sums of two products reach {worst.bound:,}, int16 ends at 32,767)"
    if not found.outputs:
        why = found.reason or f"{unread} cannot be emulated"
        line += f": the outputs there were not measured; {why}"
        exact = f"; with exact sums they have {spell_worst(found.exact)} ({found.samples} samples)"
        return f"{line}{exact}" if found.exact else line
    least = " at least" if len(found.outputs) > 1 else ""
    line += f": there the outputs have{least} {spell_worst(found.outputs)}, with exact sums {spell_worst(found.exact)}"
    line += f" ({found.samples} samples)"
    return f"{line}; the first leaves out saturation in {unread}, which cannot be emulated" if unread else line


def _spell_bounds(found: SaturationRecord) -> str:
    return f"{len(found.layers) or 'none'} can saturate on x86 without VNNI" if found.kernels else ""


def spell_layers(verdict: Verdict) -> Sheet:
    """The worst layers of the explanation; no rows where there is none."""
    headers = ("worst layers", "op", "bits", "alone dB", "with all before dB", "at output dB")
    return Sheet(headers, tuple(_spell_layer(layer) for layer in worst_layers(verdict)), keys=3)


def worst_layers(verdict: Verdict) -> tuple[LayerLoss, ...]:
    return verdict.explanation.layers[:WORST_LAYERS] if verdict.explanation else ()


def spell_advice(verdict: Verdict) -> list[tuple[str, str]]:
    """(layer, reasons and remedy in one text) for each of the worst layers that has any."""
    advice = [(layer.name, "; ".join(filter(None, (*layer.reasons, layer.remedy)))) for layer in worst_layers(verdict)]
    return [(name, text) for name, text in advice if text]


def gather_toml(verdict: Verdict) -> str:
    """The worst layers' lines for onnxcalib.toml as one text, without repeats; tables come after other lines."""
    texts = dict.fromkeys(layer.toml.strip("\n") for layer in worst_layers(verdict))
    return "\n\n".join(sorted(filter(None, texts), key=lambda text: text.startswith("[")))


def spell_change(contract: ContractRecord) -> str:
    """How well the float outputs with and without graph optimizations agree; empty where there are none."""
    if contract.sqnr_db is None:
        return ""
    if contract.sqnr_db == math.inf:
        return "outputs of the two sessions are equal"
    return f"outputs of the two sessions agree to {contract.sqnr_db:.1f} dB"


def spell_number(value: float | None, form: str = ".2f") -> str:
    return ABSENT if value is None else format(value, form)


def to_markdown(verdict: Verdict) -> str:
    """The verdict as GitHub-flavoured Markdown, for a pull request's comment or a job's summary."""
    outcome, _, gates = conclude(verdict).partition(": ")
    lines = [
        f"## onnxcalib validate: {outcome}",
        f"{spell_code(verdict.quantized_model)} against {spell_code(verdict.float_model)} on {verdict.samples}"
        f" samples; {spell_text(gates)}.",
    ]
    if lacks_accuracy_gate(verdict):
        lines.append(f"**Note**: {spell_text(NO_ACCURACY_GATE)}.")
    if verdict.gates:
        gate_rows = [
            (spell_code(g.name), spell_text(g.text), "pass" if g.passed else "**FAIL**") for g in verdict.gates
        ]
        lines.append(draw_table(("gate", "measured and limit", "verdict"), gate_rows))
    lines += [draw_sheet(sheet) for sheet in _list_all(verdict)]
    lines += [] if verdict.lint is None else draw_lint(verdict.lint)
    if warnings := list_warnings(verdict):
        lines += ["**Warnings**", "\n".join(f"- {spell_text(warning)}" for warning in warnings)]
    if verdict.explanation:
        lines += _draw_explanation(verdict, verdict.explanation)
    return "\n\n".join(lines) + "\n"


def to_junit(verdict: Verdict) -> str:
    """The verdict as JUnit XML with one test case for each gate; the suite's system-out holds the measurements."""
    failures = sum(not gate.passed for gate in verdict.gates)
    counts = {"tests": str(len(verdict.gates)), "failures": str(failures), "errors": "0"}
    root = ElementTree.Element("testsuites", counts)
    name = escape(f"onnxcalib validate {verdict.quantized_model}")
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, "skipped": "0", **counts})
    properties = ElementTree.SubElement(suite, "properties")
    for name in ("float_model", "quantized_model", "samples", "size_ratio"):
        ElementTree.SubElement(properties, "property", name=name, value=escape(str(getattr(verdict, name))))
    measured = "\n".join(line for sheet in _list_all(verdict) for line in list_lines(sheet))
    for gate in verdict.gates:
        lint = verdict.lint if gate.name == "target" else None
        add_case(suite, gate, [each.text for each in lint.violations] if lint else [])
    notes = [f"note: {NO_ACCURACY_GATE}"] if lacks_accuracy_gate(verdict) else []
    notes += [escape(f"warning: {text}") for text in list_warnings(verdict)]
    advice = (escape(f"{name}: {text}") for name, text in spell_advice(verdict))
    worst = [*list_lines(spell_layers(verdict)), *advice]
    ElementTree.SubElement(suite, "system-out").text = "\n".join([measured, *notes, *worst])
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def list_warnings(verdict: Verdict) -> list[str]:
    """The run's warnings, and one that names the tensors whose Q and DQ have different scales or zero points."""
    unlike = verdict.contract.mismatched
    found = [f"QuantizeLinear and DequantizeLinear have unlike scales or zero points on: {', '.join(unlike)}"]
    return [*verdict.warnings, *(found if unlike else [])]


def _spell_score(score: ScoreRecord) -> tuple[str, ...]:
    known = score.name in PERCENT_SCORES
    form = ".2f" if known else ".6g"
    drop = f"drop {spell_number(score.drop, form)}{spell_interval(score.drop_interval, form)}"
    scores = (spell_number(score.float_score, form), spell_number(score.quantized_score, form))
    return (f"{score.name} %" if known else score.name, *scores, drop)


def _spell_latency(latency: LatencyRecord) -> tuple[str, ...]:
    def spell(milliseconds: float, spread: float) -> str:
        return f"{milliseconds:.3g} (spread {100 * spread:.0f}%)"

    return (
        f"latency ms, batch {latency.batch}",
        spell(latency.float_ms, latency.float_spread),
        spell(latency.quantized_ms, latency.quantized_spread),
        f"speedup {latency.speedup:.2f}{spell_interval(latency.speedup_interval)}",
    )


def _spell_contract(contract: ContractRecord) -> tuple[str, ...]:
    steps = str(contract.steps) if contract.tensors else ABSENT
    parts = (_spell_differing(contract) or "no integer tensor to judge", spell_change(contract))
    return ("kernel consistency, steps", ABSENT, steps, "; ".join(filter(None, parts)))


def _spell_differing(contract: ContractRecord) -> str:
    """How many integer tensors graph optimizations move; empty where there are none."""
    differing = sum(record.share > 0 for record in contract.tensors)
    return f"{differing} of {len(contract.tensors)} tensors moved by optimizations" if contract.tensors else ""


def _spell_output(record: OutputRecord) -> tuple[str, ...]:
    agreement = None if record.agreement is None else 100 * record.agreement
    return (
        record.name,
        spell_number(agreement) + spell_positions(record) + _spell_ends(record.agreement_interval, 100),
        spell_number(record.sqnr_db) + _spell_ends(record.sqnr_interval),
        spell_number(record.cosine, ".6f"),
        spell_number(record.max_abs_error, ".4g"),
    )


def _spell_ends(interval: Interval | None, scale: float = 1.0) -> str:
    return "" if interval is None else f" ({' to '.join(f'{scale * end:.2f}' for end in interval)})"


def _spell_layer(layer: LayerLoss) -> tuple[str, ...]:
    losses = (layer.alone_db, layer.all_before_db, layer.at_output_db)
    bits = f"{'' if layer.weight_bits is None else f'W{layer.weight_bits}'}A{layer.activation_bits}"
    return (layer.name, layer.op, bits, *(spell_number(loss) for loss in losses))


def _draw_explanation(verdict: Verdict, explanation: Explanation) -> list[str]:
    lines = [
        f"<details><summary>Where the loss comes from ({explanation.samples} samples)</summary>",
        draw_sheet(spell_layers(verdict)),
    ]
    advice = [f"- {spell_text(note)}" for note in explanation.notes]
    advice += [f"- {spell_code(name)}: {spell_text(text)}" for name, text in spell_advice(verdict)]
    advice += [f"- not judged: {spell_text(text)}" for text in explanation.unmatched]
    if advice:
        lines.append("\n".join(advice))
    if toml := gather_toml(verdict):
        lines += ["Lines for `onnxcalib.toml`:", f"```toml\n{toml}\n```"]  # no line of TOML is backticks alone
    return [*lines, "</details>"]
