"""Nodes that a scheme leaves in float, and that onnxruntime would compute on integers for the grids around them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from onnx import GraphProto, ModelProto, NodeProto, helper

from ..spec import QuantScheme
from .edit import refill, take_name
from .fusion import carried_outputs, data_inputs, has_integer_kernel, rectified
from .index import Index, is_op, list_names
from .ops import CONVOLUTIONS, INTEGER_OPS


def list_ineffective(model: ModelProto, scheme: QuantScheme, excluded: frozenset[str]) -> list[str]:
    """Excluded Relus and Clips that the nodes in front of them absorb on integers all the same, in graph order."""
    index = Index(model.graph)
    found = []
    for node in model.graph.node:
        if node.name in excluded and is_op(node, "Relu", "Clip"):
            before, behind = index.producer.get(node.input[0]), node.output[0]
            alone = behind in scheme.activations and rectified(index, node.input[0]) == behind
            if alone and before is not None and before.name not in excluded and _may_absorb(index, scheme, before):
                found.append(node.name)
    return found


def _may_absorb(index: Index, scheme: QuantScheme, node: NodeProto) -> bool:
    names = {layer.name for layer in scheme.layers if layer.on_grid}
    on_grids = all(
        t in scheme.activations and node.name not in scheme.float_reads.get(t, ()) for t in data_inputs(node)
    )
    return node.name in names or (has_integer_kernel(index, node) and on_grids)


def find_barred(
    graph: GraphProto,
    index: Index,
    grids: Collection[str],
    float_reads: Mapping[str, frozenset[str]],
    integer_outputs: Mapping[str, list[str]],
) -> frozenset[str]:
    """Names of the nodes behind which a Max keeps what is left in float from being fused, as it has grids on all sides.

    onnxruntime gives a float Conv in such a place a weight of 8 bits with one scale for all channels, also where a Relu
    stands between it and the grid. The Max then follows the Relu, which stays part of the float Conv.
    """
    barred = set()
    for node in graph.node:
        if not is_op(node, *INTEGER_OPS, "MatMul", *CONVOLUTIONS) or node.name in integer_outputs:
            continue
        outputs = carried_outputs(index, node)
        reads_grids = all(t in grids and node.name not in float_reads.get(t, ()) for t in data_inputs(node))
        if reads_grids and any(t in grids for t in outputs):
            barred.add(index.producer[outputs[0]].name if is_op(node, *CONVOLUTIONS) else node.name)
    return frozenset(barred)


def bar_from_fusion(model: ModelProto, names: frozenset[str]) -> None:
    """Put a Max of one input, the identity, behind the nodes of these names, where onnxruntime keeps it."""
    if not names:
        return
    taken = list_names(model).union(*(node.input for node in model.graph.node))
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.name in names:
            behind = node.output[0]
            node.output[0] = take_name(f"{behind}_unfused", taken)
            nodes.append(helper.make_node("Max", node.output[:1], [behind], name=take_name(f"{node.name}_Max", taken)))
    refill(model.graph.node, nodes)
