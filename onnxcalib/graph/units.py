"""The choice between float and integer kernels as a cut: units of nodes, and the tensors that two kinds would share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from onnx import ModelProto, NodeProto

from ..spec import QuantScheme
from .fusion import carried_outputs, data_inputs, moves_values
from .index import Index, is_op
from .kernel_times import (
    DEQUANTIZED,
    LAID_OUT,
    NODE,
    PLAIN_POOL,
    QUANTIZED,
    RANGED,
    RANGING,
    UNRANGED,
    KernelTime,
    Shapes,
    count,
    count_windows,
    time_node,
)  # fmt: skip
from .ops import AVERAGES, INTEGER_OPS, MATRIX_LAYERS, SHAPE_READERS
from .weightless import held_bytes

# In float these take channels in blocks, the rest of the graph does not; on integers they have the channels last.
BLOCKED = ("Conv", "MaxPool", *AVERAGES)
ELEMENTWISE = ("Add", "Mul", "Sigmoid", "HardSigmoid", "LeakyRelu")


@dataclass(frozen=True)
class Unit:
    """Nodes that run on integers together or not at all: one with an integer kernel, and those that it absorbs.

    outputs: the tensors that would be integers. weight: bytes of a layer's float weight. A dynamic layer reads and
    gives floats, and its time on integers has its share of rounding what it reads in it.
    """

    node: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    time: KernelTime
    weight: int = 0


@dataclass(frozen=True)
class Border:
    """A tensor between kernels: what it costs as integers read in float, and as floats read on integers.

    tensor: its name. maker: number of the unit that makes it; None for what is in float. readers: numbers of the units
    that may read it on integers. in_float: whether a node that cannot run on integers reads it, or the graph gives it
    out.
    """

    tensor: str
    maker: int | None
    readers: tuple[int, ...]
    in_float: bool
    to_float: float
    to_integers: float


@dataclass(frozen=True)
class Placement:
    """Units in graph order, and the tensors that these make and read."""

    units: tuple[Unit, ...]
    borders: tuple[Border, ...] = field(repr=False)

    def time(self, in_float: Mapping[int, bool] | list[bool]) -> float:
        """Nanoseconds of the units and their borders, if these units are in float."""
        total = sum(u.time.in_float if in_float[i] else u.time.on_integers for i, u in enumerate(self.units))
        for border in self.borders:
            maker = border.maker is None or in_float[border.maker]
            readers = [in_float[i] for i in border.readers]
            if maker and not all(readers):
                total += border.to_integers
            if not maker and (border.in_float or any(readers)):
                total += border.to_float
        return total

    def bound_gain(self) -> float:
        """No choice of units in float saves more nanoseconds: each at most its own, and the borders that it is at."""
        gains = [unit.time.on_integers - unit.time.in_float for unit in self.units]
        for border in self.borders:
            paid = border.to_integers if border.maker is None else border.to_float if border.in_float else 0.0
            for number in {*border.readers, *(() if border.maker is None else (border.maker,))}:
                gains[number] += paid
        return sum(gain for gain in gains if gain > 0)


def find_units(model: ModelProto, scheme: QuantScheme, shapes: Shapes) -> Placement:
    """What the scheme puts on integers, and what the alternative costs; tensors of unknown shapes cost a node alone."""
    index = Index(model.graph)
    layers = {layer.name: layer for layer in scheme.layers if not layer.reads_float and layer.op != "ConvTranspose"}
    sharing = Counter(layer.input for layer in scheme.layers if layer.dynamic)
    units: list[Unit] = []
    for node in model.graph.node:
        layer = layers.get(node.name)
        if layer is None and not _on_integers(index, node, scheme):
            continue
        outputs = (layer.output,) if layer and layer.bias_add else tuple(carried_outputs(index, node))
        inputs = (layer.input,) if layer else tuple(data_inputs(node))
        weight = held_bytes(index.initializers[layer.weight]) if layer else 0
        time = time_node(index, node, shapes)
        if is_op(node, "MaxPool") and _is_plain_pool(index, node):
            time = replace(time, on_integers=time.on_integers + PLAIN_POOL * count_windows(node, shapes))
        if layer is not None and layer.dynamic:
            ranging = (RANGING * NODE + RANGED * count(shapes, layer.input)) / sharing[layer.input]
            ranging += NODE + UNRANGED * count(shapes, node.output[0])
            time, inputs, outputs = replace(time, on_integers=time.on_integers + ranging), (), ()
        units.append(Unit(node.name, node.op_type, inputs, outputs, time, weight))
    return Placement(tuple(units), tuple(_find_borders(model, index, units, shapes)))


def _on_integers(index: Index, node: NodeProto, scheme: QuantScheme) -> bool:
    """Whether a node that is no layer runs on integers by the scheme."""
    product = is_op(node, "MatMul") and index.initializers.keys().isdisjoint(node.input)
    if (
        not product
        and not is_op(node, *INTEGER_OPS)
        and node.name not in scheme.gates
        and not moves_values(index, node)
    ):
        return False
    reads = list(node.input) if product else data_inputs(node)
    on_grids = all(t in scheme.activations and node.name not in scheme.float_reads.get(t, ()) for t in reads)
    return on_grids and (product or scheme.activations.keys() >= set(carried_outputs(index, node)))


def _is_plain_pool(index: Index, pool: NodeProto) -> bool:
    """Whether a MaxPool reads its integers with the channels first: onnxruntime then has no fast kernel.

    It moves a change of layout through operators on single values only where a Conv behind lets it vanish.
    """
    before = index.producer.get(pool.input[0])
    if before is None or not is_op(before, *ELEMENTWISE):
        return False
    ahead = list(index.readers(pool.output[0]))
    seen: set[str] = set()
    while ahead:
        node = ahead.pop()
        if is_op(node, "Conv"):
            return False
        if node.name not in seen and is_op(node, *INTEGER_OPS, "MaxPool"):
            ahead += index.readers(node.output[0])
        seen.add(node.name)
    return True


def _find_borders(model: ModelProto, index: Index, units: list[Unit], shapes: Shapes) -> list[Border]:
    made = {tensor: number for number, unit in enumerate(units) for tensor in unit.outputs}
    read: dict[str, list[int]] = {}
    for number, unit in enumerate(units):
        for tensor in dict.fromkeys(unit.inputs):
            read.setdefault(tensor, []).append(number)
    inside = _absorbed(index, units)
    borders = []
    for tensor in dict.fromkeys([*index.inputs, *(t for node in model.graph.node for t in node.output)]):
        if tensor not in made and tensor not in read:
            continue
        names = {units[number].node for number in read.get(tensor, ())} | inside
        others = [n for n in index.readers(tensor) if n.name not in names and not is_op(n, *SHAPE_READERS)]
        size, maker = count(shapes, tensor), made.get(tensor)
        pools = [index.nodes[units[n].node] for n in read.get(tensor, ()) if units[n].op == "MaxPool"]
        slow = PLAIN_POOL * sum(count_windows(pool, shapes) for pool in pools)
        blocked = [units[n].op in BLOCKED for n in read.get(tensor, ())]
        makes_blocks = maker is not None and units[maker].op in BLOCKED
        layout = size * LAID_OUT if len(shapes.get(tensor, ())) > 3 else 0.0
        # The kernel of a matrix product gives float as well as integers.
        free = maker is not None and units[maker].op in MATRIX_LAYERS
        borders.append(
            Border(
                tensor=tensor,
                maker=maker,
                readers=tuple(read.get(tensor, ())),
                in_float=bool(others) or tensor in index.outputs,
                to_float=0.0 if free else NODE + size * DEQUANTIZED + (layout if any(blocked) else 0.0),
                to_integers=NODE
                + size * QUANTIZED
                + slow
                + (layout if makes_blocks or tensor in index.inputs else 0.0),
            )
        )
    return borders


def _absorbed(index: Index, units: list[Unit]) -> set[str]:
    """Names of the nodes that stand inside of a unit: the Relu behind its node, or the Add of its bias."""
    nodes = {unit.node for unit in units}
    return {index.producer[t].name for unit in units for t in unit.outputs} - nodes
