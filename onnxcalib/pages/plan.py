"""The page of a bit plan: what was chosen within which budgets, from which losses, and the frontier it lies on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .content import (
    ABSENT,
    Cell,
    Chart,
    Column,
    Data,
    Facts,
    Figure,
    Gate,
    Page,
    Part,
    Scale,
    Section,
    Table,
    make_table,
    spell_bytes,
    spell_number,
)

# Budget -> what it limits of the totals, its unit, and how it is spelled.
REACHED = {
    "max_size": ("bytes", "bytes", ",.0f"),
    "max_bops": ("bops", "bit operations", ".3g"),
    "max_loss": ("measured_loss", "loss", ".3g"),
    "max_disagreement": ("agreement", "% of the answers differ", ".3g"),
    "max_latency": ("milliseconds", "ms", ".3g"),
    "max_a16": ("a16", "% of the elements at 16 bits", ".3g"),
}


def make_plan(plan: Data | None, frontier: Data | None) -> Page:
    """The page of what ``BitPlan.to_json`` and ``Frontier.to_json`` give, or of one of them."""
    curve = draw_frontier(frontier, plan) if frontier else None
    if plan is None:
        count = len((frontier or {"points": ()})["points"])
        sections: tuple[Section | None, ...] = (curve,)
        return _finish("Bit plans", f"{count} sizes, and the least loss of each", "", sections)
    totals, eight = plan["totals"], plan["eight_bit"]
    loss = "infinite" if totals["measured_loss"] is None else f"{totals['measured_loss']:.2e}"
    outcome = f"Loss {loss} at {spell_bytes(totals['bytes'])}"
    if eight["bytes"]:
        outcome += f", {totals['bytes'] / eight['bytes']:.2f} of the file at 8 bits"
    sections = (curve, make_sets(plan), _list_float(plan), _make_numbers(plan))
    subject = f"{len(plan['layers'])} layers, {len(plan['sets'])} sets that have their bits together"
    return _finish(
        "Bit plan", outcome, subject, sections, gates=_list_budgets(plan), judged="Budgets", figures=_list_figures(plan)
    )


def _finish(title: str, outcome: str, subject: str, sections: Iterable[Section | None], **more: Any) -> Page:
    kept = tuple(each for each in sections if each is not None and each.parts)
    return Page(title=title, subject=subject, outcome=outcome, sections=kept, **more)


def _list_budgets(plan: Data) -> tuple[Gate, ...]:
    """Each budget as a gate, which the plan holds."""
    found = []
    for name, limit in plan["budgets"].items():
        key, unit, form = REACHED.get(name, ("", "", ".4g"))
        value = plan["totals"].get(key)
        if name == "max_disagreement" and value is not None:
            value = 100 - value
        if value is None:
            found.append(Gate(name, True, f"at most {limit:{form}} {unit}".strip()))
            continue
        scale = Scale.of_gate({"name": name, "limit": limit, "measured": value, "interval": None})
        # What is measured of the whole model may be above the sum of predictions that the program had.
        found.append(Gate(name, value <= limit * (1 + 1e-9), f"{value:{form}} {unit}, at most {limit:{form}}", scale))
    return tuple(found)


def _list_figures(plan: Data) -> tuple[Figure, ...]:
    totals, eight = plan["totals"], plan["eight_bit"]
    figures = [
        Figure("loss", spell_number(totals["measured_loss"], ".2e"), "", _compare("predicted", totals, ".2e")),
        Figure("at 8 bits", spell_number(eight["measured_loss"], ".2e"), "loss", spell_bytes(eight["bytes"])),
        Figure("size", spell_bytes(totals["bytes"]), "", f"{totals['bytes']:,} bytes"),
        Figure("bit operations", f"{totals['bops']:.3g}", "", f"{eight['bops']:.3g} at 8 bits"),
    ]
    if totals["agreement"] is not None:
        figures.append(Figure("same answers", f"{totals['agreement']:.1f}", "%"))
    if totals["milliseconds"] is not None:
        figures.append(Figure("time of a run", f"{totals['milliseconds']:.3g}", "ms"))
    if totals["bits_per_weight"] is not None:
        figures.append(Figure("bits a weight", f"{totals['bits_per_weight']:.2f}"))
    return tuple(figures)


def _compare(word: str, totals: Data, form: str) -> str:
    return "" if totals["predicted_loss"] is None else f"{word} {totals['predicted_loss']:{form}}"


def list_losses(plan: Data) -> dict[str, float | None]:
    """Layer -> the loss of its set at the bits that were chosen, in equal parts where a set has several layers."""
    found: dict[str, float | None] = {}
    for each in plan["sets"]:
        for layer in each["layers"]:
            loss = each["loss"].get(plan["layers"][layer])
            found[layer] = None if loss is None else loss / len(each["layers"])
    return found


def make_sets(plan: Data) -> Section | None:
    """What each set of layers loses at each candidate, and what was chosen."""
    candidates = list(dict.fromkeys(name for each in plan["sets"] for name in each["loss"]))
    chosen = [(each, _find_chosen(plan, each)) for each in plan["sets"]]
    total = sum(each["loss"].get(bits) or 0.0 for each, bits in chosen)
    columns = (
        Column("layers"),
        Column("bits", choices=True),
        Column("of the loss", number=True),
        Column("bytes", number=True),
        *(Column(f"loss {name}", number=True) for name in candidates),
    )
    rows = []
    for each, bits in chosen:
        share = (each["loss"].get(bits) or 0.0) / total if total else None
        size = each["bytes"].get(bits)
        losses = [each["loss"].get(name) for name in candidates]
        rows.append(
            (
                Cell(", ".join(each["layers"] or each["tensors"])),
                Cell(bits),
                Cell(ABSENT if share is None else f"{100 * share:.1f}%", share, share=share),
                Cell(spell_bytes(size) if size else ABSENT, size),
                *(Cell(spell_number(loss, ".2e"), loss) for loss in losses),
            )
        )
    points: list[Mapping[str, Any]] = [
        {"place": place, "layer": ", ".join(each["layers"] or each["tensors"]), "bits": name, "loss": loss}
        | {"chosen": name == bits}
        for place, (each, bits) in enumerate(chosen, 1)
        for name, loss in each["loss"].items()
        if loss
    ]
    parts: list[Part] = []
    if points:
        text = "Loss of each set of layers at each candidate, from the first to the last; those chosen are filled"
        parts.append(Chart("sensitivity", "sensitivity", tuple(points), text))
    parts.append(Table("What each set of layers loses at each candidate", columns, tuple(rows), searched=True))
    return Section("sets", "Sensitivity of each layer", tuple(parts)) if rows else None


def _find_chosen(plan: Data, record: Data) -> str:
    if record["layers"]:
        return str(plan["layers"][record["layers"][0]])
    return f"A{plan['tensors'][record['tensors'][0]]}"


def draw_frontier(frontier: Data, plan: Data | None) -> Section:
    """The least loss of every size, one candidate everywhere, and the plan on it."""
    whole = frontier["float_bytes"]

    def place(point: Data, kind: str, name: str) -> dict[str, Any]:
        return {"size": point["bytes"] / whole, "loss": point["loss"], "kind": kind, "name": name}

    points = [place(each, "planned", f"{each['bytes']:,} bytes") for each in frontier["points"]]
    points += [place(each, "uniform bits", name) for name, each in frontier["uniform"].items()]
    if plan is not None:
        totals = {"bytes": plan["totals"]["bytes"], "loss": plan["totals"]["predicted_loss"]}
        points.append(place(totals, "this plan", f"{totals['bytes']:,} bytes"))
    drawn = tuple(each for each in points if each["loss"])
    rows = [
        (name, f"{point['bytes']:,}", f"{point['bytes'] / whole:.3f}", f"{point['bops']:.3g}", _spell_loss(point))
        for name, point in (*(("planned", each) for each in frontier["points"]), *frontier["uniform"].items())
    ]
    headers = ("choice", "bytes", "of float", "bit operations", "predicted loss")
    table = make_table("The least loss of every size, and uniform bits", headers, rows, numbers=4)
    chart = Chart(
        "frontier", "frontier", drawn, "Predicted loss by the size of the file, as a share of the float model"
    )
    return Section("frontier", "Frontier", (chart, table) if drawn else (table,))


def _spell_loss(point: Data) -> str:
    return "infinite" if point["loss"] is None else f"{point['loss']:.2e}"


def _list_float(plan: Data) -> Section | None:
    left = [(name, why) for name, why in plan["in_float"].items() if plan["layers"].get(name, "float") == "float"]
    if not left:
        return None
    return Section("float", "Left in float", (make_table(f"{len(left)} nodes", ("node", "why"), left),))


def _make_numbers(plan: Data) -> Section:
    rows = [
        ("model (SHA-256)", plan["model"]),
        ("proven bound", f"{plan['bound']:.4g}"),
        ("rounds of measuring", str(plan["rounds"])),
        *((name, f"{limit:g}") for name, limit in plan["budgets"].items()),
    ]
    return Section("conditions", "Conditions", (Facts("How it was found", tuple(rows)),))
