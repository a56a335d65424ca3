"""The page of a verdict: whether each gate holds, then what was measured, layer by layer, and last the conditions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .content import (
    ABSENT,
    Code,
    Data,
    Figure,
    Gate,
    Lines,
    Page,
    Part,
    Scale,
    Section,
    make_table,
    spell_interval,
    spell_number,
)
from .layers import make_layers, make_path, spell_bits
from .measures import (
    draw_growth,
    draw_outputs,
    draw_rules,
    draw_saturating,
    draw_unfused,
    list_comparison,
    make_conditions,
)

LOSSES = {"alone": "alone_db", "with all before": "all_before_db", "at the output": "at_output_db"}
LEAST_DB = -1000.0
PERCENT_SCORES = ("top-1", "top-5")


def make_verdict(data: Data) -> Page:
    """The page of what ``Verdict.to_json`` gives, or ``render_lint.to_json`` of a file alone."""
    if "gates" not in data:
        return _make_lint(data)
    gates = tuple(Gate(each["name"], each["passed"], each["text"], Scale.of_gate(each)) for each in data["gates"])
    every = _list_explained(data)
    losses = {each["name"]: _lose(each["at_output_db"]) for each in every}
    ratios = {each["name"]: each["all_before_db"] for each in every}
    layers = [{**each, "sqnr_db": ratios.get(each["name"])} for each in data["layers"]]
    sections = (
        _make_measures(data),
        make_layers(layers, data["quantized_bytes"], losses=losses),
        make_path([(each["name"], {kind: each[key] for kind, key in LOSSES.items()}) for each in every]),
        _explain(data["explanation"]),
        _list_facts(data),
        make_conditions(data),
    )
    return Page(
        title="Validation",
        subject=f"{data['quantized_model']} against {data['float_model']}, {data['samples']:,} samples",
        outcome=_conclude(gates),
        passed=data["passed"],
        gates=gates,
        figures=tuple(_list_figures(data)),
        sections=tuple(each for each in sections if each is not None and each.parts),
    )


def _make_lint(data: Data) -> Page:
    lint = data["lint"]
    broken = len(lint["violations"])
    places = "1 place" if broken == 1 else f"{broken:,} places"
    outcome = f"{places} of {lint['judged']:,} operators break rules" if broken else f"{len(lint['rules'])} rules hold"
    parts = (draw_rules(lint),) if broken else ()
    lines = tuple(f"{op}: {count:,} not judged" for op, count in lint["unjudged"].items())
    return Page(
        title=f"Rules of {lint['target']}",
        subject=f"{data['quantized_model']}; the file was read, and the device was not run",
        outcome=outcome,
        passed=data["passed"],
        sections=(Section("rules", "Rules", (*parts, Lines((f"judged: {', '.join(lint['rules'])}", *lines)))),),
    )


def _conclude(gates: Sequence[Gate]) -> str:
    failed = [gate.name for gate in gates if not gate.passed]
    if failed:
        verb = "does" if len(failed) == 1 else "do"
        return f"{len(failed)} of {len(gates)} {'gate' if len(gates) == 1 else 'gates'} {verb} not hold: " + ", ".join(
            failed
        )
    if not gates:
        return "no gate was asked for"
    return "the one gate holds" if len(gates) == 1 else f"all {len(gates)} gates hold"


def _list_figures(data: Data) -> Iterable[Figure]:
    for score in data["scores"][:1]:
        unit, form = (" points", ".2f") if score["name"] in PERCENT_SCORES else ("", ".4g")
        value = spell_number(score["quantized_score"], form)
        drop = f"{spell_number(score['drop'], form)}{unit} less than float ({spell_number(score['float_score'], form)})"
        yield Figure(score["name"], value, "%" if unit else "", drop)
    yield from list_comparison(data)
    latency = data["latency"]
    times = f"{spell_number(latency['float_ms'], '.3g')} → {spell_number(latency['quantized_ms'], '.3g')} ms a run"
    yield Figure("speed here", spell_number(latency["speedup"]), "× float", f"{times}, batch {latency['batch']}")
    if data["warnings"]:
        yield Figure("warnings", str(len(data["warnings"])), "", "at the end of the page")


def _make_measures(data: Data) -> Section:
    parts: list[Part] = []
    if data["scores"]:
        rows = [
            (
                each["name"],
                spell_number(each["float_score"], ".4g"),
                spell_number(each["quantized_score"], ".4g"),
                spell_number(each["drop"], ".3g"),
                spell_interval(each["drop_interval"]) or ABSENT,
            )
            for each in data["scores"]
        ]
        parts.append(make_table("Scores", ("score", "float", "quantized", "drop", "95%"), rows, numbers=4))
    parts.append(draw_outputs("Outputs against the float model's", {"": data["outputs"]}))
    saturation = data["saturation"]
    if saturation["outputs"]:
        sessions = {"exact sums": saturation["exact"], "without VNNI": saturation["outputs"]}
        parts.append(draw_outputs(f"On processors with and without VNNI, {saturation['samples']} samples", sessions))
    if data["reference"]:
        found = data["reference"]
        keys = {"deployed": "deployed", "unoptimized": "unoptimized", "float model": "original"}
        sessions = {name: found[key] for name, key in keys.items()}
        parts.append(draw_outputs(f"Against onnx's evaluator, {found['samples']} samples", sessions))
    if data["device"]:
        found = data["device"]
        sessions = {
            "device and float": found["against_float"],
            "device and onnxruntime": found["against_unoptimized"],
            "onnxruntime and float": found["onnxruntime"],
        }
        parts.append(draw_outputs(f"{found['runtime']}, {found['samples']} samples", sessions))
    if data["closed_loop"]:
        parts.append(draw_growth(data["closed_loop"]))
    return Section("accuracy", "Accuracy", tuple(parts))


def _list_explained(data: Data) -> list[Data]:
    """The layers of the explanation, in the order of the graph as far as the file's layers tell it."""
    found = data["explanation"]
    if found is None:
        return []
    place = {each["name"]: number for number, each in enumerate(data["layers"])}
    every = [*found["layers"], *found["others"]]
    return sorted(every, key=lambda each: place.get(each["name"], len(place)))


