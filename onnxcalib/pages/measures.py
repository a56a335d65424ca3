"""What pages share: outputs and how they compare, what is left unfused, what saturates, and the conditions of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from .content import (
    ABSENT,
    Data,
    Facts,
    Figure,
    Lines,
    Part,
    Section,
    make_table,
    spell_bytes,
    spell_interval,
    spell_number,
)

MEASURES = ("agreement, %", "95%", "SQNR, dB", "95%", "cosine", "max error")


def list_rows(outputs: Iterable[Data]) -> list[Data]:
    """The outputs, each followed by its parts."""
    return [row for each in outputs for row in (each, *each["parts"])]


def list_comparison(data: Data) -> Iterable[Figure]:
    """How near the worst outputs are to the float model's, and the size beside its."""
    rows = list_rows(data["outputs"])
    agreements = [each for each in rows if each["agreement"] is not None]
    if agreements:
        worst = min(agreements, key=lambda each: each["agreement"])
        note = spell_interval(worst["agreement_interval"], ".1f", 100)
        yield Figure("same answers", f"{100 * worst['agreement']:.1f}", "%", f"95%: {note}" if note else "")
    ratios = [each for each in rows if each["sqnr_db"] is not None and not each["parts"]]
    if ratios:
        worst = min(ratios, key=lambda each: each["sqnr_db"])
        note = spell_interval(worst["sqnr_interval"], ".1f")
        yield Figure("SQNR", f"{worst['sqnr_db']:.1f}", "dB", f"95%: {note}" if note else "")
    ratio = data["quantized_bytes"] / data["float_bytes"] if data["float_bytes"] else None
    sizes = f"{spell_bytes(data['float_bytes'])} → {spell_bytes(data['quantized_bytes'])}"
    yield Figure("size", spell_number(ratio, ".3f"), "of float", sizes)


def draw_outputs(caption: str, sessions: Mapping[str, Iterable[Data]]) -> Part:
    """Outputs with their measures; sessions: what ran the models, or an empty text where there is one alone."""
    named = list(sessions) != [""]
    rows = [
        (
            each["name"],
            *([session] if named else []),
            ABSENT if each["agreement"] is None else f"{100 * each['agreement']:.2f}",
            spell_interval(each["agreement_interval"], ".1f", 100) or ABSENT,
            spell_number(each["sqnr_db"]),
            spell_interval(each["sqnr_interval"], ".1f") or ABSENT,
            spell_number(each["cosine"], ".6f"),
            spell_number(each["max_abs_error"], ".3g"),
        )
        for session, records in sessions.items()
        for each in list_rows(records)
    ]
    return make_table(caption, ("output", *(["session"] if named else []), *MEASURES), rows, numbers=len(MEASURES))


def draw_growth(found: Data) -> Part:
    """How far both models grow apart over the steps of sequences."""
    rows = [
        (
            each["output"],
            "last" if each["first"] is None else f"{each['first']:,} to {each['last']:,}",
            str(each["sequences"]),
            spell_number(each["sqnr_db"], ".1f"),
        )
        for each in found["growth"]
    ]
    return make_table("Closed loop, over the steps", ("output", "steps", "sequences", "SQNR, dB"), rows, numbers=2)


def draw_unfused(unfused: Iterable[Data]) -> Part:
    rows = [(each["tensor"], each["op"], each["reason"]) for each in unfused]
    return make_table(f"Q/DQ that onnxruntime left, {len(rows)}", ("tensor", "operator", "why"), rows)


def draw_saturating(found: Data) -> Part:
    """Layers that can saturate, with the largest sums."""
    rows = [(each["name"], f"{each['bound']:,}") for each in found["layers"]]
    caption = "Layers whose sums of two products can leave int16 (32,767) on x86 without VNNI"
    return make_table(caption, ("layer", "largest sum"), rows, numbers=1)


def draw_rules(lint: Data) -> Part:
    """The places that break a target's rules."""
    headers = ("level", "where", "rule", "found", "allowed", "source")
    rows = [tuple(each[name] for name in headers) for each in lint["violations"]]
    return make_table(f"Rules of {lint['target']} that do not hold", headers, rows)


def make_conditions(data: Data) -> Section:
    """Warnings, settings, versions and the processor."""
    parts: list[Part] = [Lines(tuple(f"warning: {text}" for text in data["warnings"]))] if data["warnings"] else []
    made_on = data.get("environment") or {}
    if made_on:
        parts.append(Facts("Made with", tuple((name, str(each)) for name, each in made_on.items())))
    pairs = tuple((name, _spell(value)) for name, value in _flatten(data["settings"]))
    parts += [Facts("Settings", pairs)] if pairs else []
    return Section("conditions", "Warnings, versions and settings", tuple(parts))


def _flatten(settings: Data, before: str = "") -> Iterable[tuple[str, object]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{before}{name}.")
        elif value is not None and value not in ({}, []):
            yield before + name, value


def _spell(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
