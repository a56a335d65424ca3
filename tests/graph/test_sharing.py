"""Which tensors share a grid, by default and where a target wants operators aligned."""

from __future__ import annotations

import math

import pytest

from onnxcalib.graph.index import Index
from onnxcalib.graph.sharing import share_grids


@pytest.fixture
def share(build):
    """The sets of all tensors of a graph, and the tensors whose grid has no negative values."""

    def run(body: str, *, bounds: dict[str, float] | None = None, aligned: tuple[str, ...] = ()):
        model = build(f"g (float[N, 4, 8, 8] a, float[N, 4, 8, 8] b) => (float[N, c, h, w] y) {{ {body} }}")
        index, nodes = Index(model.graph), list(model.graph.node)
        tensors = [*index.inputs, *(t for node in nodes for t in node.output)]
        return share_grids(index, nodes, tensors, bounds or {}, aligned)

    return run


def test_a_mover_has_one_grid_on_both_sides(share):
    assert share("y = MaxPool <kernel_shape = [2, 2]> (a)")[0] == (("a", "y"),)


def test_a_concat_shares_with_what_it_alone_reads(share):
    sets, _ = share("c = Neg (a) z = Neg (b) y = Concat <axis = 1> (c, b)")
    assert sets == (("c", "y"),)


def test_a_target_that_wants_concats_aligned_has_all_sides_on_one_grid(share):
    sets, _ = share("c = Neg (a) z = Neg (b) y = Concat <axis = 1> (c, b)", aligned=("Concat",))
    assert sets == (("b", "c", "y"),)


def test_unlike_ranges_are_joined_for_a_target_alone_and_lose_their_bound(share):
    body, bounds = "c = Relu (a) d = Neg (b) y = Concat <axis = 1> (c, d)", {"c": math.inf}
    assert share(body, bounds=bounds) == ((), bounds)
    assert share(body, bounds=bounds, aligned=("Concat",)) == ((("c", "d", "y"),), {})


def test_alike_ranges_keep_their_bound(share):
    body, bounds = "c = Relu (a) d = Relu (b) y = Concat <axis = 1> (c, d)", {"c": math.inf, "d": math.inf}
    assert share(body, bounds=bounds, aligned=("Concat",)) == ((("c", "d", "y"),), bounds)


def test_a_pool_shares_where_the_target_aligns_it(share):
    body = "y = AveragePool <kernel_shape = [2, 2]> (a)"
    assert share(body)[0] == () and share(body, aligned=("AveragePool",))[0] == (("a", "y"),)
