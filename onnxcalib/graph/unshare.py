"""Give every node that reads an int8 constant one of its own, without which session.x64quantprecision fails."""

from __future__ import annotations

from collections import Counter

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from .index import Index, list_names
from .integers import is_linear
from .normalise import unused_name


def unshare_integers(model: ModelProto) -> ModelProto:
    """A copy whose int8 constants have one reader each, and whose dequantized ones have a zero point written out.

    The model itself where it is so already.
    """
    if not _shares(model):
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    index, taken = Index(copy.graph), list_names(copy)
    stored = {name: tensor for name, tensor in index.initializers.items() if tensor.data_type == TensorProto.INT8}
    seen: set[str] = set()

    def add(values: np.ndarray, wish: str) -> str:
        name = unused_name(wish, taken)
        taken.add(name)
        copy.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    for node in copy.graph.node:
        if is_linear(node, "DequantizeLinear") and node.input[0] in stored and not any(node.input[2:]):
            scale = index.initializers.get(node.input[1])
            if scale is not None:
                node.input[2:] = [add(np.zeros(list(scale.dims), np.int8), f"{node.input[0]}_zero_point")]
        for place, name in enumerate(node.input):
            if name in stored and name in seen:
                node.input[place] = add(numpy_helper.to_array(stored[name]), name)
            seen.add(name)
    return copy


def _shares(model: ModelProto) -> bool:
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT8}
    reads = Counter(name for node in model.graph.node for name in node.input if name in stored)
    bare = (is_linear(node, "DequantizeLinear") and not any(node.input[2:]) for node in model.graph.node)
    return any(count > 1 for count in reads.values()) or any(bare)
