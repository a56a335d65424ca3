"""One node in onnxruntime and as a torch block, on the same input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, defs, helper, numpy_helper

from onnxcalib.runtime.blocks import compare, to_torch
from onnxcalib.runtime.session import Session

# onnx publishes the IR version of an opset late; onnxruntime 1.32 reads up to this one.
IR_VERSION = 10


def make_block(
    op: str, version: int, feeds: dict[str, np.ndarray], constants: Sequence = (), outputs: int = 1, **attributes
) -> ModelProto:
    """A block of one node at an opset; its inputs are ``feeds``, then ``constants`` (None: left out)."""
    names = [*feeds, *("" if value is None else f"c{place}" for place, value in enumerate(constants))]
    results = [f"y{place}" for place in range(outputs)]
    node = helper.make_node(op, names, results, name=op, **attributes)
    initializers = [numpy_helper.from_array(np.asarray(v), f"c{p}") for p, v in enumerate(constants) if v is not None]
    types = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in feeds.items()}
    graph = helper.make_graph(
        [node],
        "block",
        [helper.make_tensor_value_info(name, types[name], value.shape) for name, value in feeds.items()],
        [helper.make_empty_tensor_value_info(name) for name in results],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=IR_VERSION)


def measure_error(model: ModelProto, feeds: dict[str, np.ndarray]) -> float:
    """Largest relative error of the torch block against onnxruntime without its optimizations."""
    outputs = list(Session(model, optimize=False, threads=1).run(feeds).values())
    return compare(to_torch(model), model, feeds, outputs)


def node_error(op: str, version: int, x: np.ndarray, constants: Sequence = (), outputs: int = 1, **attributes) -> float:
    """``measure_error`` of one node that reads ``x`` and ``constants``, at its since-version ``version``."""
    assert defs.get_schema(op, version).since_version == version, f"{op} has no version {version}"
    feeds = {"x": x}
    return measure_error(make_block(op, version, feeds, constants, outputs, **attributes), feeds)


def make_input(*shape: int) -> np.ndarray:
    """The same normal numbers for the same shape."""
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)
