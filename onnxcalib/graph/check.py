"""Whether onnx accepts a quantized model, and the correction of recorded shapes that it would refuse."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import ModelProto, ValueInfoProto, helper, shape_inference

from ..errors import ModelError, first_line
from .edit import remove_at
from .index import all_graphs
from .shapes import INFERENCE_FAULTS, describe_outputs
from .weightless import copy_without_weights

# Domain of the nodes that stand for inputs of unknown rank; neither checker nor inference looks into unknown domains.
UNKNOWN_DOMAIN = "onnxcalib.unknown"


def correct_shapes(model: ModelProto) -> bool:
    """Replace the recorded shapes where they contradict the operators, and return whether they did.

    Float models record wrong ones, which onnxruntime ignores and onnx's checker refuses. Mutates the model: its outputs
    get the inferred shapes, and what is recorded of tensors inside, and of outputs of bodies, is dropped.
    """
    try:
        # As the checker does it with full_check.
        shape_inference.infer_shapes(copy_without_weights(model), check_type=True, strict_mode=True)
    except INFERENCE_FAULTS:
        for graph in all_graphs(model.graph):
            del graph.value_info[:]
            for value in graph.output:
                if value.type.HasField("tensor_type"):
                    value.type.tensor_type.ClearField("shape")
        describe_outputs(model)
        return True
    return False


def check_model(model: ModelProto) -> None:
    """Raise ModelError where onnx's checker refuses the quantized model, which is not changed."""
    try:
        onnx.checker.check_model(copy_for_checker(model), full_check=True)
    except (onnx.checker.ValidationError, *INFERENCE_FAULTS) as error:
        found = first_line(error)
        raise ModelError(
            f"the quantized model fails onnx's checker: {found}; one that onnx accepts is"
            " needed; check the float model with onnx.checker, and export it again"
        ) from error


def copy_for_checker(model: ModelProto) -> ModelProto:
    """A copy without weights, and without inputs and outputs of unknown rank, which onnxruntime takes all the same."""
    light = copy_without_weights(model)
    names = [light.graph.input[position].name for position in _list_shapeless(light.graph.input)]
    for values in (light.graph.input, light.graph.output):
        remove_at(values, _list_shapeless(values))
    if names:
        light.opset_import.append(helper.make_opsetid(UNKNOWN_DOMAIN, 1))
        light.graph.node.insert(0, helper.make_node("Input", [], names, domain=UNKNOWN_DOMAIN))
    return light


def _list_shapeless(values: Sequence[ValueInfoProto]) -> list[int]:
    kinds = [(value.type.WhichOneof("value"), value.type.tensor_type) for value in values]
    return [
        i for i, (kind, t) in enumerate(kinds) if kind is None or (kind == "tensor_type" and not t.HasField("shape"))
    ]
