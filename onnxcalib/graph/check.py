"""Whether onnx accepts a quantized model, and the correction of recorded shapes that it would refuse."""

from __future__ import annotations

import onnx
from onnx import ModelProto, shape_inference

from ..errors import ModelError, first_line
from .shapes import describe_outputs
from .weightless import copy_without_weights


def correct_shapes(model: ModelProto) -> bool:
    """Replace the recorded shapes where they contradict the operators, and return whether they did.

    Float models record wrong ones, which onnxruntime ignores and onnx's checker refuses. Mutates the model: its outputs
    get the inferred shapes, and what is recorded of tensors inside is dropped.
    """
    try:
        # As the checker does it with full_check.
        shape_inference.infer_shapes(copy_without_weights(model), check_type=True, strict_mode=True)
    except shape_inference.InferenceError:
        del model.graph.value_info[:]
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        describe_outputs(model)
        return True
    return False


def check_model(model: ModelProto) -> None:
    """Raise ModelError where onnx's checker refuses the quantized model, which is not changed."""
    try:
        onnx.checker.check_model(copy_without_weights(model), full_check=True)
    except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
        found = first_line(error)
        raise ModelError(f"the quantized model fails onnx's checker: {found}; please report this") from error
