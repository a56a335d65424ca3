"""Write Sigmoid as HardSigmoid, for targets that have no Sigmoid; the outputs change."""

from __future__ import annotations

from onnx import ModelProto

from ..edit import write_attributes
from ..fusion import HARD_BETA
from ..index import all_nodes, is_op

# The slope, 1/6 in steps of 2^-14 (amd-quark 0.13, simulate_dpu.py: 2731 / 16384).
SLOPE = 2731 / 2**14


def harden_sigmoids(model: ModelProto) -> int:
    """Turn each Sigmoid into the HardSigmoid of slope 1/6, in bodies too; returns the count. Mutates ``model``."""
    nodes = [node for node in all_nodes(model.graph) if is_op(node, "Sigmoid")]
    for node in nodes:
        node.op_type = "HardSigmoid"
        write_attributes(node, {"alpha": SLOPE, "beta": HARD_BETA})
    return len(nodes)
