"""What constants can rotate in a model, and the same rotation of the float model that a file was made from.

The matrices follow from their sizes and numbers. A file's metadata hold the sizes, so that the float model can be
rotated as the file is: both then have the same tensors under the same names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from onnx import ModelProto

from ..config import QuantizeConfig
from ..data import CalibrationSet
from ..errors import ConfigError, ModelError
from ..graph.channel_norms import find_channel_norms
from ..graph.edit import copy_model
from ..graph.heads import Heads, find_heads
from ..graph.index import Index
from ..graph.passes.rotate import rotate_heads, rotate_stream
from ..graph.residual_stream import Shape, Stream, find_streams
from ..numeric.rotation import turn, turn_keeping_ones
from ..runtime.session import Session, is_float
from ..targets import load_target
from .rewrite import rewrite
from .tensor_shapes import measure_shapes

ROTATION_KEY = "onnxcalib.rotation"  # in the file's metadata
# The largest change of an output in float32, in units of its largest value.
MOST_CHANGE = 1e-4
SMALLEST = float(np.finfo(np.float32).tiny)


class Rotatable(NamedTuple):
    """All that constants can rotate in a model. refused: norm -> why the stream that it reads cannot be.

    ranks: of all tensors.
    """

    streams: list[Stream]
    heads: list[Heads]
    refused: dict[str, str]
    ranks: dict[str, int]

    @classmethod
    def of(cls, model: ModelProto, shapes: Mapping[str, Shape]) -> Rotatable:
        """shapes: those of all tensors in a run."""
        index = Index(model.graph)
        streams, refused = find_streams(index, shapes, find_channel_norms(model))
        return cls(streams, find_heads(index, shapes), refused, {name: len(shape) for name, shape in shapes.items()})

    @property
    def tensors(self) -> frozenset[str]:
        """The activations that are others then."""
        return frozenset().union(*(each.tensors for each in self.streams), *(each.tensors for each in self.heads))

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The channels of each stream, and of each attention's heads, from which all matrices follow."""
        return {"streams": tuple(each.width for each in self.streams), "heads": tuple(each.size for each in self.heads)}

    def rotate(self, model: ModelProto) -> None:
        """Rotate all of them; mutates ``model``."""
        for number, heads in enumerate(self.heads):
            rotate_heads(model, heads, turn(heads.size, number))
        for number, stream in enumerate(self.streams):
            rotate_stream(model, stream, turn_keeping_ones(stream.width, number))


def rotate_alike(
    original: ModelProto,
    quantized: ModelProto,
    settings: Mapping[str, object],
    samples: CalibrationSet,
    threads: int = 0,
) -> ModelProto:
    """A float model rewritten and rotated as a quantized file was; itself where constants rotate nothing in the file.

    settings: with which the file was made. Raises ModelError where the metadata do not tell the rotation, or the model
    has none of these sizes, or its outputs on the first sample change.
    """
    told = next((each.value for each in quantized.metadata_props if each.key == ROTATION_KEY), None)
    if told is None:
        return original
    try:
        record = json.loads(told)
        sizes = {name: tuple(record[name]) for name in ("streams", "heads")}
    except (ValueError, TypeError, KeyError):
        raise ModelError(
            f"{ROTATION_KEY} in the metadata: found {told!r}; a record of what is rotated is needed, as this version"
            " writes; quantize the model again"
        ) from None
    if not any(sizes.values()):
        return original
    try:
        config = QuantizeConfig.model_validate(settings)
        target = load_target(config.target)  # whose file may be elsewhere
    except ConfigError as error:
        raise ModelError(f"the settings in the metadata: {error}") from error
    rotated = rewrite(copy_model(original), config, target=target).model
    feeds = samples.read(samples.split(1)[0])
    found = Rotatable.of(rotated, measure_shapes(rotated, feeds, threads))
    if found.sizes != sizes:
        raise ModelError(
            f"{ROTATION_KEY} in the metadata: found {sizes}; the float model has {found.sizes} to rotate; give the"
            " model that the file was made from"
        )
    found.rotate(rotated)
    change = measure_change(original, rotated, feeds, threads)
    if not change <= MOST_CHANGE:
        raise ModelError(f"the float model, rotated as the file is, has outputs that are {change:.1e} others")
    return rotated


def measure_change(model: ModelProto, turned: ModelProto, feeds: Mapping[str, Any], threads: int) -> float:
    """The largest change of an output in units of its largest value; NaN where one has values that are not finite."""
    before, after = (Session(each, threads=threads).run(feeds) for each in (model, turned))
    changes = [
        float(np.abs(after[name] - value).max(initial=0) / max(np.abs(value).max(initial=0), SMALLEST))
        for name, value in before.items()
        if is_float(value)
    ]
    return max(changes, default=0.0)
