"""What stays in float: its records for the report, and a warning where most of a file's bytes do."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import QuantizeConfig
from ..graph.float_weights import list_float_weights
from ..graph.names import resolve_names
from ..report import FloatRecord
from ..spec import QuantScheme
from .outline import Outline

# A larger share of the file's bytes in float is worth a warning.
MOST_FLOAT = 0.5


def list_in_float(outline: Outline, scheme: QuantScheme, given: QuantizeConfig) -> tuple[FloatRecord, ...]:
    """The nodes that the tool leaves in float, and those with weights that no scheme quantizes, but excluded ones.

    given: the settings without what a plan excludes.
    """
    quantized = {layer.name for layer in (*scheme.layers, *scheme.embeddings, *scheme.recurrent)}
    quantized |= {node.name for node in outline.model.graph.node if not scheme.constants.isdisjoint(node.input)}
    weights = list_float_weights(outline.model, quantized)
    bytes_of = {each.name: each.bytes for each in weights}
    ops = {node.name: node.op_type for node in outline.model.graph.node}
    own, excluded = (
        resolve_names(outline.model, config, before=outline.original).excluded for config in (given, outline.config)
    )
    excluded -= outline.in_float.keys() - own  # a plan excludes what the tool left in float
    chosen = {name: why for name, why in outline.in_float.items() if name not in excluded}
    others = [each for each in weights if each.name not in excluded | chosen.keys()]
    return (
        *(FloatRecord(name, ops[name], why, bytes_of.get(name, 0)) for name, why in chosen.items()),
        *(FloatRecord(each.name, each.op, each.reason, each.bytes) for each in others),
    )


def find_fault_of_size(in_float: Sequence[FloatRecord], float_bytes: int, quantized_bytes: int) -> str | None:
    """What to tell of a file that is no smaller than float, or that is float for the most part; otherwise None."""
    held = sum(record.bytes for record in in_float)
    grew = quantized_bytes >= float_bytes
    if not grew and held <= MOST_FLOAT * quantized_bytes:
        return None
    what = f"size: found {quantized_bytes:,} bytes, where the float model has {float_bytes:,}"
    if held <= MOST_FLOAT * quantized_bytes:
        return (
            f"{what}; scales, zero points, new nodes and metadata take more than so few weights save; keep the float"
            " model unless the quantized one is faster"
        )
    most = max(in_float, key=lambda record: record.bytes)
    alike = [record for record in in_float if (record.op, record.reason) == (most.op, most.reason)]
    return (
        f"{what}; {held:,} bytes of them are weights in float, most in {len(alike)} {most.op} ({most.reason}); see what"
        " the report lists under in_float"
    )
