"""Residual blocks as the owner of each of their nodes; ``c`` in a graph is a convolution."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcalib.graph.index import Index
from onnxcalib.graph.residuals import ENTRY, _Dominators, find_residuals


@pytest.fixture
def owners(build):
    """The Add that owns each node of a graph of the inputs x and m, its Convs being the layers."""

    def find(body):
        model = build(f"g (float[N, 4, 8, 8] x, float[N, 4, 8, 8] m) => (y) {{ {body} }}", w=np.ones((4, 4, 1, 1)))
        for node in model.graph.node:
            node.name = node.output[0]
        layers = {node.name for node in model.graph.node if node.op_type == "Conv"}
        return find_residuals(model.graph, Index(model.graph), layers)

    return find


def test_what_enters_a_block_from_outside_stays_outside(owners):
    found = owners("a = Conv (x, w) b = Conv (a, w) k = Neg (m) c = Mul (b, k) y = Add (c, a)")
    assert found == dict.fromkeys("bcy", "y")


def test_an_operand_made_first_may_stand_on_either_side(owners):
    for operands in ("c, a", "a, c"):
        assert owners(f"a = Conv (x, w) b = Mul (a, m) c = Conv (b, w) y = Add ({operands})") == dict.fromkeys(
            "bcy", "y"
        )


def test_no_block_is_made_of_nodes_between_which_another_block_has_to_run(owners):
    # The block of g reads a and gives v: with a and b in one block the two would wait for each other.
    crossed = (
        "a = Conv (x, w) v = Conv (m, w) u = Mul (v, {}) g = Add (u, m) b = Mul (a, v) h = Add (b, x) y = Mul (g, h)"
    )
    assert owners(crossed.format("a")) == dict.fromkeys("vug", "g")
    assert owners(crossed.format("x")) == dict.fromkeys("vug", "g") | dict.fromkeys("abh", "h")


def test_the_paths_between_the_operands_may_lead_through_no_owned_node(owners):
    found = owners("a = Conv (x, w) b = Mul (a, m) c = Conv (b, w) d = Add (c, a) e = Mul (d, m) y = Add (e, x)")
    assert found == dict.fromkeys("bcd", "d")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_immediate_dominator_is_the_nearest_tensor_on_all_paths(data):
    found = _Dominators(["0"])
    above = {"0": {ENTRY}}  # tensor -> all its dominators but itself
    for number in range(1, data.draw(st.integers(1, 40))):
        sources = data.draw(st.lists(st.integers(max(0, number - 8), number - 1).map(str), max_size=3))
        found.add([str(number)], sources)
        shared = [above[tensor] | {tensor} for tensor in sources]
        above[str(number)] = set.intersection(*shared) if shared else {ENTRY}
        assert found.parent[str(number)] == max(above[str(number)], key=lambda tensor: len(above.get(tensor, ())))
