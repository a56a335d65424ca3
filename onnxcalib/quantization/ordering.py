"""Outputs whose order an operator chooses: nearly equal values change places, and hide how good the rest is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from onnx import ModelProto, NodeProto

from ..data import CalibrationSet
from ..graph.index import Index, is_op, reads, walk_back
from ..graph.ops import INDEXED, ORDERS
from ..numeric.metrics import Comparison
from ..report import OutputRecord
from ..runtime.session import Session, is_float

# An output that is at least so many dB worse than what it was chosen from owes that to its order.
LEAST_GAP = 3.0
# What an operator chooses by: of NonMaxSuppression boxes and scores. Its other inputs are limits.
CHOSEN_BY: Mapping[str, int] = {"NonMaxSuppression": 2}


@dataclass(frozen=True)
class _Choice:
    """The operator that chooses an output's order, and the inputs (node, number) that hold the values before it."""

    chooser: NodeProto
    before: tuple[tuple[NodeProto, int], ...]


def describe_orders(
    original: ModelProto,
    quantized: ModelProto,
    samples: CalibrationSet,
    outputs: Sequence[OutputRecord],
    *,
    batches: tuple[int, int],
    threads: int = 0,
) -> Iterator[tuple[str, str]]:
    """Each output that looks bad through its order alone, and a line with the SQNR of what was ordered.

    batches: the samples of each, and how many are run.
    """
    choices = {record.name: found for record in outputs if (found := _find_choice(Index(original.graph), record.name))}
    other = Index(quantized.graph)
    pairs = {
        node.input[number]: tensor
        for choice in choices.values()
        for node, number in choice.before
        if (tensor := find_same(other, node, number))
    }
    if not pairs:
        return
    compared = _compare(original, quantized, samples, pairs, batches=batches, threads=threads)
    for record in outputs:
        choice = choices.get(record.name)
        named = {node.input[number] for node, number in choice.before} if choice else set()
        values = {name: compared[name].sqnr_db for name in sorted(named & compared.keys())}
        least = min(values.values(), default=float("-inf"))
        if choice and values and (record.sqnr_db is None or least >= record.sqnr_db + LEAST_GAP):
            spelled = ", ".join(f"{name} {value:.1f} dB" for name, value in values.items())
            node = choice.chooser
            yield (
                record.name,
                f"output {record.name}: its order is that of {node.op_type} ({node.name or node.output[0]}), in which"
                f" values that are nearly equal change places; judge it by what is ordered: {spelled}",
            )


def _find_choice(index: Index, output: str) -> _Choice | None:
    """The nearest operators behind an output that choose or sort; None where there are none."""
    stack, seen = [output], {output}
    choosers: list[NodeProto] = []
    gathers: list[NodeProto] = []
    while stack:
        node = index.producer.get(stack.pop())
        if node is None:
            continue
        if node.op_type in ORDERS:
            choosers.append(node)
            continue
        if node.op_type in INDEXED and _depends_on_order(index, node.input[1]):
            gathers.append(node)
            new = [node.input[1]]
        else:
            new = reads(node)
        stack += [name for name in new if name not in seen]
        seen.update(new)
    if not choosers:
        return None
    counts = ((node, CHOSEN_BY.get(node.op_type, 1)) for node in choosers)
    before = [(node, number) for node, count in counts for number in range(count)]
    return _Choice(choosers[0], (*before, *((node, 0) for node in gathers)))


def _depends_on_order(index: Index, tensor: str) -> bool:
    return any(is_op(node, *ORDERS) for node in walk_back(index, [tensor], lambda node: is_op(node, *ORDERS)))


def find_same(index: Index, node: NodeProto, number: int) -> str:
    """The tensor of the quantized model that stands for the node's input; an empty text where none is found."""
    other = index.producer.get(node.output[0])
    if other is not None and other.op_type == node.op_type:
        return str(other.input[number])
    return node.input[number] if node.input[number] in index.producer else ""


def _compare(
    original: ModelProto,
    quantized: ModelProto,
    samples: CalibrationSet,
    pairs: Mapping[str, str],
    *,
    batches: tuple[int, int],
    threads: int,
) -> dict[str, Comparison]:
    """The float model's tensors compared with those of the quantized one."""
    one = Session(original, also=list(pairs), threads=threads)
    other = Session(quantized, also=list(pairs.values()), optimize=False, threads=threads)
    found: dict[str, Comparison] = {}
    for feeds in islice(samples.batches(batches[0]), batches[1]):
        wanted, given = one.run(feeds), other.run(feeds)
        for name, same in pairs.items():
            values = [each for each in (wanted.get(name), given.get(same)) if each is not None and is_float(each)]
            if len(values) == 2 and values[0].shape == values[1].shape:
                found.setdefault(name, Comparison()).add(values[0], values[1], samples.count(feeds))
    return {name: comparison for name, comparison in found.items() if comparison.values}
