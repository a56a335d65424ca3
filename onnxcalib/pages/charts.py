"""How plots are drawn: specifications of Vega-Lite. Colours are names of those in ``page.css``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Spec = Mapping[str, Any]
# Colours that tell kinds apart, in this order.
KINDS = ("--one", "--two", "--three", "--four", "--five", "--six")


def _field(name: str, title: str | None = None, kind: str = "quantitative", **more: Any) -> dict[str, Any]:
    return {"field": name, "type": kind, "title": title, **more}


def _name(name: str, title: str) -> dict[str, Any]:
    return _field(name, title, "nominal")


def _tell(name: str, sort: Any = "ascending") -> dict[str, Any]:
    """The colours of kinds, with a legend above the plot."""
    legend = {"orient": "top", "labelLimit": 0}
    return _field(name, None, "nominal", scale={"range": list(KINDS)}, legend=legend, sort=sort)


# Of few layers there are ticks between them too, which have no number.
NUMBERS = {"grid": False, "ticks": False, "labelExpr": "datum.value % 1 ? '' : datum.value"}
PLACES = _field("place", "layer", axis=NUMBERS, scale={"nice": False, "zero": False})
PATH: Spec = {
    "height": 220,
    "encoding": {
        "x": PLACES,
        "y": _field("dB", "SQNR, dB", scale={"zero": False}),
        "color": _tell("kind", None),
        "tooltip": [_name("layer", "layer"), _name("kind", "what"), _field("dB", "dB", format=".1f")],
    },
    "layer": [
        {"mark": {"type": "line", "strokeWidth": 1, "opacity": 0.5}},
        {"mark": {"type": "point", "filled": True, "size": 24, "opacity": 1}},
    ],
}
STAGES: Spec = {
    "height": 160,
    "encoding": {
        "x": _field("stage", None, "ordinal", sort=None, axis={"labelAngle": 0, "grid": False}),
        "y": _field("dB", "SQNR, dB", scale={"zero": False}),
        "color": _tell("output", None),
        "tooltip": [_name("stage", "stage"), _name("output", "output"), _field("dB", "dB", format=".2f")],
    },
    "layer": [
        {"mark": {"type": "line", "strokeWidth": 1.5}},
        {"mark": {"type": "point", "filled": True, "size": 40, "opacity": 1}},
    ],
}
# Heights by their square root: what is rare is what grids clip.
HEIGHT = _field("count", None, axis=None, scale={"type": "sqrt"})
HISTOGRAM: Spec = {
    "height": 110,
    "layer": [
        {
            "transform": [
                {"calculate": "(datum.high - datum.low) / length(datum.counts)", "as": "width"},
                {"flatten": ["counts"], "as": ["count"]},
                {"window": [{"op": "row_number", "as": "bin"}]},
                {"calculate": "datum.low + datum.width * (datum.bin - 1)", "as": "from"},
                {"calculate": "datum.low + datum.width * datum.bin", "as": "to"},
            ],
            "mark": {"type": "bar", "binSpacing": 0.5, "color": "--one"},
            "encoding": {
                "x": _field("from", None, scale={"nice": False, "zero": False}, axis={"grid": False}),
                "x2": {"field": "to"},
                "y": HEIGHT,
                "y2": {"datum": 0},
            },
        },
        {
            "transform": [{"flatten": ["grid"], "as": ["end"]}],
            "mark": {"type": "rule", "color": "--two", "strokeWidth": 1.5},
            "encoding": {"x": _field("end")},
        },
    ],
}
FRONTIER: Spec = {
    "height": 280,
    "encoding": {
        "x": _field("size", "file, share of the float model", scale={"zero": False}, axis={"format": ".2f"}),
        "y": _field("loss", "predicted loss", scale={"type": "log"}, axis={"format": ".0e", "tickCount": 3}),
        "color": _tell("kind", ["planned", "uniform bits", "this plan"]),
        "tooltip": [
            _name("kind", "what"),
            _name("name", "which"),
            _field("size", "of float", format=".3f"),
            _field("loss", "loss", format=".2e"),
        ],
    },
    "layer": [
        {"transform": [{"filter": "datum.kind === 'planned'"}], "mark": {"type": "line", "strokeWidth": 1.5}},
        {"mark": {"type": "point", "filled": True, "size": 45, "opacity": 1}},
        {
            "transform": [{"filter": "datum.kind === 'uniform bits'"}],
            "mark": {"type": "text", "align": "left", "dx": 7, "dy": -5, "fontSize": 11},
            "encoding": {"text": {"field": "name"}, "color": {"value": "--quiet"}},
        },
    ],
}
SENSITIVITY: Spec = {
    "height": 240,
    "encoding": {
        "x": PLACES,
        "y": _field("loss", "loss", scale={"type": "log"}, axis={"format": ".0e", "tickCount": 3}),
        "color": _tell("bits"),
        "tooltip": [_name("layer", "layer"), _name("bits", "bits"), _field("loss", "loss", format=".2e")],
    },
    "layer": [
        {"transform": [{"filter": "!datum.chosen"}], "mark": {"type": "point", "size": 24, "opacity": 1}},
        {
            "transform": [{"filter": "datum.chosen"}],
            "mark": {"type": "point", "filled": True, "size": 40, "opacity": 1},
        },
    ],
}
SPECS: Mapping[str, Spec] = {
    "path": PATH,
    "stages": STAGES,
    "histogram": HISTOGRAM,
    "frontier": FRONTIER,
    "sensitivity": SENSITIVITY,
}
