"""The page of a report: what a run made, how good it is, and what each of its steps did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .content import (
    ABSENT,
    Cell,
    Chart,
    Column,
    Data,
    Figure,
    Lines,
    Page,
    Part,
    Section,
    Table,
    make_table,
    spell_bytes,
    spell_number,
    without_empty,
)
from .flow import draw_flow
from .histograms import draw_histograms
from .layers import make_layers, make_path
from .measures import (
    draw_growth,
    draw_outputs,
    draw_rules,
    draw_saturating,
    draw_unfused,
    list_comparison,
    list_rows,
    make_conditions,
)
from .plan import list_losses, make_sets

FEW = 100  # answers: below, they are counted, as a percentage would promise more than they tell
MEASURED = {
    "held out": "{} samples held out; the file was made from {} others",
    "test": "the {} samples of --test; the file was made from {} others",
    "calibration": "the {} samples that the file was made from, so that the numbers flatter",
}


def make_report(data: Data) -> Page:
    """The page of what ``Report.to_json`` gives."""
    plan, lint = data["plan"], data["lint"]
    details = draw_histograms(data["layers"])
    keys = {name: tuple(each.key for each in charts) for name, charts in details.items()}
    sections = (
        _make_measures(data),
        make_layers(
            data["layers"],
            data["quantized_bytes"],
            losses=list_losses(plan) if plan else None,
            added={loss["layer"]: loss for block in data["blocks"] for loss in block.get("losses", ())},
            details=keys or None,
        ),
        make_path([(each["name"], {"SQNR": each["sqnr_db"]}) for each in data["layers"]]),
        draw_flow(data["places"], {each["name"]: each["sqnr_db"] for each in data["layers"]}),
        _make_steps(data),
        make_sets(plan) if plan else None,
        _list_facts(data),
        _make_times(data),
        make_conditions(data),
    )
    broken = lint is not None and any(each["level"] != "advice" for each in lint["violations"])
    return Page(
        title="Quantization",
        subject=_spell_measured(data),
        outcome=_conclude(data),
        passed=None if lint is None else not broken and lint["judged"] > 0,
        figures=tuple(_list_figures(data)),
        sections=tuple(each for each in sections if each is not None and each.parts),
        details={each.key: each for charts in details.values() for each in charts},
    )


def _spell_measured(data: Data) -> str:
    found = data["measured_on"]
    if found is None:
        return f"made from {data['samples']} samples"
    return "measured on " + MEASURED[found["source"]].format(f"{found['samples']:,}", f"{data['samples']:,}")


def _conclude(data: Data) -> str:
    """The result in a sentence."""
    kept = [each["agreement"] for each in list_rows(data["outputs"]) if each["agreement"] is not None]
    samples = data["measured_on"]["samples"] if data["measured_on"] else 0
    share = f"{100 * min(kept):.1f}% of the" if kept else ""
    if kept and 0 < samples < FEW and not any(each["positions"] for each in list_rows(data["outputs"])):
        share = f"{round(min(kept) * samples)} of {samples}"
    parts = [f"{share} answers are the float model's"] if kept else []
    if data["float_bytes"]:
        parts.append(f"the file is {data['quantized_bytes'] / data['float_bytes']:.2f} of the float model's size")
    if data["speed"]:
        parts.append(f"it runs {data['speed']['speedup']:.1f} times as fast here")
    text = "; ".join(parts) or f"{len(data['layers'])} layers are quantized"
    return text[0].upper() + text[1:]


def _list_figures(data: Data) -> Iterable[Figure]:
    yield from list_comparison(data)
    if data["bits_per_weight"] is not None:
        yield Figure("bits a weight", f"{data['bits_per_weight']:.2f}")
    if data["speed"]:
        times = f"{data['speed']['float_ms']:.3g} → {data['speed']['quantized_ms']:.3g} ms a run"
        yield Figure("speed here", f"{data['speed']['speedup']:.2f}", "× float", times)
    total = sum(data["seconds"].values())
    once = data["float_pass_seconds"]
    yield Figure("time", f"{total:,.1f}", "s", f"{total / once:,.0f} float passes" if once else "")
    left = f"{len(data['in_float'])} nodes in float" if data["in_float"] else "none left in float"
    yield Figure("layers", f"{len(data['layers'])}", "", left)
    if data["warnings"]:
        yield Figure("warnings", str(len(data["warnings"])), "", "at the end of the page")


def _make_measures(data: Data) -> Section:
    saturation = data["saturation"]
    here = "unoptimized" if data["target"] else "optimized"
    sessions: Mapping[str, list[Data]] = {
        "expected": [
            {**each["expected"], "name": each["name"], "cosine": None, "max_abs_error": None, "parts": ()}
            for each in list_rows(data["outputs"])
            if each["expected"] is not None
        ],
        here: data["outputs"],
        **({} if data["target"] else {"unoptimized": data["outputs_unoptimized"]}),
        "exact sums": saturation["exact"],
        "without VNNI": saturation["outputs"],
    }
    parts: list[Part] = [draw_outputs("Outputs against the float model's", {k: v for k, v in sessions.items() if v})]
    if data["closed_loop"]:
        parts.append(draw_growth(data["closed_loop"]))
    lead = "Expected: an estimate for other samples of the same kind." if sessions["expected"] else ""
    return Section("accuracy", "Accuracy", tuple(parts), lead)


def _make_steps(data: Data) -> Section | None:
    """What the stages did to the outputs, and what became of each block."""
    parts: list[Part] = []
    rows = [
        (
            stage["name"],
            stage["outcome"],
            output["name"],
            ABSENT if output["agreement"] is None else f"{100 * output['agreement']:.2f}",
            spell_number(output["sqnr_db"]),
            stage["reason"] or "",
        )
        for stage in data["steps"]
        for output in list_rows(stage["outputs"])
    ]
    if rows:
        points = tuple(
            {"stage": stage["name"], "output": output["name"], "dB": output["sqnr_db"]}
            for stage in data["steps"]
            for output in list_rows(stage["outputs"])
            if output["sqnr_db"] is not None
        )
        parts += [Chart("stages", "stages", points, "SQNR of the outputs behind each stage, in dB")] if points else []
        headers = ("stage", "outcome", "output", "agreement, %", "SQNR, dB", "why")
        columns = tuple(Column(name, number=name.endswith((", %", "dB"))) for name in headers)
        caption = "What each stage did to the outputs, on the samples that it works with"
        parts.append(without_empty(Table(caption, columns, tuple(tuple(map(Cell, row)) for row in rows))))
    if data["blocks"]:
        parts.append(_draw_blocks(data["blocks"]))
    return Section("steps", "Steps", tuple(parts)) if parts else None


def _draw_blocks(blocks: Iterable[Data]) -> Table:
    columns = (
        Column("block"),
        Column("outcome", choices=True),
        Column("loss before", number=True),
        Column("after", number=True),
        Column("of before", number=True),
        Column("seconds", number=True),
        Column("why"),
    )
    rows = []
    for each in blocks:
        before, after = each["loss_before"], each["loss_after"]
        ratio = after / before if before and after is not None else None
        rows.append(
            (
                Cell(each["name"]),
                Cell(each["outcome"]),
                Cell(spell_number(before, ".2e"), before),
                Cell(spell_number(after, ".2e"), after),
                Cell(spell_number(ratio, ".3f"), ratio),
                Cell(f"{each['seconds']:.1f}", each["seconds"]),
                Cell(each["reason"] or ""),
            )
        )
    losses = any(each["loss_before"] is not None for each in blocks)
    caption = "Blocks" + ": mean squared error of the outputs by their mean square, on samples held out" * losses
    return without_empty(Table(caption, columns, tuple(rows), searched=True))


def _list_facts(data: Data) -> Section:
    """What stays in float, and what onnxruntime makes of the file."""
    parts: list[Part] = []
    if data["in_float"]:
        columns = (Column("node"), Column("operator", choices=True), Column("bytes", number=True), Column("why"))
        rows = tuple(
            (
                Cell(each["name"]),
                Cell(each["op"]),
                Cell(spell_bytes(each["bytes"]) if each["bytes"] else ABSENT, each["bytes"]),
                Cell(each["reason"]),
            )
            for each in data["in_float"]
        )
        table = Table(f"Nodes that stay in float, {len(rows)}", columns, rows, searched=len(rows) > 1)
        parts.append(without_empty(table))
    parts += [draw_unfused(data["unfused"])] if data["unfused"] else []
    parts += [draw_saturating(data["saturation"])] if data["saturation"]["layers"] else []
    parts += [draw_rules(data["lint"])] if data["lint"] and data["lint"]["violations"] else []
    if data["left_out"]:
        rows_left = [(each["what"], each["reason"]) for each in data["left_out"]]
        parts.append(make_table("Parts of the work that were left out", ("what", "why"), rows_left))
    return Section("kernels", "Float and integers", tuple(parts))


def _make_times(data: Data) -> Section | None:
    if not data["seconds"]:
        return None
    total = sum(data["seconds"].values()) or 1.0
    rows = tuple(
        (Cell(name), Cell(f"{each:.1f}", each), Cell(f"{100 * each / total:.1f}%", each / total, share=each / total))
        for name, each in data["seconds"].items()
    )
    columns = (Column("stage"), Column("seconds", number=True), Column("of the run", number=True))
    parts: list[Part] = [Table("Where the time went", columns, rows)]
    if memory := data["memory"]:
        text = (
            f"memory: {spell_bytes(memory['peak_bytes'])} taken; {spell_bytes(memory['floor_bytes'])} needed at least"
        )
        parts.append(Lines((text,)))
    return Section("time", "Time", tuple(parts))
