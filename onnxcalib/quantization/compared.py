"""The outputs by which models with quantized weights alone are compared with the float model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..graph.index import Index, is_op
from ..runtime.session import is_float
from .prepared import Prepared


@dataclass(frozen=True)
class Compared:
    """The outputs by which weights alone are planned.

    axes: output -> the axis of its classes, where each position has a distribution of its own, as next tokens have.
    positions: of all those distributions in a sample; 1 without any.
    """

    names: tuple[str, ...]
    axes: Mapping[str, int]
    positions: int = 1


def find_compared(prepared: Prepared, outputs: Mapping[str, Any]) -> Compared:
    """Next-token distributions alone where there are any, else all outputs.

    outputs: the float model's of one batch.
    An output of three axes is such a distribution if ``class_axis`` says so, or if it is as long on its last axis as
    the largest table that the model looks up. Raises ConfigError where no output can be compared.
    """
    names = find_comparable_outputs([outputs])
    axes = {name: axis for name, axis in prepared.class_axes.items() if name in names and outputs[name].ndim > 2}
    tables = [t.dims for t in Index(prepared.model.graph).initializers.values() if t.name in _list_tables(prepared)]
    if not axes and tables:
        words = max(dims[0] for dims in tables)
        axes = {name: 2 for name in names if outputs[name].ndim == 3 and outputs[name].shape[2] == words}
    if not axes:
        return Compared(tuple(names), {})
    samples = prepared.samples.fixed_batch or 1
    positions = sum(outputs[name].size // outputs[name].shape[axis] for name, axis in axes.items()) // samples
    return Compared(tuple(axes), axes, max(1, positions))


def _list_tables(prepared: Prepared) -> set[str]:
    return {node.input[0] for node in prepared.model.graph.node if is_op(node, "Gather")}


def find_comparable_outputs(batches: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the outputs on which a loss can be measured. Raises ConfigError where there is none."""
    names = [name for name in batches[0] if all(_is_comparable(batch[name]) for batch in batches)]
    names = [name for name in names if any(batch[name].any() for batch in batches)]
    if not names:
        raise ConfigError(
            f"plan: found no output on which a loss can be measured among {', '.join(batches[0])}; one of finite"
            " floating point numbers that are not all zero is needed; give the bits yourself"
        )
    return names


def _is_comparable(value: Any) -> bool:
    return is_float(value) and bool(np.isfinite(value).all())
