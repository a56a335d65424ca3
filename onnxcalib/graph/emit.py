"""Write the plan into the graph: QuantizeLinear/DequantizeLinear around every planned tensor.

Names of the original survive: the producer keeps its tensor's name, consumers read ``NAME_dequantized``; a quantized
weight's DequantizeLinear gives the weight's own name, so that the layers read on as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..spec import LayerPlan, QParams, QuantPlan
from .index import Index

INT32_LIMIT = 2**31 - 1
FOUR_BIT_OPSET, FOUR_BIT_IR = 21, 10
PER_CHANNEL_OPSET = 13


@dataclass(frozen=True)
class LayerParams:
    """What a layer's weight and bias became: integers of the weight's shape, its grid, and the float bias (or None)."""

    integers: np.ndarray
    grid: QParams
    bias: np.ndarray | None


def emit_qdq(
    model: ModelProto,
    plan: QuantPlan,
    activations: Mapping[str, QParams],
    narrowed: Mapping[str, QParams],
    layers: Mapping[str, LayerParams],
    *,
    encoding: str = "runtime",
    keep_outputs: bool = True,
) -> ModelProto:
    """A copy of ``model`` with the planned tensors and layers on their grids.

    ``model`` may be a cut of the planned graph. Layers that ``layers`` lacks stay in float. With ``keep_outputs`` a
    graph output is given before its QuantizeLinear (as block cuts need it), otherwise after its DequantizeLinear.
    ``encoding``: ``runtime`` stores 4-bit weights as INT4 behind a Cast to int8 and clips 4-bit activations on integers
    (integer kernels in onnxruntime); ``standard`` uses INT4/UINT4 QuantizeLinear/DequantizeLinear throughout.
    """
    return _Writer(model, plan, encoding, keep_outputs).write(activations, narrowed, layers)


class _Writer:
    def __init__(self, model: ModelProto, plan: QuantPlan, encoding: str, keep_outputs: bool):
        self.model = ModelProto()
        self.model.CopyFrom(model)
        self.plan = plan
        self.index = Index(self.model.graph)
        self.encoding = encoding
        self.keep_outputs = keep_outputs
        self.initializers: dict[str, TensorProto] = {}
        self.after: dict[str, list[NodeProto]] = {}
        self.before: dict[str, list[NodeProto]] = {}
        self.at_start: list[NodeProto] = []
        self.dropped: set[str] = set()

    def write(self, activations, narrowed, layers) -> ModelProto:
        graph = self.model.graph
        for tensor in [*self.index.inputs, *(t for n in graph.node for t in n.output)]:
            if tensor in activations and tensor in self.plan.activations:
                self._write_activation(tensor, activations[tensor], narrowed.get(tensor))
        grids = {**activations, **narrowed}
        for layer in self.plan.layers:
            if layer.name in layers and layer.name in self.index.position:
                self._write_layer(layer, layers[layer.name], grids[layer.input])
        nodes = list(self.at_start)
        for node in graph.node:
            nodes += [*self.before.get(node.name, []), node, *self.after.get(node.name, [])]
        del graph.node[:]
        graph.node.extend(nodes)
        kept = [i for i in graph.initializer if i.name not in self.dropped and i.name not in self.initializers]
        del graph.initializer[:]
        graph.initializer.extend([*kept, *self.initializers.values()])
        return self.model

    def _constant(self, name: str, values: np.ndarray) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.asarray(values, order="C"), name)
        return name

    def _write_activation(self, tensor: str, grid: QParams, narrow: QParams | None) -> None:
        consumers = list(self.index.consumers.get(tensor, []))
        is_output = tensor in self.index.outputs and not self.keep_outputs
        if not consumers and not is_output:
            return
        source = tensor
        if is_output:
            source = f"{tensor}_float"
            self._rename_output(tensor, source)
        self._absorb_clip(tensor, grid)
        read = tensor if is_output else f"{tensor}_dequantized"
        pair = self._pair(tensor, source, read, grid)
        layer_bits = {layer.name: layer.activation_spec.bits for layer in self.plan.layers}
        narrow_readers = [n for n in consumers if narrow and layer_bits.get(n.name, 8) == narrow.spec.bits]
        for node in consumers:
            target = f"{tensor}_narrowed_dequantized" if node in narrow_readers else read
            self._reroute(node, tensor, target)
        if narrow_readers:
            pair += self._pair(f"{tensor}_narrowed", read, f"{tensor}_narrowed_dequantized", narrow)
        producer = self.index.producer.get(tensor)
        if producer is None:
            self.at_start += pair
        else:
            self.after.setdefault(producer.name, []).extend(pair)

    def _reroute(self, node: NodeProto, tensor: str, target: str) -> None:
        position = 0 if node.name in {layer.name for layer in self.plan.layers} else None
        for i, name in enumerate(node.input):
            if name == tensor and (position is None or i == position):
                node.input[i] = target
        for attribute in node.attribute:
            for body in [attribute.g, *attribute.graphs]:
                for inner in body.node:
                    self._reroute(inner, tensor, target)

    def _rename_output(self, tensor: str, new: str) -> None:
        producer = self.index.producer[tensor]
        for i, name in enumerate(producer.output):
            if name == tensor:
                producer.output[i] = new

    def _absorb_clip(self, tensor: str, grid: QParams) -> None:
        """Replace a Clip(0, c) by the Relu that it is once the grid ends inside [0, c]: onnxruntime fuses only that."""
        bound = self.plan.nonnegative.get(tensor, float("inf"))
        node = self.index.producer.get(tensor)
        if node is None or node.op_type != "Clip" or grid.zero_point != 0:
            return
        if grid.spec.qmax * float(grid.scale) <= bound:
            node.op_type = "Relu"
            del node.input[1:]
            del node.attribute[:]

    def _pair(self, name: str, source: str, read: str, grid: QParams) -> list[NodeProto]:
        """QuantizeLinear and DequantizeLinear from ``source`` to ``read``, with the integer Clip that 4 bits need."""
        wide = self.encoding == "runtime" or grid.spec.bits == 8
        dtype = np.uint8 if wide else ml_dtypes.uint4
        scale = self._constant(f"{name}_scale", np.asarray(grid.scale, np.float32))
        zero = self._constant(f"{name}_zero_point", np.asarray(grid.zero_point).astype(dtype))
        integers = f"{name}_quantized"
        nodes = [helper.make_node("QuantizeLinear", [source, scale, zero], [integers], name=f"{name}_QuantizeLinear")]
        if wide and grid.spec.bits < 8:
            low = self._constant(f"uint{grid.spec.bits}_min", np.asarray(grid.spec.qmin, np.uint8))
            high = self._constant(f"uint{grid.spec.bits}_max", np.asarray(grid.spec.qmax, np.uint8))
            clipped = f"{name}_clipped"
            nodes.append(helper.make_node("Clip", [integers, low, high], [clipped], name=f"{name}_Clip"))
            integers = clipped
        nodes.append(helper.make_node("DequantizeLinear", [integers, scale, zero], [read], name=f"{name}_DequantizeLinear"))
        return nodes

    def _write_layer(self, layer: LayerPlan, params: LayerParams, input_grid: QParams) -> None:
        node = next(n for n in self.model.graph.node if n.name == layer.name)
        shared = len(self.index.consumers.get(layer.weight, [])) > 1
        name = f"{layer.weight}_{layer.name}" if shared else layer.weight
        node.input[1] = name
        four_bit = params.grid.spec.bits == 4
        dtype = ml_dtypes.int4 if four_bit else np.int8
        integers = self._constant(f"{name}_quantized", params.integers.astype(np.int8).astype(dtype))
        nodes = self.before.setdefault(layer.name, [])
        if four_bit and self.encoding == "runtime":
            wide = f"{name}_int8"
            nodes.append(helper.make_node("Cast", [integers], [wide], name=f"{name}_Cast", to=TensorProto.INT8))
            integers = wide
        wide = not four_bit or self.encoding == "runtime"
        nodes.append(self._dequantize(name, integers, params.grid.scale, np.int8 if wide else dtype, params.grid.spec.axis))
        if not shared:
            self.dropped.add(layer.weight)
        self._write_bias(layer, node, params, input_grid)

    def _write_bias(self, layer: LayerPlan, node: NodeProto, params: LayerParams, input_grid: QParams) -> None:
        if params.bias is None or layer.op == "MatMul":
            return
        shared = layer.bias is not None and len(self.index.consumers.get(layer.bias, [])) > 1
        name = layer.bias if layer.bias and not shared else f"{layer.name}_bias"
        del node.input[2:]
        node.input.append(name)
        if layer.bias and not shared:
            self.dropped.add(layer.bias)
        if layer.op == "ConvTranspose":
            self._constant(name, params.bias.astype(np.float32))
            return
        scale = bias_scale(input_grid, params.grid)
        integers = np.clip(np.rint(params.bias / scale.astype(np.float64)), -INT32_LIMIT, INT32_LIMIT).astype(np.int32)
        stored = self._constant(f"{name}_quantized", integers)
        self.before[layer.name].append(self._dequantize(name, stored, scale, np.int32, 0))

    def _dequantize(self, name: str, integers: str, scale: np.ndarray, dtype, axis: int) -> NodeProto:
        """DequantizeLinear of a constant, zero point 0 written out: onnxruntime fuses no Gemm without it."""
        kind = np.dtype(dtype).name
        inputs = [
            integers,
            self._constant(f"{name}_scale", np.asarray(scale, np.float32)),
            self._constant(f"zeros_{kind}_{len(scale)}", np.zeros(len(scale)).astype(dtype)),
        ]
        return helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}_DequantizeLinear", axis=axis)


def bias_scale(input_grid: QParams, weight_grid: QParams) -> np.ndarray:
    """float32(scale_x * scale_w), per channel, as onnxruntime's integer kernels have it."""
    return (np.float32(input_grid.scale) * weight_grid.scale.astype(np.float32)).astype(np.float32)
