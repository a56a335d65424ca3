"""The nodes that make a layer's weight of its integers, for kernels on integers and for MatMulNBits."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto

from ..config import FULL_BITS
from .layer_params import LayerParams
from .new_nodes import NewNodes
from .weight_file import store_integers


def write_weight(new: NewNodes, name: str, params: LayerParams, *, cast: bool) -> list[NodeProto]:
    """The nodes that give the weight of this name.

    cast: integers of few bits are cast to 8 first, as kernels on integers take none. A MatMulNBits takes few bits.
    """
    spec = params.grid.spec
    stored, zero = (
        new.integers(f"{name}_quantized", params.integers, spec),
        store_integers(params.grid.zero_point, spec),
    )
    nodes: list[NodeProto] = []
    if spec.bits < FULL_BITS and cast:
        widened = new.name(f"{name}_int8")
        nodes.append(new.node("Cast", [stored], widened, name, to=TensorProto.INT8))
        stored, zero = widened, zero.astype(np.int8)
    return [*nodes, new.dequantize(name, stored, params.grid.scale, zero, spec)]
