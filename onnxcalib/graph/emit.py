"""Write a quantization scheme into the graph: QuantizeLinear and DequantizeLinear at every quantized tensor.

The names of the original survive. The producer of a tensor keeps its name, and consumers read ``NAME_dequantized``. The
DequantizeLinear of a weight gives the weight's own name, so that the layer reads it as before.

Each QuantizeLinear and DequantizeLinear has a zero point that no other node reads. Without a zero point onnxruntime
fuses no Gemm, and other runtimes misread INT4 weights. With a shared one onnxruntime fails if the session option
``session.x64quantprecision`` is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from ..config import FULL_BITS
from ..spec import Grids, LayerScheme, QParams, QuantScheme, QuantSpec
from .dynamic import DynamicNodes
from .dynamic_lstm import write_dynamic
from .edit import refill, replace_names, reroute
from .fusion import find_bounds, moves_values
from .gates import write_gates
from .index import Index, is_op, known_constant, list_names, reads
from .layer_params import LayerParams, transpose, turn_upright
from .new_nodes import NewNodes
from .ops import DEQUANTIZE, MATRIX_LAYERS, QUANTIZE, SHAPE_READERS
from .packed import add_bias, explain_unpacked, import_domain
from .packed_layers import write_packed
from .recurrent import WrittenWeights, write_weights
from .scaled_weights import write_scaled
from .stored_once import StoredOnce
from .structure import STANDARD
from .tables import StoredHead, Tables
from .unfuse import bar_from_fusion
from .weight_nodes import write_weight, written_scale
from .weight_readers import WeightReaders
from .weightless import copy_without_initializers

INT32_LIMIT = 2**31 - 1
NEW_TYPES_OPSET, NEW_TYPES_IR = 21, 10  # of 4 and of 16 bits
TWO_BITS, TWO_BITS_OPSET, TWO_BITS_IR = 2, 25, 13
PER_CHANNEL_OPSET = 13
# onnxruntime 1.32 runs these on integers of any type, but has no 4-bit kernels for them.
NO_FOUR_BIT_KERNEL = ("MaxPool", "ReduceMax")


def emit_qdq(
    model: ModelProto,
    scheme: QuantScheme,
    grids: Grids,
    layers: Mapping[str, LayerParams],
    *,
    encoding: str = "runtime",
    keep_outputs: bool = True,
) -> ModelProto:
    """A copy of ``model`` with the tensors and layers of the scheme on their grids.

    ``model`` may be a subgraph of the one that the scheme was made for. It needs opset NEW_TYPES_OPSET if a grid has 4
    or 16 bits, else at least PER_CHANNEL_OPSET. Layers that ``layers`` lacks stay in float. With ``keep_outputs`` a
    graph output is the tensor before its QuantizeLinear, as subgraphs need it, otherwise the one after its
    DequantizeLinear.
    encoding: ``runtime`` stores 4-bit weights as INT4 before a Cast to int8 and clips 4-bit activations as integers,
    for which onnxruntime has integer kernels; ``standard`` uses INT4/UINT4 QuantizeLinear/DequantizeLinear throughout,
    but for 2-bit weights beside integers; ``matmulnbits`` is ``runtime`` with onnxruntime's own operators for layers
    that read float, and for tables.
    """
    quantized = _Writer(model, scheme, encoding, keep_outputs).write(grids, layers)
    write_gates(quantized, scheme.gates)
    return quantized


class _Writer:
    """Collects the new nodes of a copy of the model, to which ``write`` adds them.

    at_start: nodes in front of all others; before and after: node name -> those that stand around the node.
    """

    def __init__(self, model: ModelProto, scheme: QuantScheme, encoding: str, keep_outputs: bool):
        # The weights that are replaced are never copied: protobuf frees nothing of a message before all of it.
        self.model = copy_without_initializers(model)
        bar_from_fusion(self.model, scheme.barred)
        self.scheme = scheme
        self.index = Index(self.model.graph)
        self.index.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes = {node.name: node for node in self.model.graph.node}
        self.input_bits = {layer.name: layer.activation_spec.bits for layer in scheme.layers}
        self.weight_bits = {layer.name: layer.weight_spec.bits for layer in scheme.layers}
        # onnxruntime moves a QuantizeLinear from behind these tensors to in front of the operators that make them.
        movers = [node for node in self.model.graph.node if is_op(node, *NO_FOUR_BIT_KERNEL)]
        self.in_bytes = {node.output[0] for node in movers if node.input[0] not in scheme.activations}
        self.through_cast, self.packs = encoding != "standard", encoding == "matmulnbits"
        self.keep_outputs = keep_outputs
        self.new = NewNodes(list_names(model).union(list_names(self.model)))  # names of bodies are those of outside
        opset = next(entry.version for entry in model.opset_import if entry.domain in STANDARD)
        self.dynamic = DynamicNodes(self.new, opset)
        self.after: dict[str, list[NodeProto]] = {}
        self.dropped: set[str] = set()
        self.before: dict[str, list[NodeProto]] = {}
        self.at_start: list[NodeProto] = []
        self.tied = {each.tied_to for each in scheme.embeddings if each.name in self.nodes}
        self.heads: dict[str, StoredHead] = {}
        self.recurrent: WrittenWeights = {}
        self.once = StoredOnce(self.new, WeightReaders.find(self.index, scheme, encoding), self.tied)

    def write(self, grids: Grids, layers: Mapping[str, LayerParams]) -> ModelProto:
        graph = self.model.graph
        replaced: set[str | None] = set()
        for tensor in self.index.initializers:
            if tensor in grids.activations and tensor in self.scheme.constants:
                self._write_constant(tensor, grids.activations[tensor])
                replaced.add(tensor)
        for tensor in [*self.index.inputs, *(t for n in graph.node for t in n.output)]:
            if tensor in grids.activations and tensor in self.scheme.activations:
                self._write_activation(tensor, grids.activations[tensor], grids.requantized.get(tensor))
        for layer in self.scheme.layers:
            if layer.name in layers and layer.name in self.nodes:
                with self.once.writing(layer, self.nodes[layer.name], self.before.setdefault(layer.name, [])):
                    self._write_layer(layer, layers[layer.name], grids.of_input(layer))
                replaced |= {layer.weight, layer.bias}
        for layer in self.scheme.recurrent:
            if layer.name in layers and layer.name in self.nodes:
                replaced.update(self.nodes[layer.name].input)
                self._write_recurrent(layer, layers[layer.name])
        tables = Tables(self.new, packs=self.packs)
        for layer in self.scheme.embeddings:
            if layer.name in layers and layer.name in self.nodes:
                self.before.setdefault(layer.name, []).extend(self._write_embedding(layer, layers, tables))
                replaced.add(layer.weight)
        nodes = list(self.at_start)
        for node in (node for node in graph.node if node.name not in self.dropped):
            nodes += [*self.before.get(node.name, []), node, *self.after.get(node.name, [])]
        refill(graph.node, nodes)
        made = {t for node in nodes for t in node.output}
        needed = {t for node in nodes for t in reads(node)}.union(self.index.outputs) - made
        needed -= {tensor.name for tensor in self.new.written}
        stored = self.index.initializers.values()
        kept = [i for i in stored if i.name not in replaced | self.dropped or i.name in needed]
        graph.initializer.extend([*kept, *self.new.written])
        import_domain(self.model)
        return self.model

    def _write_recurrent(self, layer: LayerScheme, params: LayerParams) -> None:
        node = self.nodes[layer.name]
        if layer.dynamic:
            write_dynamic(self.new, node, params)
        else:
            self.before.setdefault(node.name, []).extend(write_weights(self.new, node, params, self.recurrent))

    def _write_activation(self, tensor: str, grid: QParams, layer_grid: QParams | None) -> None:
        """Let the readers of a tensor read it on its grid.

        layer_grid: of fewer bits, for the layers that need these; None where no layer does.
        """
        in_float = self.scheme.float_reads.get(tensor, frozenset())
        readers = [node for node in self.index.readers(tensor) if node.name not in in_float]
        bits = None if layer_grid is None else layer_grid.spec.bits
        on_layer_grid = [node for node in readers if bits is not None and self.input_bits.get(node.name) == bits]
        on_grid = [node for node in readers if bits is None or self.input_bits.get(node.name) != bits]
        is_output = self._is_quantized_output(tensor)
        if not readers and not is_output:
            return
        source, dequantized = self._name_ends(tensor, is_output)
        self._absorb_clip(tensor, grid)
        nodes = self._quantize(tensor, (source, dequantized), grid, on_grid)
        integers = nodes[0].output[0]
        for node in on_grid:
            # Dimensions are read off the integers, so that no DequantizeLinear is left for them alone.
            reads_integers = is_op(node, *SHAPE_READERS) and (self.through_cast or grid.spec.bits >= FULL_BITS)
            reroute(node, tensor, integers if reads_integers else dequantized)
        if layer_grid is not None and on_layer_grid:
            prefix = self.new.name(f"{tensor}_requantized")
            requantized = self.new.name(f"{prefix}_dequantized")
            nodes += self._requantize(prefix, (dequantized, requantized), (grid, layer_grid), on_layer_grid)
            for node in on_layer_grid:
                reroute(node, tensor, requantized)
        producer = self.index.producer.get(tensor)
        (self.at_start if producer is None else self.after.setdefault(producer.name, [])).extend(nodes)

    def _write_constant(self, tensor: str, grid: QParams) -> None:
        """Store a constant as integers, which every reader dequantizes on its own."""
        in_float = self.scheme.float_reads.get(tensor, frozenset())
        readers = [node for node in self.index.readers(tensor) if node.name not in in_float]
        if not readers:
            return
        kind, spec = type_of(grid.spec), grid.spec
        levels = np.rint(known_constant(self.index, tensor) / np.float64(grid.scale)) + grid.zero_point
        stored = self.new.constant(f"{tensor}_quantized", np.clip(levels, spec.qmin, spec.qmax).astype(kind))
        for node in readers:
            name = self.new.name(f"{tensor}_{node.name}" if len(readers) > 1 else f"{tensor}_dequantized")
            zero = grid.zero_point.astype(kind)
            self.before.setdefault(node.name, []).append(self.new.dequantize(name, stored, grid.scale, zero, spec))
            reroute(node, tensor, name)

    def _is_quantized_output(self, tensor: str) -> bool:
        """Whether the tensor is a graph output that is given on its grid."""
        given = tensor in self.index.outputs and tensor in self.index.producer
        return given and not self.keep_outputs and tensor not in self.scheme.float_reads

    def _name_ends(self, tensor: str, is_output: bool) -> tuple[str, str]:
        """What QuantizeLinear reads and what DequantizeLinear gives; a graph output keeps its name for the latter."""
        if not is_output:
            return tensor, self.new.name(f"{tensor}_dequantized")
        source = self.new.name(f"{tensor}_float")
        replace_names(self.index.producer[tensor].output, {tensor: source})
        return source, tensor

    def _absorb_clip(self, tensor: str, grid: QParams) -> None:
        """Replace a Clip(0, c) by a Relu, which onnxruntime fuses alone, if the grid ends inside [0, c].

        The bounds of channels in front of a Relu have no effect then.
        """
        node, nonnegative = self.index.producer.get(tensor), self.scheme.nonnegative
        if node is None or not is_op(node, "Clip", "Relu") or grid.zero_point != 0 or tensor not in nonnegative:
            return
        if tensor in self.scheme.float_reads:  # which would miss the Clip
            return
        if grid.spec.qmax * float(grid.scale) <= nonnegative[tensor]:
            node.op_type = "Relu"
            del node.input[1:]
            del node.attribute[:]
            if (bounds := find_bounds(self.index, node.input[0])) is not None:
                node.input[0] = bounds.input[0]
                self.dropped.update((bounds.name, bounds.input[1]))

    def _quantize(self, prefix: str, ends: tuple[str, str], grid: QParams, readers: list[NodeProto]) -> list[NodeProto]:
        """QuantizeLinear and DequantizeLinear between two tensors, and what 4 bits need between these nodes.

        readers: of the second tensor.
        """
        source, dequantized = ends
        bits = grid.spec.bits
        few = bits < FULL_BITS
        in_bytes = few and (self.through_cast or prefix in self.in_bytes or self._needs_bytes(source, grid))
        scale = self.new.constant(f"{prefix}_scale", np.asarray(grid.scale, np.float32))
        zero, dtype = np.asarray(grid.zero_point), np.dtype(np.uint8) if in_bytes else type_of(grid.spec)
        integers = self.new.name(f"{prefix}_quantized")
        inputs = [source, scale, self.new.constant(f"{prefix}_zero_point", zero.astype(dtype))]
        nodes = [self.new.node(QUANTIZE, inputs, integers, prefix)]
        if in_bytes:
            bounds = {"min": 0, "max": grid.spec.qmax}
            limits = [
                self.new.shared_constant(f"uint{bits}_{end}", np.array(value, np.uint8))
                for end, value in bounds.items()
            ]
            clipped = self.new.name(f"{prefix}_clipped")
            nodes.append(self.new.node("Clip", [integers, *limits], clipped, prefix))
            integers = clipped
        elif few and any(self._refuses_four_bits(node) for node in readers):
            dtype, widened = np.dtype(np.uint8), self.new.name(f"{prefix}_uint8")
            nodes.append(self.new.node("Cast", [integers], widened, prefix, to=TensorProto.UINT8))
            integers = widened
        inputs = [integers, scale, self.new.constant(f"{prefix}_dequantized_zero_point", zero.astype(dtype))]
        return [*nodes, self.new.node(DEQUANTIZE, inputs, dequantized, prefix)]

    def _requantize(
        self, prefix: str, ends: tuple[str, str], grids: tuple[QParams, QParams], readers: list[NodeProto]
    ) -> list[NodeProto]:
        """The nodes that put a tensor from the first grid on the second one, which has fewer bits.

        A LeakyRelu of slope 1 is the identity. With it onnxruntime fuses the change of grid into a table look-up on
        integers (QLinearLeakyRelu); without it a DequantizeLinear and a QuantizeLinear stay. Values that are never
        negative use the highest integers of uint8, whose own saturation does what the Clip of integers would.
        """
        source, dequantized = ends
        first, second = grids
        if not self.through_cast:
            return self._quantize(prefix, ends, second, readers)
        same = self.new.name(f"{prefix}_identity")
        table = self.new.node("LeakyRelu", [source], same, prefix, alpha=1.0)
        if first.zero_point == 0 and second.zero_point == 0:
            uint8 = QuantSpec(8)
            second = QParams(second.scale, np.asarray(uint8.qmax - second.spec.qmax, np.int32), uint8)
        return [table, *self._quantize(prefix, (same, dequantized), second, readers)]

    def _needs_bytes(self, tensor: str, grid: QParams) -> bool:
        """Whether onnxruntime's optimizer mistreats 4 bits behind the Relu or Clip that makes a tensor.

        It drops a Relu in front of a QuantizeLinear that has its effect, and takes any zero point of 4 bits for that.
        It fails at a Clip (1.32). It also moves a QuantizeLinear to the front of movers.
        """
        node = self.index.producer.get(tensor)
        while node is not None and moves_values(self.index, node) and node.input[0] not in self.scheme.activations:
            node = self.index.producer.get(node.input[0])
        return node is not None and (is_op(node, "Clip") or (is_op(node, "Relu") and grid.zero_point != 0))

    def _refuses_four_bits(self, node: NodeProto) -> bool:
        """Whether onnxruntime would give a 4-bit tensor to a kernel of the node that cannot read it.

        It does so for NO_FOUR_BIT_KERNEL and for layers whose weights have 8 bits, or are cast to 8 bits, unless a
        Cast to 8 bits stands in front.
        """
        return is_op(node, *NO_FOUR_BIT_KERNEL) or self.weight_bits.get(node.name) in (FULL_BITS, TWO_BITS)

    def _write_layer(self, layer: LayerScheme, params: LayerParams, input_grid: QParams | None) -> None:
        node = self.nodes[layer.name]
        name = self._operand_name(layer, layer.weight, f"{layer.weight}_{layer.name}")
        node.input[1] = name
        if not layer.on_grid:
            params = turn_upright(node, params)
        if self.packs and explain_unpacked(layer, params.integers.shape[0]) is None:
            self._write_packed(layer, params, name)
            return
        nodes = self.before.setdefault(layer.name, [])
        packed = layer.reads_float and layer.op in MATRIX_LAYERS
        if layer.reads_float and not packed and self.through_cast and self.scheme.requirements.for_onnxruntime:
            nodes += write_scaled(self.new, name, name, params.integers, params.grid)
        else:
            # An INT2 DequantizeLinear beside activations on a grid makes onnxruntime fail, whatever the encoding.
            refused = params.grid.spec.bits == TWO_BITS and not layer.reads_float
            nodes += write_weight(self.new, name, params, cast=not packed and (self.through_cast or refused))
        if layer.dynamic:
            before, behind = self.dynamic.rewrite(node, None if layer.op == "MatMul" else params.bias)
            nodes += before
            self.after[layer.name] = [*behind, *self.after.get(layer.name, [])]
        if layer.name in self.tied and packed and params.grid.spec.axis == 1:
            self.heads[layer.name] = StoredHead(tuple(nodes[-1].input), None, params.grid, params.integers.shape[0])
        if params.bias is None:
            return
        if layer.bias_add is not None:
            self._write_added_bias(layer, layer.bias_add, params.bias)
        elif layer.op != "MatMul" and not layer.dynamic:
            self._write_bias(layer, params.bias, params.grid, input_grid)

    def _write_packed(self, layer: LayerScheme, params: LayerParams, name: str) -> None:
        """Make a layer a MatMulNBits; a bias that an Add adds stays there."""
        node, looked_up = self.nodes[layer.name], layer.name in self.tied
        found, head = write_packed(self.new, node, params.integers, params.grid, name=name, looked_up=looked_up)
        self.before.setdefault(layer.name, []).extend(found)
        if head is not None:
            self.heads[layer.name] = head
        if params.bias is not None and layer.bias_add is not None:
            self._write_added_bias(layer, layer.bias_add, params.bias)
        elif params.bias is not None and layer.op != "MatMul":
            bias = self._operand_name(layer, layer.bias, f"{layer.name}_bias")
            add_bias(node, self.new.write(bias, params.bias.astype(np.float32)))

    def _write_embedding(
        self, layer: LayerScheme, layers: Mapping[str, LayerParams], tables: Tables
    ) -> list[NodeProto]:
        """Write a Gather of rows. Returns the nodes in front of it."""
        node, head, params = self.nodes[layer.name], self.heads.get(layer.tied_to or ""), layers[layer.name]
        if head is not None and head.width % (head.grid.spec.block or 1) == 0:
            return tables.write_tied(layer, node, head)
        head_params = layers.get(layer.tied_to or "")
        if head_params is not None:
            params = head_params if head_params.grid.spec.axis == 0 else transpose(head_params)
        return tables.write(layer, node, params.integers, params.grid)

    def _write_bias(self, layer: LayerScheme, bias: np.ndarray, grid: QParams, input_grid: QParams | None) -> None:
        node = self.nodes[layer.name]
        name = self._operand_name(layer, layer.bias, f"{layer.name}_bias")
        del node.input[2:]
        node.input.append(name)
        in_float = layer.op in self.scheme.requirements.float_biases
        # With groups the channels of a ConvTranspose outnumber the weight's scales.
        if in_float or input_grid is None or grid.scale.size not in (1, bias.size):
            self.new.write(name, bias.astype(np.float32))
            return
        scale = bias_scale(input_grid, grid)
        integers = np.clip(np.rint(bias / scale.astype(np.float64)), -INT32_LIMIT, INT32_LIMIT).astype(np.int32)
        stored = self.new.constant(f"{name}_quantized", integers)
        spec = QuantSpec(32, axis=0 if scale.ndim else None)
        self.before[layer.name].append(self.new.dequantize(name, stored, scale, np.zeros((), np.int32), spec))

    def _write_added_bias(self, layer: LayerScheme, bias_add: str, bias: np.ndarray) -> None:
        """Replace the constant of the bias Add of a MatMul, which stays in float; a subgraph may end before the Add."""
        node, old = self.nodes.get(bias_add), layer.bias
        if node is None or old is None:
            return
        alone = self.index.readers(old) == [node] and old not in self.index.outputs
        name = old if alone else self.new.name(f"{layer.name}_bias")
        replace_names(node.input, {old: name})
        self.new.write(name, bias.astype(np.float32).reshape(self.index.initializers[old].dims))

    def _operand_name(self, layer: LayerScheme, operand: str | None, name: str) -> str:
        """The operand's own name where the layer alone reads it, else a new one."""
        if operand and operand not in self.index.outputs and self.index.readers(operand) == [self.nodes[layer.name]]:
            return operand
        return self.new.name(name)


def type_of(spec: QuantSpec) -> np.dtype[Any]:
    """The type of an activation's integers."""
    few = spec.bits < FULL_BITS
    return np.dtype(ml_dtypes.uint4 if few else f"{'' if spec.signed else 'u'}int{spec.bits}")


def bias_scale(input_grid: QParams, weight_grid: QParams) -> np.ndarray:
    """float32(scale_x * scale_w), per channel, as onnxruntime's integer kernels have it; none is denormal or zero."""
    products = np.float32(input_grid.scale) * written_scale(weight_grid)
    sizes = np.maximum(np.abs(products), np.finfo(np.float32).tiny)
    scale: np.ndarray = np.copysign(sizes, products).astype(np.float32)
    return scale
