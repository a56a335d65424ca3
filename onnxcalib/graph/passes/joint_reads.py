"""Keep onnxruntime from parting the nodes of a written-out function that reads a dequantized tensor."""

from __future__ import annotations

from onnx import ModelProto, helper

from ..edit import refill, reroute, take_name
from ..index import Index, list_names
from ..inspect.integers import is_linear
from ..inspect.kernels import skip_movers
from ..ops import DEQUANTIZE
from ..patterns import find_patterns


def join_reads(model: ModelProto) -> int:
    """Let each function of several nodes read a dequantized tensor through a Max of this one tensor; returns the count.

    onnxruntime gives each reader of a DequantizeLinear one of its own before it looks for functions, so that their
    nodes no longer read the same tensor. It does so too where operators that move values stand in between. An Identity
    is taken away before that. A Max of one tensor, which copies it, stays. For quantized graphs.
    """
    patterns = [pattern for pattern in find_patterns(model) if pattern.is_fused]
    index = Index(model.graph)
    taken = list_names(model) if patterns else set()
    copies = {}
    for pattern in patterns:
        dequantize = index.producer.get(skip_movers(index, pattern.source))
        readers = [node for node in index.readers(pattern.source) if node.name in pattern.nodes]
        if dequantize is None or not is_linear(dequantize, DEQUANTIZE) or len(readers) < 2:
            continue
        output = take_name(f"{pattern.source}_Max", taken)
        name = take_name(f"{pattern.nodes[-1]}_Max", taken)
        copies[readers[0].name] = helper.make_node("Max", [pattern.source], [output], name)
        for node in readers:
            reroute(node, pattern.source, output)
    if copies:
        nodes = [
            each for node in model.graph.node for each in (*((copies[node.name],) if node.name in copies else ()), node)
        ]
        refill(model.graph.node, nodes)
    return len(copies)
