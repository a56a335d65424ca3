"""What onnxruntime's own tool makes of a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static


class Reader(CalibrationDataReader):
    def __init__(self, *samples):
        self.samples = iter(samples)

    def get_next(self):
        return next(self.samples, None)


def quantize_by_tool(
    folder: Path,
    model: ModelProto,
    data: np.ndarray,
    form: QuantFormat | str,
    activations: QuantType = QuantType.QUInt8,
    weights: QuantType = QuantType.QInt8,
    *,
    narrow: bool = False,
    **extra,
) -> ModelProto:
    """The model quantized statically on one batch, by format and types, or as the form "dynamic"."""
    source, target = folder / "float.onnx", folder / "tool.onnx"
    onnx.save(model, source)
    if form == "dynamic":
        quantize_dynamic(source, target, weight_type=weights)
    else:
        types = {"activation_type": activations, "weight_type": weights, "extra_options": extra}
        quantize_static(source, target, Reader({"x": data}), quant_format=form, reduce_range=narrow, **types)
    return onnx.load(target)
