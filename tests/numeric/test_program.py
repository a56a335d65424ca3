"""The integer program against all choices tried one by one, and its relaxation against its own bound."""

import itertools

import numpy as np
import pytest

from onnxcalib.numeric import program as program_module
from onnxcalib.numeric.program import InfeasibleError, choose


def draw(seed):
    """A small instance with many ties: values, rows, limits."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, rng.integers(1, 6))
    values = [rng.integers(0, 5, count) / (1 if seed % 2 else 7.3) for count in counts]
    rows = [[rng.integers(1, 9, count) for count in counts]]
    limits = [rng.integers(len(counts), 6 * len(counts))]
    if seed % 3 == 0:
        rows.append([rng.random(count) for count in counts])
        limits.append(0.6 * len(counts))
    return values, rows, limits


def total(row, choice):
    return sum(of_set[n] for of_set, n in zip(row, choice, strict=True))


def try_all(values, rows, limits):
    """Least value, and least first row among its choices, up to rounding; None where nothing is within the limits."""
    found = [
        (round(total(values, choice), 9), total(rows[0], choice))
        for choice in itertools.product(*(range(len(of_set)) for of_set in values))
        if all(total(row, choice) <= limit for row, limit in zip(rows, limits, strict=True))
    ]
    return min(found, default=None)


@pytest.mark.parametrize("seed", range(200))
def test_the_choice_is_the_best_of_all_and_the_cheapest_of_equals(seed):
    values, rows, limits = draw(seed)
    best = try_all(values, rows, limits)
    if best is None:
        with pytest.raises(InfeasibleError):
            choose(values, rows, limits)
        return
    found = choose(values, rows, limits, ties=rows[0])
    assert (round(found.value, 9), total(rows[0], found.candidates)) == best and found.bound == found.value


@pytest.mark.parametrize("seed", range(0, 200, 5))
def test_the_relaxation_is_within_the_limits_and_its_bound_holds(seed):
    values, rows, limits = draw(seed)
    best = try_all(values, rows, limits)
    if best is None:
        return
    try:
        found = choose(values, rows, limits, most_sets=0)
    except InfeasibleError:  # of several rows a rounding may find none
        assert len(rows) > 1
        return
    assert all(total(row, found.candidates) <= limit for row, limit in zip(rows, limits, strict=True))
    assert found.bound <= best[0] + 1e-6 and found.value >= best[0] - 1e-9


def test_many_sets_come_close_to_their_bound():
    rng = np.random.default_rng(0)
    bits = np.array([8, 6, 5, 4, 3, 2])
    values = [scale * 4.0 ** (8 - bits) * rng.lognormal(0, 0.3, 6) for scale in rng.lognormal(0, 2, 3000)]
    size = [weights * bits for weights in rng.integers(1e3, 1e6, 3000)]
    limit = 0.6 * sum(row[0] for row in size)
    found = choose(values, [size], [limit])
    assert total(size, found.candidates) <= limit
    assert found.bound <= found.value <= 1.001 * found.bound


def test_limits_out_of_reach_are_refused_with_what_can_be_reached():
    size, work = [[4, 2], [8, 4]], [[1, 3], [1, 3]]
    values = [[0, 1], [0, 1]]
    with pytest.raises(InfeasibleError) as found:
        choose(values, [size], [5])
    assert found.value.least == (6,)
    with pytest.raises(InfeasibleError) as found:
        choose(values, [size, work], [6, 2])
    assert found.value.least == (12, 6)


def test_an_infinite_value_is_never_chosen():
    assert choose([[np.inf, 3.0], [1.0, np.inf]], [[[1, 9], [1, 1]]], [10]).candidates == (1, 0)


def test_where_time_runs_out_the_relaxation_answers(monkeypatch):
    values, rows, limits = draw(1)
    monkeypatch.setattr(program_module, "SECONDS", 0.0)
    found = choose(values, rows, limits)
    assert all(total(row, found.candidates) <= limit for row, limit in zip(rows, limits, strict=True))


def test_nothing_is_limited_where_there_are_no_rows():
    assert choose([[2.0, 1.0], [0.0, 5.0]]).candidates == (1, 0)


def test_where_the_solver_finds_no_room_for_ties_the_choice_stands(monkeypatch):
    solve = program_module._Program.solve

    def refuse_ties(self, objective, rows):
        if len(rows) > 1:  # the row of the value, at its least: by its tolerance the solver may call it infeasible
            raise InfeasibleError([0.0] * len(rows))
        return solve(self, objective, rows)

    monkeypatch.setattr(program_module._Program, "solve", refuse_ties)
    assert choose([[1.0, 1.0, 2.0]], [[[3.0, 2.0, 1.0]]], [3.0], ties=[[3.0, 2.0, 1.0]]).value == 1.0