def _explain(found: Data | None) -> Section | None:
    """What the worst layers lose, why, and what helps."""
    if found is None:
        return None
    layers = found["layers"]
    rows = [
        (
            each["name"],
            each["op"],
            spell_bits(each),
            "; ".join(filter(None, (*each["reasons"], each["remedy"]))),
            *(spell_number(each[key], ".1f") for key in LOSSES.values()),
        )
        for each in layers
    ]
    headers = ("layer", "operator", "bits", "why, and what helps", *(f"{kind}, dB" for kind in LOSSES))
    parts: list[Part] = [make_table("The layers that limit the outputs, the worst first", headers, rows, numbers=3)]
    lines = (*found["notes"], *(f"not judged: {text}" for text in found["unmatched"]))
    parts += [Lines(lines)] if lines else []
    texts = dict.fromkeys(each["toml"].strip("\n") for each in layers)
    toml = "\n\n".join(sorted(filter(None, texts), key=lambda text: text.startswith("[")))
    parts += [Code("lines for onnxcalib.toml", toml)] if toml else []
    return Section("explanation", "Where the loss comes from", tuple(parts), f"On {found['samples']} samples.")


def _lose(decibels: float | None) -> float | None:
    """The error relative to the signal; that of an output of zeros may have any size, and stays a number."""
    return None if decibels is None else 10 ** (-max(decibels, LEAST_DB) / 10)


def _list_facts(data: Data) -> Section:
    """What onnxruntime makes of the file."""
    parts: list[Part] = []
    if data["unfused"]:
        parts.append(draw_unfused(data["unfused"]))
    rows: list[tuple[str, ...]]
    contract = data["contract"]
    moved = [each for each in contract["tensors"] if each["share"] > 0]
    if moved:
        rows = [(each["tensor"], each["op"], str(each["steps"]), f"{100 * each['share']:.3g}") for each in moved[:20]]
        headers = ("tensor", "operator", "steps", "% of values")
        caption = f"Tensors that graph optimizations move most, {len(moved)} of {len(contract['tensors'])}"
        parts.append(make_table(caption, headers, rows, numbers=2))
    if data["saturation"]["layers"]:
        parts.append(draw_saturating(data["saturation"]))
    parts += [draw_rules(data["lint"])] if data["lint"] and data["lint"]["violations"] else []
    if data["device"] and data["device"]["off"]:
        rows = [(each["node"], each["op"], each["reason"]) for each in data["device"]["off"]]
        parts.append(make_table("Nodes that the device does not run", ("node", "operator", "why"), rows))
    return Section("kernels", "Kernels", tuple(parts))
