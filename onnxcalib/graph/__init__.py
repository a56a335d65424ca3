"""Reading and rewriting ONNX graphs: ModelProto in, ModelProto or plan out."""
