"""What a graph makes of a mask of tokens alone, and the attention scores that it hides some of."""

from __future__ import annotations

from collections.abc import Collection

from onnx import NodeProto

from .index import Index, has_bodies, is_op, reads

# Operators that give for each token what its own place in the mask says.
BY_TOKEN = (
    "Add", "And", "Cast", "Div", "Equal", "Expand", "Flatten", "Greater", "Less", "Mul", "Not", "Or", "Reshape",
    "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
)  # fmt: skip
# Nodes between the sum of scores and mask and its Softmax, such as a Reshape or a Cast.
MOST_BETWEEN = 4


def find_mask_values(index: Index, masks: Collection[str]) -> list[str]:
    """The tensors that are computed from these inputs and constants alone, token by token, in graph order."""
    known = set(masks) & set(index.inputs)
    found: list[str] = []
    for node in index.producer.values():
        if is_op(node, *BY_TOKEN) and not known.isdisjoint(node.input):
            if all(name in known or name in index.initializers for name in reads(node)):
                known.add(node.output[0])
                found.append(node.output[0])
    return found


def find_masked_scores(index: Index, values: Collection[str]) -> list[str]:
    """The sums of scores and one of the values in front of a Softmax."""
    return [
        node.output[0]
        for node in index.producer.values()
        if is_op(node, "Add") and len({name in values for name in node.input}) == 2 and reaches_softmax(index, node)
    ]


def reaches_softmax(index: Index, node: NodeProto) -> bool:
    """Whether a Softmax reads what the node gives, at most MOST_BETWEEN nodes further on."""
    front = [node.output[0]]
    for _ in range(MOST_BETWEEN):
        readers = [reader for tensor in front for reader in index.readers(tensor)]
        if any(is_op(reader, "Softmax") for reader in readers):
            return True
        front = [tensor for reader in readers for tensor in reader.output if not has_bodies(reader)]
    return False
