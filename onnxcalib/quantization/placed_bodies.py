"""What became of the bodies of a model, and their place in its quantized form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from onnx import ModelProto

from ..graph.bodies import Body, drop_unread, put_back
from ..layer_record import LayerRecord
from ..report import BlockRecord, FloatRecord

BITS_KEY = "onnxcalib.bits"  # in the metadata of a file: those of every layer


@dataclass(frozen=True)
class QuantizedBody:
    """A body that was quantized, as a model.

    names: tensors that it captures -> their names in the quantized model around it. nodes: names of those that it had.
    layers, blocks, in_float and bits are those of the report and of the metadata, of its own bodies too. excluded:
    names of the nodes in it that the settings leave in float.
    """

    body: Body
    model: ModelProto = field(repr=False)
    names: Mapping[str, str] = field(repr=False)
    nodes: frozenset[str] = field(repr=False)
    layers: tuple[LayerRecord, ...] = ()
    blocks: tuple[BlockRecord, ...] = ()
    in_float: tuple[FloatRecord, ...] = ()
    excluded: frozenset[str] = frozenset()
    bits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FloatBody:
    """A body that stays in float, its owner's operator, the reason, and the names of its nodes."""

    path: str
    op: str
    reason: str
    nodes: frozenset[str] = field(repr=False)


def place_bodies(model: ModelProto, bodies: Iterable[QuantizedBody]) -> None:
    """Put quantized bodies into the quantized model around them; mutates ``model``."""
    bits: dict[str, str] = {}
    for each in bodies:
        put_back(model, each.body, each.model, each.names)
        bits |= each.bits
    if not bits:
        return
    drop_unread(model)
    for entry in model.metadata_props:
        if entry.key == BITS_KEY:
            entry.value = json.dumps({**json.loads(entry.value), **bits})
