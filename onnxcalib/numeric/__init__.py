"""The mathematics of quantization: arrays and tensors in and out, no ONNX."""
