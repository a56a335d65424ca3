"""Find embeddings: Gathers of rows of a constant table, of which integers are stored and looked up."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from ..config import COLUMN, FULL_BITS, LayerConfig
from ..errors import ConfigError
from ..spec import FLOAT_BITS, LayerScheme, QuantSpec
from .index import Index, attribute_of, is_op
from .layers import channel_axis
from .names import Selection
from .ops import MATRIX_LAYERS
from .values import read_rows, read_values

# A smaller table costs more in nodes to run than it saves.
LEAST_BYTES = 2**16
TABLE_BITS = (8, 4)
# Values of a row that share a scale at 4 bits. At 8 bits one scale a row is as good. (MiniLM, the tables alone on 4
# bits: 19.1 dB with one scale a row, 22.4 with one for 128 values, 24.8 with one for 32. At 8 bits: 42.9 with one a
# row.)
FOUR_BIT_BLOCK = 32
COMPARED_BYTES = 2**24


def find_tied(model: ModelProto) -> dict[str, str]:
    """Tables that a Gather looks up by rows -> the layer of which the weight is the same table, transposed or not."""
    index = Index(model.graph)
    tables = [n.input[0] for n in model.graph.node if is_op(n, "Gather") and _reads_rows(n, n.input[0])]
    tables = [name for name in dict.fromkeys(tables) if _is_table(index, name)]
    found: dict[str, str] = {}
    for node in model.graph.node if tables else ():
        weight = index.initializers.get(node.input[1]) if is_op(node, *MATRIX_LAYERS) else None
        if weight is None or weight.data_type != TensorProto.FLOAT or len(weight.dims) != 2:
            continue
        outputs = channel_axis(node)
        dims = [weight.dims[outputs], weight.dims[1 - outputs]]
        for name in tables:
            table = index.initializers[name]
            if name not in found and list(table.dims) == dims and _equals(table, weight, turned=outputs == 1):
                found[name] = node.name
    return found


def _equals(table: TensorProto, weight: TensorProto, *, turned: bool) -> bool:
    if table.name == weight.name and not turned:
        return True
    values, start = read_values(weight), 0
    values = values.T if turned else values
    for rows in read_rows(table, COMPARED_BYTES):
        if not np.array_equal(rows, values[start : start + len(rows)]):
            return False
        start += len(rows)
    return True


def find_embeddings(
    model: ModelProto,
    bits: int,
    selection: Selection | None = None,
    layers: Sequence[LayerScheme] = (),
    tied: Mapping[str, str] | None = None,
) -> tuple[LayerScheme, ...]:
    """The quantization of every Gather of rows of a float table, in graph order; none at 32 bits.

    selection: nodes that stay in float, and settings of single tables, which override ``bits``.

    Nothing but ``layers``, which get integers of their own, may read the table otherwise. Rows of 4-bit values have a
    scale for every FOUR_BIT_BLOCK values, or as many as the table's own settings say, if that divides their length;
    other rows have one scale. tied: table -> the layer of the same weight; where that reads float, the table has its
    integers and grid, unless its own settings ask for others. Raises ConfigError for another table of less than 4 bits.
    """
    if bits == FLOAT_BITS:
        return ()
    index, selection = Index(model.graph), selection or Selection()
    excluded = selection.excluded

    by_name = {layer.name: layer for layer in layers}
    found = [
        node for node in model.graph.node if node.name not in excluded and _looks_up(index, node, excluded, by_name)
    ]
    settings = {node.name: selection.settings(node.name) for node in found}
    heads = {t: by_name[name] for t, name in (tied or {}).items() if name in by_name and by_name[name].reads_float}
    for node in found:
        if (head := heads.get(node.input[0])) is not None and _differs(settings[node.name], head.weight_spec):
            del heads[node.input[0]]

    def spec_of(node: NodeProto) -> QuantSpec:
        if (table := node.input[0]) in heads:
            return replace(heads[table].weight_spec, axis=0, pair_limit=None)
        own, width = settings[node.name], index.initializers[table].dims[1]
        own_bits = own.weight_bits or bits
        if own_bits not in TABLE_BITS:
            raise ConfigError(
                f"layers: {node.name!r}: weight_bits: found {own_bits}; a table of a Gather has 8 or 4; give these"
            )
        block = own.block_size or (FOUR_BIT_BLOCK if own_bits < FULL_BITS else COLUMN)
        in_blocks = block != COLUMN and width % int(block) == 0
        return QuantSpec(own_bits, signed=True, symmetric=True, axis=0, block=int(block) if in_blocks else None)

    return tuple(
        LayerScheme(
            name=node.name,
            op="Gather",
            input=node.input[1],
            weight=node.input[0],
            bias=None,
            output=node.output[0],
            weight_spec=spec_of(node),
            activation_spec=QuantSpec(FLOAT_BITS),
            tied_to=heads[node.input[0]].name if node.input[0] in heads else None,
        )
        for node in found
    )


def _differs(own: LayerConfig, spec: QuantSpec) -> bool:
    """Whether settings ask for other bits or blocks than these."""
    bits, block = own.weight_bits or spec.bits, own.block_size or spec.block or COLUMN
    return bits != spec.bits or block != (spec.block or COLUMN)


def _looks_up(index: Index, node: NodeProto, excluded: frozenset[str], layers: Collection[str]) -> bool:
    if not is_op(node, "Gather"):
        return False
    return _is_table(index, node.input[0]) and all(
        reader.name in layers or (_reads_rows(reader, node.input[0]) and reader.name not in excluded)
        for reader in index.readers(node.input[0])
    )


def _is_table(index: Index, name: str) -> bool:
    """Whether this is a float matrix that is worth storing as integers."""
    table = index.initializers.get(name)
    if table is None or table.data_type != TensorProto.FLOAT or len(table.dims) != 2 or name in index.outputs:
        return False
    return bool(4 * table.dims[0] * table.dims[1] >= LEAST_BYTES)


def _reads_rows(node: NodeProto, table: str) -> bool:
    return is_op(node, "Gather") and node.input[0] == table and attribute_of(node, "axis", 0) == 0
