"""Least cut: put each of many items on one of two sides, at the least sum of what the sides and their borders cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# scipy's flows are int32, and those through one item are added.
MOST_COST = 2**24
# Keeps two items on their sides: no sum of costs reaches it.
NEVER = float("inf")
FORCED = 2**30


def cut(first: Sequence[float], second: Sequence[float], borders: Mapping[tuple[int, int], float]) -> np.ndarray:
    """Which items are on the first side, as booleans; of equal cuts the one with the fewest items on it.

    first, second: what each item costs on either side, NEVER where it cannot be there. borders: (a, b) -> what it costs
    if a is on the first side and b on the second; NEVER where that must not be. Costs are at least 0, and rounded to
    whole numbers; where one is over MOST_COST, all are lowered by the same factor. Items on the first side cost their
    cut edge to the sink.
    """
    largest = max((cost for cost in (*first, *second, *borders.values()) if cost != NEVER), default=0.0)
    from scipy.sparse import csr_array  # a fifth of what starting takes
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    factor = min(1.0, MOST_COST / max(largest, 1.0))
    source, sink = len(first), len(first) + 1
    edges: dict[tuple[int, int], int] = {}
    for item, (here, there) in enumerate(zip(first, second, strict=True)):
        edges[item, sink], edges[source, item] = _capacity(factor * here), _capacity(factor * there)
    for (a, b), cost in borders.items():
        edges[a, b] = edges.get((a, b), 0) + _capacity(factor * cost)
    rows, columns = np.array([*edges], np.int32).reshape(-1, 2).T
    shape = (sink + 1, sink + 1)
    capacities = csr_array((np.array([*edges.values()], np.int32), (rows, columns)), shape=shape)
    flow = maximum_flow(capacities, source, sink).flow
    left = csr_array(capacities - flow)
    left.data = np.where(left.data > 0, 1, 0)
    left.eliminate_zeros()
    reached = breadth_first_order(left, source, return_predecessors=False)
    on_first = np.zeros(sink + 1, bool)
    on_first[reached] = True
    result: np.ndarray = on_first[:source]
    return result


def _capacity(cost: float) -> int:
    return FORCED if cost == NEVER else round(cost)
