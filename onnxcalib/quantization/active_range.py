"""Which layers are solved on outputs that an activation function behind them lets through.

Those with weights of less than 8 bits, of models with layers of several groups. Others lose less, and gain nothing:
ResNet-20 has 0.1 dB more at W4A4, 0.1 less at W4A8 and 0.2 less at W3A8, as fewer columns are read.
"""

from __future__ import annotations

import math

from ..config import FULL_BITS, QuantizeConfig
from ..graph.fusion import find_bounds, upper_bound
from ..graph.index import is_op
from ..graph.ops import CONVOLUTIONS
from ..spec import LayerScheme
from .state import PROBE, ReconstructionState

# The Gram matrices of all output channels together have at most so many values. They are made for a few channels at a
# time, so that this bounds the time: some 5 CPU seconds.
MOST_VALUES = 2**26
# Columns that are read for each branch of the search, and at most, as they wait in memory. (MobileNetV2 at W3A8 and 8
# branches: scores correlate by 0.848 with the float model's, and by 0.846 with 1,024 a branch.)
COLUMNS_A_BRANCH, MOST_COLUMNS = 1600, 2**15


def find_active_end(state: ReconstructionState, layer: LayerScheme, shape: tuple[int, ...]) -> float | None:
    """Where the active range ends of the Relu, or Clip from 0 on, that alone reads the layer; None for other layers.

    The range ends where that of the grid behind it does, if not before. shape: of the weight. Layers with a shared
    weight, with probes or with too many inputs a channel are others too, and so are those with weights of 8 bits, and
    all where none has several groups.
    """
    problem, groups = state.problem, layer.groups
    if not problem.scheme.has_groups:
        return None
    if layer.op not in CONVOLUTIONS or layer.op == "ConvTranspose" or not layer.takes_bias:
        return None
    if layer.weight_spec.bits >= FULL_BITS or layer.weight_spec.axis is None or layer.weight_spec.block is not None:
        return None
    if problem.readers.has(layer.name) or PROBE + layer.output in state.stored.store or layer.name in state.given:
        return None
    if (groups > 1 and shape[0] > groups) or shape[0] * math.prod(shape[1:]) ** 2 > MOST_VALUES:
        return None
    tensor = _find_activation(state, layer.output)
    bound = None if tensor is None else upper_bound(problem.index, tensor)
    grid = None if tensor is None else state.grids.activations.get(tensor)
    if bound is None or grid is None:
        return None
    return min(bound, float(grid.scale) * (grid.spec.qmax - int(grid.zero_point)))


def count_columns(config: QuantizeConfig, layer: LayerScheme) -> int:
    """The most columns that a layer with an active range is solved on."""
    return min(COLUMNS_A_BRANCH * config.search_width(layer.weight_spec.bits), MOST_COLUMNS)


def _find_activation(state: ReconstructionState, tensor: str) -> str | None:
    """What the Relu or Clip gives that alone reads a tensor, maybe through bounds of its channels."""
    index = state.problem.index
    readers = [] if tensor in index.outputs else index.readers(tensor)
    if len(readers) != 1:
        return None
    (node,) = readers
    if is_op(node, "Relu", "Clip"):
        return str(node.output[0])
    return _find_activation(state, node.output[0]) if find_bounds(index, node.output[0]) is node else None
