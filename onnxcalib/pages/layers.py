"""The table of layers, and how well the signal is kept from layer to layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .content import ABSENT, Cell, Chart, Column, Data, Section, Table, spell_bytes, spell_number, without_empty

FLOAT_BITS = 32
ADDED = (
    "What the integers of a layer add to the error of its output is a share of the output's power: by rounding"
    " alone, and as they were solved. Below 0 they also make up for some of the error of what the layer reads."
)
HARD_DB, GOOD_DB = 10.0, 30.0  # of a layer's output, below and above which its cell has a tone


def make_layers(
    layers: Sequence[Data],
    total_bytes: int,
    *,
    losses: Mapping[str, float | None] | None = None,
    added: Mapping[str, Data] | None = None,
    details: Mapping[str, tuple[str, ...]] | None = None,
) -> Section | None:
    """The section of all layers; None without any.

    losses: layer -> what it loses, in any unit, where that is known. added: layer -> what its integers add to its
    error. details: layer -> keys of plots of it.
    """
    if not layers:
        return None
    added = added or {}
    known = {name: loss for name, loss in (losses or {}).items() if loss is not None}
    whole = sum(known.values())
    columns = [
        Column("layer"),
        Column("operator", choices=True),
        Column("bits", choices=True),
        Column("SQNR, dB", number=True),
        Column("rounding adds", number=True),
        Column("solved adds", number=True),
        Column("bytes", number=True),
        Column("of the file", number=True),
        Column("of the loss", number=True),
        Column("runs on", choices=True),
        Column("why"),
    ]
    rows = [
        (
            Cell(layer["name"]),
            Cell(layer["op"]),
            Cell(spell_bits(layer)),
            _draw_sqnr(layer["sqnr_db"]),
            *(_draw_added(added.get(layer["name"], {}).get(step)) for step in ("rounded", "solved")),
            Cell(spell_bytes(layer["bytes"]) if layer["bytes"] else ABSENT, layer["bytes"]),
            _draw_share(layer["bytes"] / total_bytes if layer["bytes"] and total_bytes else None),
            _draw_share(known[layer["name"]] / whole if whole and layer["name"] in known else None),
            Cell({True: "integers", False: "float", None: ABSENT}[layer["on_integers"]]),
            Cell(layer["reason"]),
        )
        for layer in layers
    ]
    table = Table(
        "The quantized layers, in the order of the graph",
        tuple(columns),
        tuple(rows),
        searched=True,
        details=tuple((details or {}).get(layer["name"], ()) for layer in layers) if details else (),
    )
    on_integers = sum(layer["on_integers"] is True for layer in layers)
    judged = sum(layer["on_integers"] is not None for layer in layers)
    lead = f"{len(layers)} layers" + (f", of which {on_integers} run on integers here." if judged else ".")
    lead += f" {ADDED}" if added else ""
    return Section("layers", "Layers", (without_empty(table),), lead)


def make_path(rows: Sequence[tuple[str, Mapping[str, float | None]]]) -> Section | None:
    """SQNR through the network. rows: each layer in order, and its numbers by what they are; None without any."""
    points: list[dict[str, Any]] = [
        {"place": place, "layer": name, "kind": kind, "dB": value}
        for place, (name, values) in enumerate(rows, 1)
        for kind, value in values.items()
        if value is not None
    ]
    if not points:
        return None
    text = "SQNR in dB of the layers, from the first to the last"
    return Section("path", "SQNR through the network", (Chart("path", "path", tuple(points), text),))


def spell_bits(layer: Data) -> str:
    weight = "" if layer["weight_bits"] is None else f"W{layer['weight_bits']}"
    return f"{weight}A{layer['activation_bits']}{' dynamic' if layer.get('dynamic') else ''}"


def _draw_sqnr(value: float | None) -> Cell:
    tone = "" if value is None else "bad" if value < HARD_DB else "good" if value >= GOOD_DB else ""
    return Cell(spell_number(value, ".1f"), value, tone=tone)


def _draw_added(share: float | None) -> Cell:
    return Cell(ABSENT) if share is None else Cell(f"{100 * share:.2g}%", share)


def _draw_share(value: float | None) -> Cell:
    return Cell(ABSENT) if value is None else Cell(f"{100 * value:.1f}%", value, share=min(max(value, 0.0), 1.0))
