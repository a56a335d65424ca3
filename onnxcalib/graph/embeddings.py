"""Find embeddings: Gathers of rows of a constant table, of which integers are stored and looked up."""

from __future__ import annotations

from collections.abc import Collection

from onnx import ModelProto, NodeProto, TensorProto

from ..config import FULL_BITS
from ..spec import FLOAT_BITS, LayerScheme, QuantSpec
from .index import Index, attribute_of, is_op

# A smaller table costs more in nodes to run than it saves.
LEAST_BYTES = 2**16
# Values of a row that share a scale at 4 bits. At 8 bits one scale a row is as good. (MiniLM, the tables alone on 4
# bits: 19.1 dB with one scale a row, 22.4 with one for 128 values, 24.8 with one for 32. At 8 bits: 42.9 with one a
# row.)
FOUR_BIT_BLOCK = 32


def find_embeddings(
    model: ModelProto, bits: int, excluded: frozenset[str] = frozenset(), layers: Collection[str] = ()
) -> tuple[LayerScheme, ...]:
    """The quantization of every Gather of rows of a float table, in graph order; none at 32 bits.

    Nothing but ``layers``, which get integers of their own, may read the table otherwise. Rows of 4-bit values have a
    scale for every FOUR_BIT_BLOCK values if that divides their length; other rows have one scale.
    """
    if bits == FLOAT_BITS:
        return ()
    index = Index(model.graph)

    def spec_of(table: str) -> QuantSpec:
        in_blocks = bits < FULL_BITS and index.initializers[table].dims[1] % FOUR_BIT_BLOCK == 0
        return QuantSpec(bits, signed=True, symmetric=True, axis=0, block=FOUR_BIT_BLOCK if in_blocks else None)

    return tuple(
        LayerScheme(
            name=node.name,
            op="Gather",
            input=node.input[1],
            weight=node.input[0],
            bias=None,
            output=node.output[0],
            weight_spec=spec_of(node.input[0]),
            activation_spec=QuantSpec(FLOAT_BITS),
        )
        for node in model.graph.node
        if node.name not in excluded and _looks_up(index, node, excluded, layers)
    )


def _looks_up(index: Index, node: NodeProto, excluded: frozenset[str], layers: Collection[str]) -> bool:
    if not is_op(node, "Gather"):
        return False
    table = index.initializers.get(node.input[0])
    if table is None or table.data_type != TensorProto.FLOAT or len(table.dims) != 2:
        return False
    readers = index.readers(node.input[0])
    return (
        4 * table.dims[0] * table.dims[1] >= LEAST_BYTES
        and node.input[0] not in index.outputs
        and all(
            reader.name in layers or (_reads_rows(reader, node.input[0]) and reader.name not in excluded)
            for reader in readers
        )
    )


def _reads_rows(node: NodeProto, table: str) -> bool:
    return is_op(node, "Gather") and node.input[0] == table and attribute_of(node, "axis", 0) == 0
