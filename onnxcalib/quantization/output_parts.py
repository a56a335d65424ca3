"""Find the parts of a model's outputs, by a run of what joins them on the shapes of real samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from onnx import ModelProto

from ..errors import ModelError
from ..graph.extract import extract, infer_types
from ..graph.index import Index
from ..graph.parts import Joined, Part, find_joined, separate
from ..graph.passes.normalise import name_nodes
from ..graph.weightless import copy_without_weights
from ..runtime.session import Session

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value", np.ndarray, "torch.Tensor")
Parts = Mapping[str, tuple[Part, ...]]


def find_parts(model: ModelProto, feeds: Mapping[str, Any], threads: int = 0) -> Parts:
    """Output -> the ranges of it that are judged apart, for outputs that a Concat joins of several tensors.

    feeds: one batch of samples. Their ranges hold for samples of every size for which the joined axis has the same
    length. An output whose parts cannot be told stays whole.
    """
    light = copy_without_weights(model)
    name_nodes(light)
    index = Index(light.graph)
    joined = find_joined(index, {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer})
    if not joined:
        return {}
    wanted = dict.fromkeys(t for each in joined.values() for t in (*each.tensors, *each.operands))
    constants = {t: np.zeros(tuple(index.initializers[t].dims)) for t in wanted if t in index.initializers}
    inner = [t for t in wanted if t in index.producer and t not in index.outputs]
    try:
        values = {**feeds, **constants, **Session(model, also=inner, threads=threads).run(feeds)}
    except ModelError:  # a tensor of a type of which there are no arrays
        return {}
    types = infer_types(light)
    found = {name: _find_output_parts(light, types, values, name, each) for name, each in joined.items()}
    return {name: parts for name, parts in found.items() if parts}


def _find_output_parts(
    light: ModelProto, types: Mapping[str, Any], values: Mapping[str, Any], output: str, joined: Joined
) -> tuple[Part, ...]:
    """The parts of one output. Its carriers run on arrays that are filled with the number of their tensor."""
    given = (*joined.tensors, *joined.operands)
    if not all(isinstance(values.get(t), np.ndarray) for t in given):
        return ()
    labels = {t: np.full_like(values[t], number) for number, t in enumerate(joined.tensors)}
    sizes = {t: values[t] for t in joined.operands}
    try:
        carriers = extract(light, types, inputs=given, outputs=[output])
        return separate(Session(carriers, threads=1).run({**labels, **sizes})[output].astype(np.int64), joined)
    except ModelError:  # tensors of a type of which no array can be filled
        return ()


def list_parts(parts: Parts | None, output: str, shape: Sequence[int]) -> tuple[Part, ...]:
    """The parts of an output of this shape; none where it is compared as a whole."""
    found = (parts or {}).get(output, ())
    return found if all(part.fits(tuple(shape)) for part in found) else ()


def take_parts(parts: Parts | None, output: str, *values: Value) -> Iterator[tuple[str, tuple[Value, ...]]]:
    """The name of each part of an output, and that part of each of its values; the output itself where it has none.

    values: arrays or tensors of one shape.
    """
    found = list_parts(parts, output, values[0].shape)
    if not found:
        yield output, values
    for part in found:
        yield f"{output}{part.label}", tuple(value[part.place] for value in values)
