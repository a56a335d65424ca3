"""Write the plan into the graph: QuantizeLinear/DequantizeLinear around every planned tensor.

Names of the original survive: the producer keeps its tensor's name, consumers read ``NAME_dequantized``; a quantized
weight's DequantizeLinear gives the weight's own name, so that the layers read on as before.

Each of these nodes has a zero point written out that no other node reads. Without one onnxruntime fuses no Gemm, and
other runtimes take INT4 weights for garbage; with a shared one ``session.x64quantprecision`` makes onnxruntime fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..spec import Grids, LayerScheme, QParams, QuantScheme, QuantSpec
from .edit import replace_name, reroute, unused_name
from .index import Index, is_op, reads
from .ops import MATRIX_LAYERS, SHAPE_READERS
from .weightless import copy_without_initializers

INT32_LIMIT = 2**31 - 1
FOUR_BIT_OPSET, FOUR_BIT_IR = 21, 10
PER_CHANNEL_OPSET = 13
# onnxruntime 1.32 runs these on integers of any type as soon as both sides have it, but has no 4-bit kernels for them.
NO_FOUR_BIT_KERNEL = ("MaxPool", "ReduceMax")


@dataclass(frozen=True)
class LayerParams:
    """What a layer's weight and bias became: integers of the weight's shape, its grid, and the float bias (or None)."""

    integers: np.ndarray
    grid: QParams
    bias: np.ndarray | None


def emit_qdq(
    model: ModelProto,
    scheme: QuantScheme,
    grids: Grids,
    layers: Mapping[str, LayerParams],
    *,
    encoding: str = "runtime",
    keep_outputs: bool = True,
) -> ModelProto:
    """A copy of ``model`` with the planned tensors and layers on their grids.

    ``model`` may be a cut of the planned graph, of opset FOUR_BIT_OPSET where a grid has 4 bits, else of at least
    PER_CHANNEL_OPSET. Layers that ``layers`` lacks stay in float. With ``keep_outputs`` a graph output is given before
    its QuantizeLinear (as block cuts need it), otherwise after its DequantizeLinear. ``encoding``: ``runtime`` stores
    4-bit weights as INT4 behind a Cast to int8 and clips 4-bit activations on integers (integer kernels in
    onnxruntime); ``standard`` uses INT4/UINT4 QuantizeLinear/DequantizeLinear throughout.
    """
    return _Writer(model, scheme, encoding, keep_outputs).write(grids, layers)


class _Writer:
    def __init__(self, model: ModelProto, scheme: QuantScheme, encoding: str, keep_outputs: bool):
        # The weights that are replaced are never copied: protobuf frees nothing of a message before all of it.
        self.model = copy_without_initializers(model)
        self.scheme = scheme
        self.index = Index(self.model.graph)
        self.index.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes = {node.name: node for node in self.model.graph.node}
        self.layer_bits = {layer.name: layer.activation_spec.bits for layer in scheme.layers}
        self.tables: dict[str, tuple[str, str]] = {}
        self.weight_bits = {layer.name: layer.weight_spec.bits for layer in scheme.layers}
        self.encoding = encoding
        self.keep_outputs = keep_outputs
        # Names that a new tensor or node must not take, the constants written so far, and those that are shared by use.
        self.taken = {*self.index.initializers, *self.index.inputs, *self.index.producer, *self.nodes}
        self.written: list[TensorProto] = []
        self.shared: dict[str, str] = {}
        self.after: dict[str, list[NodeProto]] = {}
        self.before: dict[str, list[NodeProto]] = {}
        self.at_start: list[NodeProto] = []

    def write(self, grids: Grids, layers: Mapping[str, LayerParams]) -> ModelProto:
        graph = self.model.graph
        replaced: set[str] = set()
        for tensor in [*self.index.inputs, *(t for n in graph.node for t in n.output)]:
            if tensor in grids.activations and tensor in self.scheme.activations:
                self._write_activation(tensor, grids.activations[tensor], grids.requantized.get(tensor))
        for layer in self.scheme.layers:
            if layer.name in layers and layer.name in self.nodes:
                self._write_layer(layer, layers[layer.name], grids.of_input(layer))
                replaced |= {layer.weight, layer.bias}
        for layer in self.scheme.embeddings:
            if layer.name in layers and layer.name in self.nodes:
                self._write_embedding(layer, layers[layer.name])
                replaced.add(layer.weight)
        nodes = list(self.at_start)
        for node in graph.node:
            nodes += [*self.before.get(node.name, []), node, *self.after.get(node.name, [])]
        del graph.node[:]
        graph.node.extend(nodes)
        made = {t for node in nodes for t in node.output}
        needed = {t for node in nodes for t in reads(node)}.union(self.index.outputs) - made
        needed -= {tensor.name for tensor in self.written}
        stored = self.index.initializers.values()
        kept = [i for i in stored if i.name not in replaced or i.name in needed]
        graph.initializer.extend([*kept, *self.written])
        return self.model

    def _name(self, name: str) -> str:
        """The name wished for, numbered where the graph has it already."""
        name = unused_name(name, self.taken)
        self.taken.add(name)
        return name

    def _write(self, name: str, values: np.ndarray) -> str:
        self.written.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def _constant(self, name: str, values: np.ndarray) -> str:
        """Name of a new initializer."""
        return self._write(self._name(name), values)

    def _shared_constant(self, use: str, values: np.ndarray) -> str:
        """Name of the one initializer of a use that many have."""
        if use not in self.shared:
            self.shared[use] = self._constant(use, values)
        return self.shared[use]

    def _node(self, op: str, inputs: list[str], output: str, stem: str, **attributes) -> NodeProto:
        return helper.make_node(op, inputs, [output], name=self._name(f"{stem}_{op}"), **attributes)

    def _write_activation(self, tensor: str, grid: QParams, narrow: QParams | None) -> None:
        in_float = self.scheme.float_reads.get(tensor)
        readers = [n for n in self.index.readers(tensor) if n.name not in (in_float or ())]
        producer = self.index.producer.get(tensor)
        is_output = tensor in self.index.outputs and producer is not None and not self.keep_outputs and in_float is None
        if not readers and not is_output:
            return
        source, read = tensor, tensor
        if is_output:
            source = self._name(f"{tensor}_float")
            replace_name(producer.output, tensor, source)
        else:
            read = self._name(f"{tensor}_dequantized")
        self._absorb_clip(tensor, grid)
        slim = [n for n in readers if narrow and self.layer_bits.get(n.name) == narrow.spec.bits]
        wide = [n for n in readers if n not in slim]
        pair = self._pair(tensor, (source, read), grid, wide)
        for node in wide:
            # Dimensions are read off the integers, so that no DequantizeLinear is left for them alone.
            on_integers = is_op(node, *SHAPE_READERS) and (self.encoding == "runtime" or grid.spec.bits == 8)
            reroute(node, tensor, pair[0].output[0] if on_integers else read)
        if slim:
            stem = self._name(f"{tensor}_requantized")
            narrow_read = self._name(f"{stem}_dequantized")
            pair += self._narrow(stem, (read, narrow_read), (grid, narrow), slim)
            for node in slim:
                reroute(node, tensor, narrow_read)
        if producer is None:
            self.at_start += pair
        else:
            self.after.setdefault(producer.name, []).extend(pair)

    def _absorb_clip(self, tensor: str, grid: QParams) -> None:
        """Replace a Clip(0, c) by the Relu that it is once the grid ends inside [0, c]: onnxruntime fuses only that."""
        node = self.index.producer.get(tensor)
        if node is None or node.op_type != "Clip" or grid.zero_point != 0 or tensor not in self.scheme.nonnegative:
            return
        if grid.spec.qmax * float(grid.scale) <= self.scheme.nonnegative[tensor]:
            node.op_type = "Relu"
            del node.input[1:]
            del node.attribute[:]

    def _pair(self, stem: str, ends: tuple[str, str], grid: QParams, readers: list[NodeProto]) -> list[NodeProto]:
        """QuantizeLinear and DequantizeLinear between two tensors, and what 4 bits need between these."""
        source, read = ends
        bits = grid.spec.bits
        in_bytes = self.encoding == "runtime" or bits == 8
        scale = self._constant(f"{stem}_scale", np.asarray(grid.scale, np.float32))
        zero, dtype = np.asarray(grid.zero_point), np.uint8 if in_bytes else ml_dtypes.uint4
        integers = self._name(f"{stem}_quantized")
        inputs = [source, scale, self._constant(f"{stem}_zero_point", zero.astype(dtype))]
        nodes = [self._node("QuantizeLinear", inputs, integers, stem)]
        if in_bytes and bits < 8:
            bounds = {"min": 0, "max": grid.spec.qmax}
            limits = [self._shared_constant(f"uint{bits}_{end}", np.uint8(value)) for end, value in bounds.items()]
            clipped = self._name(f"{stem}_clipped")
            nodes.append(self._node("Clip", [integers, *limits], clipped, stem))
            integers = clipped
        elif not in_bytes and any(self._refuses_four_bits(node) for node in readers):
            dtype, widened = np.uint8, self._name(f"{stem}_uint8")
            nodes.append(self._node("Cast", [integers], widened, stem, to=TensorProto.UINT8))
            integers = widened
        inputs = [integers, scale, self._constant(f"{stem}_dequantized_zero_point", zero.astype(dtype))]
        return [*nodes, self._node("DequantizeLinear", inputs, read, stem)]

    def _narrow(
        self, stem: str, ends: tuple[str, str], grids: tuple[QParams, QParams], readers: list[NodeProto]
    ) -> list[NodeProto]:
        """The pair that puts a tensor from its wide grid on the narrow one.

        A LeakyRelu of slope 1 is the identity, and lets onnxruntime fuse the step from grid to grid into a table
        look-up on integers (QLinearLeakyRelu); without it a DequantizeLinear and a QuantizeLinear stay. Values that
        are never negative go to the top of uint8, where its own saturation does what the integer Clip would.
        """
        source, read = ends
        wide, narrow = grids
        if self.encoding == "standard":
            return self._pair(stem, ends, narrow, readers)
        same = self._name(f"{stem}_identity")
        table = self._node("LeakyRelu", [source], same, stem, alpha=1.0)
        if wide.zero_point == 0 and narrow.zero_point == 0:
            top = QuantSpec(8)
            narrow = QParams(narrow.scale, np.asarray(top.qmax - narrow.spec.qmax, np.int32), top)
        return [table, *self._pair(stem, (same, read), narrow, readers)]

    def _refuses_four_bits(self, node: NodeProto) -> bool:
        """Whether onnxruntime would put a 4-bit tensor into a kernel of the node that cannot read it.

        It does with the operators above, and with a layer of 8-bit weights; a Cast to 8 bits in front keeps it from it.
        """
        return is_op(node, *NO_FOUR_BIT_KERNEL) or self.weight_bits.get(node.name) == 8

    def _write_layer(self, layer: LayerScheme, params: LayerParams, input_grid: QParams | None) -> None:
        node = self.nodes[layer.name]
        name = self._operand_name(layer, layer.weight, f"{layer.weight}_{layer.name}")
        node.input[1] = name
        if layer.reads_float:
            params = turn_upright(node, params)
        spec = params.grid.spec
        integers = params.integers.astype(np.int8)
        stored = self._constant(f"{name}_quantized", integers if spec.bits == 8 else integers.astype(ml_dtypes.int4))
        nodes = self.before.setdefault(layer.name, [])
        dtype = np.int8
        # MatMulNBits takes 4 bits as they are.
        packed = layer.reads_float and layer.op in MATRIX_LAYERS
        if spec.bits == 4 and self.encoding == "runtime" and not packed:
            widened = self._name(f"{name}_int8")
            nodes.append(self._node("Cast", [stored], widened, name, to=TensorProto.INT8))
            stored = widened
        elif spec.bits == 4:
            dtype = ml_dtypes.int4
        nodes.append(self._dequantize(name, stored, params.grid.scale, dtype, spec))
        if layer.bias_add is not None:
            self._write_added_bias(layer, params)
        elif params.bias is not None and layer.op != "MatMul":
            self._write_bias(layer, params, input_grid)

    def _write_bias(self, layer: LayerScheme, params: LayerParams, input_grid: QParams) -> None:
        node = self.nodes[layer.name]
        name = self._operand_name(layer, layer.bias, f"{layer.name}_bias")
        del node.input[2:]
        node.input.append(name)
        if layer.op == "ConvTranspose" or layer.reads_float:
            # No integer kernel reads it, and with groups its channels outnumber the weight's scales.
            self._write(name, params.bias.astype(np.float32))
            return
        scale = bias_scale(input_grid, params.grid)
        integers = np.clip(np.rint(params.bias / scale.astype(np.float64)), -INT32_LIMIT, INT32_LIMIT).astype(np.int32)
        stored = self._constant(f"{name}_quantized", integers)
        self.before[layer.name].append(self._dequantize(name, stored, scale, np.int32, QuantSpec(32, axis=0)))

    def _write_embedding(self, layer: LayerScheme, params: LayerParams) -> None:
        """Look up integers and their scales, and multiply; blocks are an axis of their own until then.

        A DequantizeLinear in front would take the whole table, one behind keep onnxruntime from fusing what reads it.
        onnxruntime 1.32 has no Gather of 4 bits; the Cast to 8 is folded when the session loads.
        """
        node, spec = self.nodes[layer.name], params.grid.spec
        nodes, width = self.before.setdefault(layer.name, []), params.integers.shape[1]
        if layer.weight not in self.tables:
            self.tables[layer.weight] = self._write_table(layer.weight, params, nodes)
        parts = []
        for source, what in zip(self.tables[layer.weight], ("integers", "scale"), strict=True):
            parts.append(self._name(f"{layer.output}_{what}"))
            nodes.append(self._node("Gather", [source, layer.input], parts[-1], layer.name, axis=0))
        number = self._name(f"{layer.output}_float")
        nodes.append(self._node("Cast", parts[:1], number, layer.name, to=TensorProto.FLOAT))
        del node.attribute[:]
        if spec.block is None:
            node.op_type, node.input[:] = "Mul", [number, parts[1]]
            return
        product, sizes, shape = (self._name(f"{layer.output}_{what}") for what in ("blocks", "sizes", "shape"))
        end = self._shared_constant(f"width_{width}", np.array([width]))
        nodes.append(self._node("Mul", [number, parts[1]], product, layer.name))
        nodes.append(self._node("Shape", [layer.input], sizes, layer.name))
        nodes.append(self._node("Concat", [sizes, end], shape, layer.name, axis=0))
        node.op_type, node.input[:] = "Reshape", [product, shape]

    def _write_table(self, name: str, params: LayerParams, nodes: list[NodeProto]) -> tuple[str, str]:
        """Integers (rows, width), or (rows, blocks, block), and scales (rows, 1), or (rows, blocks, 1)."""
        spec, integers = params.grid.spec, params.integers.astype(np.int8)
        if spec.block is not None:
            integers = integers.reshape(len(integers), -1, spec.block)
        scale = self._constant(f"{name}_scale", params.grid.scale.astype(np.float32)[..., None])
        if spec.bits == 8:
            return self._constant(f"{name}_quantized", integers), scale
        stored = self._constant(f"{name}_quantized", integers.astype(ml_dtypes.int4))
        nodes.append(self._node("Cast", [stored], self._name(f"{name}_int8"), name, to=TensorProto.INT8))
        return nodes[-1].output[0], scale

    def _write_added_bias(self, layer: LayerScheme, params: LayerParams) -> None:
        """The constant of the Add behind a MatMul, which stays in float; a cut may end before it."""
        bias_add = self.nodes.get(layer.bias_add)
        if bias_add is not None and params.bias is not None:
            alone = self.index.readers(layer.bias) == [bias_add] and layer.bias not in self.index.outputs
            name = layer.bias if alone else self._name(f"{layer.name}_bias")
            replace_name(bias_add.input, layer.bias, name)
            self._write(name, params.bias.astype(np.float32).reshape(self.index.initializers[layer.bias].dims))

    def _operand_name(self, layer: LayerScheme, operand: str | None, name: str) -> str:
        """The operand's own name where the layer alone reads it, else a new one."""
        alone = operand and self.index.readers(operand) == [self.nodes[layer.name]]
        return operand if alone and operand not in self.index.outputs else self._name(name)

    def _dequantize(self, name: str, integers: str, scale: np.ndarray, dtype, spec: QuantSpec) -> NodeProto:
        """DequantizeLinear of a constant; block scales lie along the axis that is not the channels'."""
        scale = np.asarray(scale, np.float32)
        zeros = self._constant(f"{name}_zero_point", np.zeros(scale.shape).astype(dtype))
        inputs = [integers, self._constant(f"{name}_scale", scale), zeros]
        if spec.block is not None:
            return self._node("DequantizeLinear", inputs, name, name, axis=1 - spec.axis, block_size=spec.block)
        return self._node("DequantizeLinear", inputs, name, name, axis=spec.axis)


def turn_upright(node: NodeProto, params: LayerParams) -> LayerParams:
    """Take the transposition out of a Gemm, with which onnxruntime makes no MatMulNBits of it."""
    if node.op_type != "Gemm" or params.grid.spec.axis == 1:
        return params
    kept = [attribute for attribute in node.attribute if attribute.name != "transB"]
    del node.attribute[:]
    node.attribute.extend(kept)
    grid = replace(params.grid, scale=params.grid.scale.T, spec=replace(params.grid.spec, axis=1))
    return replace(params, integers=params.integers.T, grid=grid)


def bias_scale(input_grid: QParams, weight_grid: QParams) -> np.ndarray:
    """float32(scale_x * scale_w), per channel, as onnxruntime's integer kernels have it; none is denormal or zero."""
    products = np.float32(input_grid.scale) * weight_grid.scale.astype(np.float32)
    return np.maximum(products, np.finfo(np.float32).tiny).astype(np.float32)
