"""A layer's integers, grid and bias, as they are solved and written, and the transposed matrix of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto

from ..spec import QParams
from .edit import write_attributes
from .weight_file import FileIntegers, put_integers


@dataclass(frozen=True)
class LayerParams:
    """A layer's quantized weight and its bias: integers of the weight's shape, their grid, and floats or None.

    states: of an LSTM, the weight of its hidden states; scales and zero points are (directions, channels) there.
    """

    integers: np.ndarray | FileIntegers
    grid: QParams
    bias: np.ndarray | None
    states: LayerParams | None = None

    def to_file(self) -> LayerParams:
        """These, with large integers of a large model in the run's file."""
        if isinstance(self.integers, FileIntegers):
            return self
        states = None if self.states is None else self.states.to_file()
        return replace(self, integers=put_integers(self.integers, self.grid.spec.bits), states=states)

    def read(self) -> np.ndarray:
        """The integers as an array."""
        return self.integers.read() if isinstance(self.integers, FileIntegers) else self.integers


def turn_upright(node: NodeProto, params: LayerParams) -> LayerParams:
    """Take the transposition out of a Gemm, as onnxruntime creates no MatMulNBits for a transposed one."""
    if node.op_type != "Gemm" or params.grid.spec.axis == 1:
        return params
    write_attributes(node, {}, drop=("transB",))
    return transpose(params)


def transpose(params: LayerParams) -> LayerParams:
    """The transposed matrix, with the same channels."""
    grid, spec = params.grid, params.grid.spec
    axis = None if spec.axis is None else 1 - spec.axis
    grid = replace(grid, scale=grid.scale.T, zero_point=grid.zero_point.T, spec=replace(spec, axis=axis))
    integers = params.integers.turn() if isinstance(params.integers, FileIntegers) else params.integers.T
    return replace(params, integers=integers, grid=grid)
