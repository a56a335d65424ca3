"""Whether a model's weights are numbers that float32 can compute with."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from ..errors import ModelError
from .index import Index, all_graphs, attribute_of, constant, is_op, own_constants, reads, subgraphs
from .ops import LAYERS, RECURRENT
from .tensors import spell_node
from .values import TYPES, find_ends, read_values

# Errors of rounding are squared and summed: squares of larger weights, 100 million of them, overflow float32.
MOST = 1e15
# Inputs of other operators that are weights. Constants elsewhere are none: masks of attention hold the least float.
WEIGHTS = {
    **dict.fromkeys(("LayerNormalization", "InstanceNormalization", "GroupNormalization"), (1, 2)),
    **dict.fromkeys(RECURRENT, (1, 2, 3)),
    "BatchNormalization": (1, 2, 3, 4),
    "PRelu": (1,),
}
ADVICE = "train or export the model again"


def refuse_not_finite(model: ModelProto) -> None:
    """Raise ModelError for a weight, a bias, an embedding or a statistic that is not finite or above MOST.

    Constants must be folded before, and layers not yet merged with what follows them.
    """
    index = Index(model.graph)
    checked: set[str] = set()
    for node in model.graph.node:
        for name in _weights_of(index, node):
            if name not in checked and (tensor := index.initializers.get(name)) is not None:
                if not (is_op(node, "Add") and _is_mask(read_values(tensor))):
                    _check(tensor, f"node {node.name}: tensor {name}")
                checked.add(name)
        if is_op(node, "BatchNormalization"):
            _check_variance(index, node)


def explain_nan(model: ModelProto, tensor: str) -> ModelError | None:
    """The error of the nearest node behind a tensor that reads a constant with NaN; None where there is none.

    For a tensor that has become NaN: unlike weights, other constants may hold it and do no harm.
    """
    index, constants = Index(model.graph), own_constants(model.graph)
    queue, seen = deque([tensor]), {tensor}
    while queue:
        node = index.producer.get(queue.popleft())
        if node is None:
            continue
        for name, value in _constants_of(node, constants):
            array = read_values(value)
            if array.dtype.kind == "f" and np.isnan(array).any():
                return ModelError(
                    f"node {spell_node(node)}: tensor {name} holds nan; finite weights are needed; {ADVICE}"
                )
        new = [name for name in reads(node) if name not in seen]
        queue.extend(new)
        seen.update(new)
    return None


def _constants_of(node: NodeProto, constants: dict[str, TensorProto]) -> Iterator[tuple[str, TensorProto]]:
    """The constants that a node reads, those of its bodies included."""
    yield from ((name, constants[name]) for name in reads(node) if name in constants)
    for body in subgraphs(node):
        for graph in all_graphs(body):
            yield from own_constants(graph).items()


def is_weight(value: np.ndarray) -> bool:
    """Whether float32 can compute with all values; no mask, which holds -inf or the least float."""
    return bool((np.abs(value) <= MOST).all())


def _is_mask(value: np.ndarray) -> bool:
    """Whether a constant adds nothing to some values, and forbids all others."""
    return value.dtype.kind == "f" and bool((value == 0).any() and ((value == 0) | (value < -MOST)).all())


def _weights_of(index: Index, node: NodeProto) -> list[str]:
    if is_op(node, *LAYERS):
        return list(node.input)
    if is_op(node, *WEIGHTS):
        return [node.input[number] for number in WEIGHTS[node.op_type] if number < len(node.input)]
    if is_op(node, "Gather"):
        table = index.initializers.get(node.input[0])
        return (
            [node.input[0]] if table is not None and len(table.dims) == 2 and not attribute_of(node, "axis", 0) else []
        )
    if is_op(node, "Add", "Sub", "Mul", "Div") and any(_is_layer(index, name) for name in node.input):
        return list(node.input)
    return []


def _is_layer(index: Index, tensor: str) -> bool:
    """Whether a layer with a constant weight makes the tensor."""
    maker = index.producer.get(tensor)
    return maker is not None and is_op(maker, *LAYERS) and maker.input[1] in index.initializers


def _check(tensor: TensorProto, where: str) -> None:
    if TYPES[tensor.data_type].kind != "f":
        return
    least, most = find_ends(tensor)
    if not (-MOST <= least and most <= MOST):
        found = next(each for each in (least, most) if not abs(each) <= MOST)
        raise ModelError(f"{where} holds {found:.3g}; finite weights up to {MOST:.0e} are needed; {ADVICE}")


def _check_variance(index: Index, node: NodeProto) -> None:
    variance = constant(index, node.input[4])
    if variance is not None and variance.size and variance.min() + attribute_of(node, "epsilon", 1e-5) <= 0:
        raise ModelError(
            f"node {node.name}: tensor {node.input[4]} holds the variance {variance.min():.3g}; with epsilon it must be"
            f" above 0; {ADVICE}"
        )
