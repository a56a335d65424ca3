"""A file in OpenVINO on the CPU; OpenVINO is imported in the worker alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from .placement import File, Off, Placement

# Layers of the runtime model that multiply, which is what integers are for.
PRODUCTS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "RNNSeq", "RNNCell")
# Layers into which OpenVINO puts several nodes, such as those of an attention; those that hold a product count as one.
GROUPS = ("Subgraph", "ScaledDotProductAttention", "MHA")
# Operators of ONNX that become these layers.
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# How the name of a kernel ends that computes on 8 bits.
INTEGER = "_i8"


def open_openvino(file: File) -> OpenVinoFile:
    return OpenVinoFile(file)


class OpenVinoFile:
    """A compiled model."""

    def __init__(self, file: File) -> None:
        from openvino import Core

        nodes = onnx.load(file.path, load_external_data=False).graph.node
        products = [node for node in nodes if node.op_type in WEIGHTED]
        # OpenVINO names a layer by its node, or by its tensor where that is an output of the graph.
        self._products = {name: node for node in products for name in (node.name, *node.output)}
        settings = {"INFERENCE_NUM_THREADS": file.threads} if file.threads else {}
        core = Core()
        self._compiled = core.compile_model(core.read_model(file.path), "CPU", settings)
        self._names = [port.get_names() for port in self._compiled.inputs]

    def place(self) -> Placement:
        """Layers of the runtime model that multiply, and those that no kernel of 8 bits computes."""
        layers = [op for op in self._compiled.get_runtime_model().get_ordered_ops() if self._multiplies(op)]
        off = [self._name(op) for op in layers if not _read(op, "primitiveType").lower().endswith(INTEGER)]
        return Placement("convolutions and matrix products in int8", len(layers), tuple(off))

    def _multiplies(self, op: Any) -> bool:
        kind = _read(op, "layerType")
        return kind in PRODUCTS or (kind in GROUPS and any(name in self._products for name in _list_nodes(op)))

    def _name(self, op: Any) -> Off:
        """The file's node, which is among those that OpenVINO made one layer of, or else OpenVINO's own name."""
        kind = _read(op, "layerType")
        where = f"in a {kind} of several nodes, " if kind in GROUPS else ""
        reason = f"OpenVINO computes it {where}in {_read(op, 'runtimePrecision')} ({_read(op, 'primitiveType')})"
        for name in _list_nodes(op):
            if name in self._products:
                return Off(self._products[name].name, self._products[name].op_type, reason)
        return Off(op.get_friendly_name(), kind, reason)

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs, which have the order of the file's."""
        inputs = [next(value for name, value in feeds.items() if name in names) for names in self._names]
        found = self._compiled(inputs)
        return [np.array(found[port]) for port in self._compiled.outputs]


def _list_nodes(op: Any) -> list[str]:
    """What OpenVINO made a layer of: names of the file's nodes, of its outputs, and names of OpenVINO's own."""
    return _read(op, "originalLayersNames").split(",")


def _read(op: Any, key: str) -> str:
    """A fact that the runtime model has of a layer; empty where it has none."""
    facts = op.get_rt_info()
    return str(facts[key].astype(str)) if key in facts else ""
