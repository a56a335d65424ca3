"""Budgets met, and losses that do not add up."""

from dataclasses import replace

import pytest

from onnxcalib.errors import ConfigError
from onnxcalib.planning import program
from onnxcalib.planning.allocate import allocate, allocate_for_agreement
from onnxcalib.planning.program import Budgets
from onnxcalib.spec import BitSet, Candidate, Cost

EIGHT, FOUR = Candidate(8, 8), Candidate(4, 8)


def make_set(name, loss, size):
    costs = {EIGHT: Cost(size, 64 * size), FOUR: Cost(size // 2, 32 * size)}
    return BitSet((name,), size, {EIGHT: 0.0, FOUR: loss}, costs)


SETS = [make_set("a", 3.0, 100), make_set("b", 1.0, 100), make_set("c", 2.0, 200)]


def size_of(bits, rest=10):
    return rest + sum(each.costs[c].bytes for each, c in zip(SETS, bits, strict=True))


def loss_of(bits):
    return sum(each.losses[c] for each, c in zip(SETS, bits, strict=True))


def run(budgets, size=size_of, loss=loss_of):
    return allocate(SETS, budgets, size_of=size, loss_of=loss)


def test_the_least_loss_within_a_size_is_found_and_measured():
    found = run(Budgets(bytes=310))
    assert found.bits == (EIGHT, EIGHT, FOUR) and size_of(found.bits) == 310
    assert found.predicted_loss == found.measured_loss == found.bound == 2.0 and found.rounds == 1


def test_bytes_of_no_set_that_depend_on_the_choice_stay_within_the_budget():
    def size(bits):
        return size_of(bits, rest=10 + 30 * (bits[1] != bits[0]))

    found = run(Budgets(bytes=360), size)
    assert size((EIGHT, FOUR, EIGHT)) == 390 and found.bits == (EIGHT, EIGHT, FOUR)


def test_the_smallest_file_within_a_loss_is_found():
    found = run(Budgets(loss=3.0))
    assert size_of(found.bits) == 260 and found.measured_loss == 3.0


def test_bit_operations_are_a_budget_too():
    found = run(Budgets(bops=32 * 400 + 32 * 100))
    assert found.bits == (EIGHT, FOUR, FOUR)


def test_where_losses_do_not_add_up_they_are_measured_around_the_solution():
    def loss(bits):  # b and c together lose far more than apart
        return loss_of(bits) + 20 * (bits[1] == bits[2] == FOUR)

    found = run(Budgets(bytes=260), loss=loss)
    assert found.bits == (FOUR, EIGHT, FOUR)
    assert found.rounds > 1 and found.measured_loss == found.predicted_loss == 5.0


@pytest.mark.parametrize(
    ("budgets", "text"),
    [
        (Budgets(bytes=200), r"^max_size: found 200 bytes; the smallest that can be reached is 210 bytes; raise it"),
        (Budgets(bops=100), r"^max_bops: found 100 bit operations; the smallest that can be reached is 12,800"),
        (Budgets(bytes=210, loss=5.0), r"^max_size: found 210 bytes; .* is 260 bytes; max_loss: found 5; .* is 6;"),
    ],
)
def test_a_budget_out_of_reach_is_refused_with_the_smallest_that_is_not(budgets, text):
    with pytest.raises(ConfigError, match=text):
        run(budgets)


def test_a_limit_on_the_loss_that_holds_when_measured_is_used_up():
    def loss(bits):  # together they lose far less than the sum of each alone
        return (0.0, 3.0, 2.0, 2.2)[sum(c == FOUR for c in bits)]

    found = run(Budgets(loss=3.5), loss=loss)
    assert found.measured_loss <= 3.5 and size_of(found.bits) == 210


def test_a_later_round_that_finds_no_choice_leaves_the_best_that_was_measured():
    def loss(bits):
        return (0.0, 3.0, 8.0, 9.0)[sum(c == FOUR for c in bits)]

    found = run(Budgets(loss=3.0), loss=loss)
    assert found.measured_loss == 3.0 and size_of(found.bits) == 310


def test_the_smallest_choice_is_taken_where_others_turn_out_larger_than_they_seemed():
    def size(bits):
        return size_of(bits) + 100 * (len(set(bits)) > 1)

    found = run(Budgets(bytes=260), size)
    assert found.bits == (FOUR, FOUR, FOUR)


def test_a_loss_that_no_choice_keeps_when_measured_is_refused():
    found = iter([3.01, *[3.5] * 99])
    with pytest.raises(ConfigError, match=r"^max_loss: found 3; the smallest that was reached is 3.01; raise it$"):
        run(Budgets(loss=3.0), loss=lambda _: next(found))


@pytest.mark.parametrize(
    ("solves", "text"),
    [
        (5, r"^max_size: found 400 bytes; .* is 710 bytes; max_bops: found 25,600 bit operations; .* is 22,400 "),
        (1, r"^max_size: found no choice within it and the other budgets that holds when measured"),
    ],
)
def test_two_budgets_that_no_choice_keeps_when_measured_are_refused(solves, text, monkeypatch):
    monkeypatch.setattr(program, "SOLVES", solves)

    def size(bits):  # what is within the bit operations turns out too large; the smallest is not within them
        return size_of(bits) + 500 * (len(set(bits)) > 1)

    sets = [
        replace(each, costs={EIGHT: each.costs[EIGHT], FOUR: replace(each.costs[FOUR], bops=10**6)}) for each in SETS
    ]
    sets[0] = SETS[0]
    with pytest.raises(ConfigError, match=text):
        allocate(sets, Budgets(bytes=400, bops=64 * 400), size_of=size, loss_of=loss_of)


def test_the_smallest_choice_for_an_agreement_keeps_the_other_budgets():
    agreement = {0: 100.0, 1: 99.0, 2: 97.0, 3: 90.0}

    def agree(bits):
        return agreement[sum(c == FOUR for c in bits)]

    bits, _ = allocate_for_agreement(SETS, Budgets(), 96, size_of=size_of, agreement_of=agree)
    assert size_of(bits) == 260 and agree(bits) == 97
    heavy = [replace(e, costs={EIGHT: e.costs[EIGHT], FOUR: replace(e.costs[FOUR], bops=10**6)}) for e in SETS]
    budgets = Budgets(bops=64 * 400)  # only eight bits keep it
    bits, _ = allocate_for_agreement(heavy, budgets, 10, size_of=size_of, agreement_of=agree)
    assert bits == (EIGHT, EIGHT, EIGHT)


def test_a_refusal_names_no_budget_that_was_not_given():
    with pytest.raises(ConfigError, match=r"^max_bops: found 1 bit operations; the smallest that can be reached"):
        allocate_for_agreement(SETS, Budgets(bops=1), 10, size_of=size_of, agreement_of=lambda _: 100.0)


def test_a_candidate_of_infinite_loss_is_no_way_to_a_small_file():
    sets = [replace(SETS[0], losses={EIGHT: 0.0, FOUR: float("inf")}), *SETS[1:]]
    found = allocate(sets, Budgets(bytes=320), size_of=size_of, loss_of=loss_of)
    assert found.bits[0] == EIGHT


def test_where_the_smallest_file_agrees_enough_it_is_the_answer():
    bits, bound = allocate_for_agreement(SETS, Budgets(), 80, size_of=size_of, agreement_of=lambda bits: 90.0)
    assert bits == (FOUR, FOUR, FOUR) and bound == 6.0


def test_a_candidate_of_infinite_loss_is_not_chosen_where_the_loss_is_limited():
    sets = [replace(SETS[0], losses={EIGHT: 0.0, FOUR: float("inf")}), *SETS[1:]]
    found = allocate(sets, Budgets(loss=100.0), size_of=size_of, loss_of=loss_of)
    assert found.bits == (EIGHT, FOUR, FOUR) and found.bound == 260


def test_without_neighbours_predictions_are_scaled_to_what_is_measured():
    measured = []

    def loss(bits):  # twice the sum: the smallest file within the sum loses too much
        measured.append(bits)
        return 2 * loss_of(bits)

    found = allocate(SETS, Budgets(loss=6.0), size_of=size_of, loss_of=loss, around=False)
    assert found.measured_loss <= 6.0 and len(measured) <= 3
    assert size_of(found.bits) == min(size_of(bits) for bits in measured if 2 * loss_of(bits) <= 6.0)
    allocate(SETS, Budgets(bytes=300), size_of=size_of, loss_of=loss, around=False)
    assert len(measured) <= 4  # a factor changes no choice of least loss
