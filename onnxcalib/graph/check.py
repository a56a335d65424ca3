"""Have onnx's checker pass a model."""

from __future__ import annotations

import onnx
from onnx import ModelProto

from ..errors import ModelError
from .shapes import describe_outputs
from .weightless import copy_without_weights


def check_model(model: ModelProto) -> None:
    """Have onnx's checker pass the quantized model; shapes that contradict the operators are replaced.

    Files record wrong ones, which onnxruntime passes over. Raises ModelError.
    """
    try:
        try:
            onnx.checker.check_model(copy_without_weights(model), full_check=True)
        except onnx.shape_inference.InferenceError:
            del model.graph.value_info[:]
            for value in model.graph.output:
                value.type.tensor_type.ClearField("shape")
            describe_outputs(model)
            onnx.checker.check_model(copy_without_weights(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        found = str(error).strip().partition("\n")[0]
        raise ModelError(f"the quantized model fails onnx's checker: {found}; please report this") from error
