"""Shapes of a graph's tensors as far as the rules of the operators give them."""

from __future__ import annotations

from functools import lru_cache

from onnx import GraphProto, ModelProto, ValueInfoProto, checker, shape_inference

from .weightless import copy_without_weights

Shape = tuple[int | None, ...]
# What onnx's shape inference raises on a graph that onnxruntime may accept all the same.
INFERENCE_FAULTS = (shape_inference.InferenceError, checker.ValidationError, RuntimeError, ValueError, MemoryError)
# Inference that follows values keeps some 100 bytes for every element of a tensor of rank 1, as it may hold a shape.
LONGEST_VECTOR = 2**22


def infer_shapes(model: ModelProto) -> dict[str, Shape]:
    """Tensor -> shape, None for a dimension that is not fixed; tensors of unknown rank are absent.

    Of the shapes that the file records only those of inputs are used, as exporters and editing tools leave wrong ones.
    A model that inference cannot read has the shapes of its initializers alone.
    """
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    graph = infer_graph(model)
    for value in () if graph is None else (*graph.input, *graph.output, *graph.value_info):
        if (shape := recorded_shape(value)) is not None:
            shapes[value.name] = shape
    return shapes


def recorded_shape(value: ValueInfoProto) -> Shape | None:
    """The shape that the file records for a tensor, None for a dimension that is not fixed; None if there is none."""
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        return None
    return tuple(d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim)


def describe_outputs(model: ModelProto) -> int:
    """Give graph outputs without a shape, which onnxruntime accepts and onnx does not, the inferred one."""
    bare = [value for value in model.graph.output if not value.type.tensor_type.HasField("shape")]
    graph = infer_graph(model) if bare else None
    inferred = {} if graph is None else {value.name: value.type for value in graph.output}
    count = 0
    for value in bare:
        if value.name in inferred and inferred[value.name].tensor_type.HasField("shape"):
            value.type.CopyFrom(inferred[value.name])
            count += 1
    return count


def infer_graph(model: ModelProto) -> GraphProto | None:
    """The graph without its weights, with all types and shapes that inference finds; None if inference fails.

    Shapes that are computed are followed, unless the graph has vectors that are too long for it. The graph is not to be
    changed: passes that find nothing to do ask for one several times.
    """
    bare = copy_without_weights(model)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return _infer(bare.SerializeToString(), LONGEST_VECTOR)


@lru_cache(maxsize=2)
def _infer(bare: bytes, longest: int) -> GraphProto | None:
    try:
        graph = shape_inference.infer_shapes(bare).graph
        if not any(_count_vector(value) > longest for value in (*graph.input, *graph.value_info, *graph.output)):
            graph = shape_inference.infer_shapes(bare, data_prop=True).graph
        return graph
    except INFERENCE_FAULTS:
        return None


def _count_vector(value: ValueInfoProto) -> int:
    """Values of a tensor of rank 1, as far as they are known; 0 of others."""
    dims = value.type.tensor_type.shape.dim  # empty where it is none
    return dims[0].dim_value if len(dims) == 1 else 0
