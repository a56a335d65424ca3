"""Every QuantizeLinear and DequantizeLinear of a graph: what it is for, and the grid that it names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from ...errors import ModelError
from ..index import Index, attribute_of, constant, in_scope, is_op, own_constants, subgraphs
from ..ops import DEQUANTIZE, LAYERS, LINEAR_OPS, MOVERS, QUANTIZE
from ..tensors import spell_node
from ..weight_nodes import trace_halves
from .integers import BETWEEN, element_type, is_linear

Role = Literal["activation", "weight", "bias", "constant"]
NARROW, WIDE = ("uint8", "int8"), ("uint16", "int16")  # the types of 8 and of 16 bits
OPERANDS: tuple[Role, ...] = ("activation", "constant")  # what is neither a layer's weight nor its bias
# Activation functions that belong to the layer before them.
FUNCTIONS = ("Relu", "Clip", "LeakyRelu", "PRelu")
# Operators that pass integers on from a QuantizeLinear, or from a constant, to a DequantizeLinear.
PASSED_BY = tuple(dict.fromkeys((*BETWEEN, *MOVERS)))


@dataclass(frozen=True)
class Grid:
    """One QuantizeLinear or DequantizeLinear.

    tensor: the float tensor that it reads or makes. role: what is quantized; ``constant`` is a constant that is neither
    a layer's weight nor its bias. type: of the integers at the node itself. stored: of the constant behind a Cast.
    scale and zero_point: None where they are computed; a zero point that is left out is 0. dims: of a constant. source:
    the node or tensor from which a DequantizeLinear's integers come, empty where that is a QuantizeLinear or a
    constant. passed_by: the operators on the way. made_by: the QuantizeLinear of a DequantizeLinear, as messages name
    it.
    """

    node: NodeProto
    where: str
    tensor: str
    role: Role
    type: str
    stored: str
    scale: np.ndarray | None
    zero_point: np.ndarray | None
    dims: tuple[int, ...] | None = None
    source: str = ""
    passed_by: tuple[str, ...] = ()
    made_by: str = ""

    @property
    def quantizes(self) -> bool:
        return self.node.op_type == QUANTIZE

    @property
    def has_zero_point(self) -> bool:
        return len(self.node.input) > 2 and bool(self.node.input[2])

    @property
    def block(self) -> int:
        """Neighbours that share a scale; 0 where the grid has no blocks."""
        return attribute_of(self.node, "block_size", 0)

    @property
    def axis(self) -> int | None:
        """The axis along which each index has its own scale; None for one scale."""
        if self.scale is None or self.scale.ndim == 0 or self.scale.size == 1:
            return None
        axis = attribute_of(self.node, "axis", 1)
        return axis % len(self.dims) if self.dims else axis

    def equals(self, other: Grid) -> bool:
        """Whether scale, zero point and type are the same; what is computed equals nothing."""
        if self.scale is None or other.scale is None or self.zero_point is None or other.zero_point is None:
            return False
        pairs = ((self.scale, other.scale), (self.zero_point, other.zero_point))
        return self.type == other.type and all(np.array_equal(a.reshape(-1), b.reshape(-1)) for a, b in pairs)


@dataclass(frozen=True)
class GriddedLayer:
    """A Conv, ConvTranspose, Gemm or MatMul of a constant, and its grids; None for what is float.

    input: of the activation. output: of the QuantizeLinear that alone reads the result. float_bias: the name of a bias
    without a DequantizeLinear.
    """

    node: NodeProto
    where: str
    input: Grid | None
    weight: Grid | None
    bias: Grid | None
    float_bias: str | None
    output: Grid | None


class GriddedGraph:
    """The grids of a graph in the order of its nodes.

    model: whose graph or body it is. outer: of the graph around a body, which gives it constants and tensors on grids.
    within: prefix of the names. Raises ModelError for a node without a scale, or with one that is text or nothing.
    """

    def __init__(
        self, graph: GraphProto, model: ModelProto, outer: GriddedGraph | None = None, within: str = ""
    ) -> None:
        self.graph, self.model, self.within = graph, model, within
        self.index: Index = Index(graph) if outer is None else outer.index.inside(graph)
        self.index.initializers |= own_constants(graph)
        nodes = [node for node in graph.node if is_linear(node, *LINEAR_OPS)]
        self.grids = tuple(map(self._read, nodes))
        made = {grid.tensor: grid for grid in self.grids if not grid.quantizes}
        self._makers: dict[str, Grid] = made if outer is None else in_scope(graph, outer._makers, made)
        self._readers: dict[str, list[Grid]] = {}
        for grid in self.grids:
            if grid.quantizes:
                self._readers.setdefault(grid.tensor, []).append(grid)

    def spell(self, node: NodeProto) -> str:
        """A node as messages name it."""
        return self.within + (f"{node.name} ({node.op_type})" if node.name else spell_node(node))

    def maker(self, tensor: str) -> Grid | None:
        """The DequantizeLinear that makes a tensor."""
        return self._makers.get(tensor)

    def quantizers(self, tensor: str) -> list[Grid]:
        """The QuantizeLinears that read a float tensor."""
        return self._readers.get(tensor, [])

    def behind(self, tensor: str, passing: tuple[str, ...] = FUNCTIONS) -> Grid | None:
        """The QuantizeLinear that alone reads a tensor, through activation functions that it absorbs."""
        while tensor not in self.index.outputs and len(readers := self.index.readers(tensor)) == 1:
            if not is_op(readers[0], *passing) or not self.reads_alone(readers[0], tensor):
                return next(iter(self.quantizers(tensor)), None)
            tensor = readers[0].output[0]
        return None

    def reads_alone(self, node: NodeProto, tensor: str) -> bool:
        """Whether a node reads nothing but this tensor and constants."""
        return all(not name or name == tensor or name in self.index.initializers for name in node.input)

    def layers(self) -> Iterator[GriddedLayer]:
        """The layers of which a weight or an activation is quantized."""
        for node in self.graph.node:
            if is_op(node, *LAYERS):
                makers = [self.maker(name) for name in node.input]
                weight = next((grid for grid in makers[1::-1] if grid is not None and grid.role == "weight"), None)
                fed = makers[0] if makers[0] is not weight else makers[1]
                bias = makers[2] if len(makers) > 2 else None
                float_bias = node.input[2] if len(makers) > 2 and node.input[2] and bias is None else None
                if weight is not None or fed is not None:
                    behind = self.behind(node.output[0])
                    yield GriddedLayer(node, self.spell(node), fed, weight, bias, float_bias, behind)

    def _read(self, node: NodeProto) -> Grid:
        if len(node.input) < 2 or not node.output:
            raise ModelError(
                f"node {self.spell(node)}: found {len(node.input)} inputs and {len(node.output)} outputs; a tensor and"
                " its scale, and one output, are needed; quantize the float model again"
            )
        for name in node.input[1:3]:
            tensor = self.index.initializers.get(name)
            if tensor is not None and (tensor.data_type == TensorProto.STRING or not math.prod(tensor.dims)):
                raise ModelError(
                    f"node {self.spell(node)}: its scale or zero point {name} is"
                    f" {spell_type(tensor.data_type)} of dimensions {list(tensor.dims)}; numbers are needed; quantize"
                    " the float model again"
                )
        index, quantizes = self.index, node.op_type == QUANTIZE
        origin, passed_by = (node.input[0], ()) if quantizes else self._trace(node.input[0])
        source = index.producer.get(origin)
        made_by = source if source is not None and is_linear(source, QUANTIZE) else None
        stored = index.initializers.get(made_by.input[0] if made_by is not None else origin)
        kind = element_type(index, made_by if made_by is not None and not _has_zero_point(node) else node)
        if not quantizes and not _has_zero_point(node) and made_by is None:
            kind = self._type_before(node.input[0]) or kind
        held = kind if made_by is not None or quantizes or stored is None else stored.data_type
        strange = "" if quantizes or made_by is not None or stored is not None else origin
        return Grid(
            node,
            self.spell(node),
            node.input[0] if quantizes else node.output[0],
            self._find_role(node, constant=stored is not None),
            spell_type(kind),
            spell_type(held),
            constant(index, node.input[1]),
            self._zero_point(node),
            None if stored is None else tuple(stored.dims),
            strange,
            passed_by,
            "" if made_by is None else self.spell(made_by),
        )

    def _trace(self, tensor: str) -> tuple[str, tuple[str, ...]]:
        """Where integers come from, a QuantizeLinear or a constant, and the operators between there and ``tensor``."""
        if (halves := trace_halves(self.index, tensor)) is not None:
            return halves.tensor, ("Cast",)
        passed: list[str] = []
        while (node := self.index.producer.get(tensor)) is not None and is_op(node, *PASSED_BY):
            passed.append(node.op_type)
            tensor = node.input[0]
        return tensor, tuple(reversed(passed))

    def _type_before(self, tensor: str) -> int:
        """The type of the integers that a DequantizeLinear without a zero point reads; 0 where nothing says it."""
        while (node := self.index.producer.get(tensor)) is not None and is_op(node, *PASSED_BY):
            if is_op(node, "Cast"):
                return int(attribute_of(node, "to", 0))
            tensor = node.input[0]
        stored = self.index.initializers.get(tensor)
        return 0 if stored is None else stored.data_type

    def _zero_point(self, node: NodeProto) -> np.ndarray | None:
        if _has_zero_point(node):
            found = constant(self.index, node.input[2])
            return None if found is None else found.astype(np.int64)
        scale = constant(self.index, node.input[1])
        return None if scale is None else np.zeros(scale.shape, np.int64)

    def _find_role(self, node: NodeProto, *, constant: bool) -> Role:
        if not constant:
            return "activation"
        last = node
        if node.op_type == QUANTIZE:
            last = next((each for each in self.index.readers(node.output[0]) if is_linear(each, DEQUANTIZE)), node)
        made = last.output[0]
        for reader in self.index.readers(made):
            if is_op(reader, *LAYERS):
                number = list(reader.input).index(made)
                return "bias" if number == 2 else "weight"
        return "constant"


def list_sides(graph: GriddedGraph, node: NodeProto) -> list[Grid]:
    """The grids on which a node computes, without weights and biases, and the one that it gives; empty if one is float.

    The one that it gives is the last.
    """
    made = graph.behind(node.output[0])
    fed = [grid for name in node.input if (grid := graph.maker(name)) is not None and grid.role in OPERANDS]
    return [*fed, made] if fed and made is not None else []


def read_graphs(model: ModelProto) -> list[GriddedGraph]:
    """The model's graph, and the bodies of its nodes, nested ones included."""
    return list(_read_graphs(GriddedGraph(model.graph, model)))


def _read_graphs(outer: GriddedGraph) -> Iterator[GriddedGraph]:
    yield outer
    for node in outer.graph.node:
        for body in subgraphs(node):
            within = f"{outer.within}{node.name or node.output[0]}/"
            yield from _read_graphs(GriddedGraph(body, outer.model, outer, within))


@cache
def spell_type(kind: int) -> str:
    """An element type as messages and targets write it: ``int8``."""
    return TensorProto.DataType.Name(kind).lower() if kind in TensorProto.DataType.values() else f"type {kind}"


def _has_zero_point(node: NodeProto) -> bool:
    return len(node.input) > 2 and bool(node.input[2])
