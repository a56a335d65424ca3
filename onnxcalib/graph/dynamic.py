"""Write layers that quantize their input as they run, for which the file has no grid.

x -> DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul by (scale of x times those of the weight) -> Add of the bias.
onnxruntime makes one kernel of all of that, or one behind the DynamicQuantizeLinear that several layers read.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper

from .edit import write_attributes
from .new_nodes import NewNodes
from .ops import DYNAMIC_QUANTIZE, INTEGER_PRODUCT


class DynamicNodes:
    """Makes the nodes of dynamic layers; those that read one tensor read the same integers."""

    def __init__(self, new: NewNodes) -> None:
        self._new = new
        self._quantized: dict[str, list[str]] = {}

    def rewrite(
        self, node: NodeProto, weight: str, scale: np.ndarray, bias: np.ndarray | None
    ) -> tuple[list[NodeProto], list[NodeProto]]:
        """Turn a MatMul or a Gemm into a MatMulInteger of the same name; returns the nodes before and behind it.

        weight: the int8 tensor (inputs, channels). scale: of its channels. bias: added behind it, if there is one.
        """
        before: list[NodeProto] = []
        source, result, name = node.input[0], node.output[0], node.name
        if source not in self._quantized:
            before = [self._quantize(source)]
            self._quantized[source] = list(before[0].output)
        integers, input_scale, zero_point = self._quantized[source]
        node.op_type = INTEGER_PRODUCT
        write_attributes(node, {}, drop=tuple(attribute.name for attribute in node.attribute))
        del node.input[:]
        node.input.extend([integers, weight, zero_point])
        node.output[0] = self._new.name(f"{result}_sums")
        scales = self._new.constant(f"{weight}_scale", np.asarray(scale, np.float32))
        both, sums = self._new.name(f"{name}_scale"), self._new.name(f"{name}_float")
        product = result if bias is None else self._new.name(f"{name}_product")
        behind = [
            self._new.node("Cast", [node.output[0]], sums, name, to=TensorProto.FLOAT),
            self._new.node("Mul", [input_scale, scales], both, name),
            self._new.node("Mul", [sums, both], product, name),
        ]
        if bias is not None:
            added = self._new.constant(f"{name}_bias", bias.astype(np.float32))
            behind.append(self._new.node("Add", [product, added], result, name))
        return before, behind

    def _quantize(self, tensor: str) -> NodeProto:
        made = [self._new.name(f"{tensor}_{what}") for what in ("quantized", "scale", "zero_point")]
        name = self._new.name(f"{tensor}_{DYNAMIC_QUANTIZE}")
        return helper.make_node(DYNAMIC_QUANTIZE, [tensor], made, name=name)
