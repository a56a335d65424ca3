"""Find the parts of a model's outputs, by a run of what joins them on the shapes of real samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto

from ..errors import ModelError
from ..graph.extract import extract, infer_types
from ..graph.index import Index
from ..graph.parts import Joined, Part, find_joined, separate
from ..graph.passes.normalise import name_nodes
from ..graph.values import TYPES
from ..graph.weightless import copy_without_weights
from ..runtime.session import Session
from .tensor_shapes import Fixed, compute_sizes

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value", np.ndarray, "torch.Tensor")
Parts = Mapping[str, tuple[Part, ...]]


def find_parts(
    model: ModelProto,
    feeds: Mapping[str, Any],
    threads: int = 0,
    *,
    shapes: Fixed | None = None,
) -> Parts:
    """Output -> the ranges of it that are judged apart, for outputs that a Concat joins of several tensors.

    feeds: one batch of samples. Their ranges hold for samples of every size for which the joined axis has the same
    length. An output whose parts cannot be told stays whole. shapes: of all tensors in a run on these, where they are
    known: no more is run then than what computes sizes.
    """
    light = copy_without_weights(model)
    name_nodes(light)
    index = Index(light.graph)
    joined = find_joined(index, {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer})
    if not joined:
        return {}
    wanted = dict.fromkeys(t for each in joined.values() for t in (*each.tensors, *each.operands))
    constants = {t: np.zeros(tuple(index.initializers[t].dims)) for t in wanted if t in index.initializers}
    types = infer_types(light)
    made = [t for t in wanted if t in index.producer]
    try:
        if shapes is None:
            inner = [t for t in made if t not in index.outputs]
            run = Session(model, also=inner, threads=threads).run(feeds)
        else:
            run = {t: np.zeros(shapes[t], _type_of(types, t)) for t in made if t in shapes}
            sizes = [t for t in made if any(t in each.operands for each in joined.values())]
            run |= compute_sizes(model, Index(model.graph), sizes, feeds, shapes)
    except ModelError:  # a tensor of a type of which there are no arrays
        return {}
    values = {**feeds, **constants, **run}
    found = {name: _find_output_parts(light, types, values, (name, each), index=index) for name, each in joined.items()}
    return {name: parts for name, parts in found.items() if parts}


def _type_of(types: Mapping[str, ValueInfoProto], tensor: str) -> np.dtype[Any]:
    kind = types[tensor].type.tensor_type.elem_type if tensor in types else TensorProto.FLOAT
    return TYPES[kind or TensorProto.FLOAT]


def _find_output_parts(
    light: ModelProto,
    types: Mapping[str, Any],
    values: Mapping[str, Any],
    found: tuple[str, Joined],
    *,
    index: Index,
) -> tuple[Part, ...]:
    """The parts of one output. Its carriers run on arrays that are filled with the number of their tensor."""
    output, joined = found
    given = (*joined.tensors, *joined.operands)
    if not all(isinstance(values.get(t), np.ndarray) for t in given):
        return ()
    labels = {t: np.full_like(values[t], number) for number, t in enumerate(joined.tensors)}
    sizes = {t: values[t] for t in joined.operands}
    if sum(label.size > 0 for label in labels.values()) < 2:  # as the past of a first token is empty
        return ()
    try:
        carriers = extract(light, types, inputs=given, outputs=[output], index=index)
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
