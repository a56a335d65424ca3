"""Small models from text, and onnxruntime to compare them with."""

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper, parser


def build_model(text: str, *, opset: int = 17, ir: int = 8, **weights: np.ndarray) -> ModelProto:
    """The model of a graph in ONNX text, with these initializers added; ``a__b`` in a keyword stands for ``a.b``."""
    model = parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]>\n{text}')
    for name, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name.replace("__", ".")))
    return model


def run_model(model: ModelProto, *inputs: np.ndarray) -> list[np.ndarray]:
    """Outputs in onnxruntime, inputs in the order of those that are no initializers."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: array for value, array in zip(session.get_inputs(), inputs, strict=True)})


@pytest.fixture
def build():
    return build_model


@pytest.fixture
def run():
    return run_model


@pytest.fixture
def draw():
    """Float32 normal deviates of a shape, the same in every run."""
    rng = np.random.default_rng(0)
    return lambda *shape: rng.normal(size=shape).astype(np.float32)
