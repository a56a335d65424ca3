"""How plots are drawn: specifications of Vega-Lite, whose colours are the names of those in ``page.css``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Spec = Mapping[str, Any]
# Colours that tell kinds apart, in this order.
KINDS = ("--one", "--two", "--three")


def _axis(field: str, title: str | None, kind: str = "quantitative", **more: Any) -> dict[str, Any]:
    return {"field": field, "type": kind, "title": title, **more}


PATH: Spec = {
    "height": 220,
    "encoding": {
        "x": _axis("place", "layer", axis={"grid": False, "tickMinStep": 1, "format": "d"}),
        "y": _axis("dB", "SQNR, dB", scale={"zero": False}),
        "color": {
            "field": "kind",
            "type": "nominal",
            "title": None,
            "scale": {"range": list(KINDS)},
            "legend": {"orient": "top"},
        },
        "tooltip": [
            _axis("layer", "layer", "nominal"),
            _axis("kind", "what", "nominal"),
            _axis("dB", "dB", format=".1f"),
        ],
    },
    "layer": [
        {"mark": {"type": "line", "strokeWidth": 1, "opacity": 0.5}},
        {"mark": {"type": "point", "filled": True, "size": 22}},
    ],
}
SPECS: Mapping[str, Spec] = {"path": PATH}
