"""The only places that execute a model: onnxruntime sessions and torch blocks."""
