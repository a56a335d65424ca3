import numpy as np
import pytest
from scipy import integrate, stats

from onnxcalib.numeric.intervals import agreement_interval
from onnxcalib.numeric.margins import FEWEST, POSITIONS, ROWS, WORTH, Margins, fit_errors

ANY = (0.0, 1.0)


def make_scores(count, seed, noise=0.3, shrink=0.0, growth=0.0, heavy=False):
    """Class scores (count, 10) and errors of them, which may depend on the margin and have heavy tails."""
    draw = np.random.default_rng(seed)
    scores = draw.normal(size=(count, 10)) * draw.uniform(0.5, 2, (count, 1))
    errors = noise * draw.normal(size=scores.shape)
    if heavy:
        errors *= np.exp(0.7 * draw.normal(size=(count, 1)))
    ordered = np.sort(scores, axis=1)
    margin = (ordered[:, -1] - ordered[:, -2])[:, None]
    return scores, errors * np.sqrt(1 + growth * margin) - shrink * scores


def collect(scores, errors, known):
    found = Margins()
    found.add(scores[:known], scores[:known] + errors[:known], known)
    if known < len(scores):
        found.add(scores[known:], None, len(scores) - known)
    return found


def count_equal(scores, errors):
    return int((scores.argmax(1) == (scores + errors).argmax(1)).sum())


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"noise": 0.05},
        {"shrink": 0.3},
        {"growth": 2.0},
        {"noise": 0.15, "shrink": 0.1, "growth": 2.0, "heavy": True},
    ],
)
def test_the_estimate_is_several_times_nearer_than_the_count_and_its_interval_holds_the_truth(kind):
    every, draws, known = make_scores(40_000, 99, **kind), 50, 64
    truth = count_equal(*every) / 40_000
    estimates, counts, held = [], [], []
    for at in range(draws):
        scores, errors = (x[at * 256 : (at + 1) * 256] for x in every)
        equal = count_equal(scores[:known], errors[:known])
        share, (low, high) = collect(scores, errors, known).estimate(agreement_interval(equal, known))
        estimates.append(share - truth)
        counts.append(equal / known - truth)
        held.append(low <= truth <= high)
    assert abs(np.mean(estimates)) < max(0.004, 0.1 * (1 - truth))
    assert np.sqrt(np.mean(np.square(estimates))) < 0.5 * np.sqrt(np.mean(np.square(counts)))
    assert np.mean(held) >= 0.88  # 93 to 97% of 150 draws


def test_errors_are_fitted_to_margins_though_a_few_are_large():
    draw = np.random.default_rng(0)
    margins = draw.uniform(0, 10, (2000, 4))
    errors = -0.1 * margins + np.sqrt(0.5 + 0.2 * margins) * draw.standard_t(4, margins.shape)
    errors[:5] *= 50
    slope, floor, growth = fit_errors(margins, errors)
    assert slope == pytest.approx(-0.1, abs=0.03) and growth / floor == pytest.approx(0.4, rel=0.3)


def test_without_a_change_the_estimate_is_1_and_its_interval_no_point():
    scores, errors = make_scores(256, 0)
    for size in (0, 1e-9):
        share, (low, high) = collect(scores, size * errors, 64).estimate(agreement_interval(64, 64))
        assert share == high == 1 and 0.99 < low < 1


def test_the_estimate_is_the_same_each_time():
    found = collect(*make_scores(600, 0), 600)
    assert found.estimate(ANY) == found.estimate(ANY)


def test_equal_scores_that_stay_equal_agree():
    constant = np.ones((64, 5))
    assert collect(constant, 0 * constant, 64).estimate(ANY)[0] == 1


def test_a_multiple_of_the_scores_changes_nothing():
    scores, _ = make_scores(64, 0)
    assert collect(scores, -0.5 * scores, 64).estimate(ANY)[0] == 1


def test_the_unit_of_the_scores_does_not_matter():
    scores, errors = make_scores(128, 0)
    whole = collect(scores, errors, 64).estimate(ANY)[0]
    for unit in (1e-30, 1e30):
        assert collect(unit * scores, unit * errors, 64).estimate(ANY)[0] == pytest.approx(whole, abs=1e-3)


def test_the_estimate_stays_within_the_interval_of_the_count():
    scores, errors = make_scores(128, 0)
    found = collect(scores, errors, 64)
    assert found.estimate((0.2, 0.3))[0] == 0.3
    share, (low, high) = found.estimate((0.995, 0.999))
    assert share == 0.995 and low < share <= high


def test_probabilities_tell_the_same_as_their_logarithms():
    scores, errors = make_scores(256, 0)
    soft = [np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (scores, scores + errors)]
    logs = [np.log(x) for x in soft]
    from_soft, from_logs = (collect(x[0], x[1] - x[0], 64).estimate(ANY)[0] for x in (soft, logs))
    assert from_soft == pytest.approx(from_logs, abs=0.005)


def test_positions_of_a_sample_are_few_and_count_for_all_of_it():
    scores, errors = make_scores(64 * 200, 0, noise=0.2)
    soft = [np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (scores, scores + errors)]
    long, short = ([x.reshape(64, 200, 10)[:, part] for x in soft] for part in (slice(None), slice(0, 4)))
    found = Margins()
    found.add(*long, 64)
    share = found.estimate(ANY)[0]
    assert share == pytest.approx(count_equal(scores, errors) / len(scores), abs=0.01)
    both = Margins()
    both.add(short[0], short[0], 64)  # as many samples of four positions, whose answers stay
    both.add(*long, 64)
    assert both.estimate(ANY)[0] == pytest.approx(share, abs=0.02)
    assert sum(len(batch[0]) for batch in both._batches) == 64 * (POSITIONS + 4)


def test_no_more_answers_are_kept_than_tell_something():
    found = Margins()
    for _ in range(20):
        found.add(np.random.default_rng(0).normal(size=(4096, 3)), None, 4096)
    assert sum(len(batch[0]) for batch in found._batches) == ROWS


@pytest.mark.parametrize(
    ("reference", "other"),
    [
        (np.zeros((64, 1)), np.zeros((64, 1))),
        (np.ones((64, 3, 4)), np.ones((64, 3, 4))),
        (np.eye(64), np.full((64, 64), np.nan)),
        (np.eye(64), None),
        (np.eye(FEWEST - 1), np.eye(FEWEST - 1)),
        (np.full((64, 4), -np.inf), np.full((64, 4), -np.inf)),
    ],
    ids=["no classes", "no positions", "broken", "no errors", "few", "no finite row"],
)
def test_there_is_no_estimate_where_there_is_nothing_to_make_it_from(reference, other):
    found = Margins()
    found.add(reference, other, len(reference))
    assert found.estimate(ANY) is None


def test_a_known_margin_is_worth_what_the_integrals_say():
    once, twice = (integrate.quad(lambda x, power=power: stats.norm.sf(x) ** power, 0, 20)[0] for power in (1, 2))
    assert WORTH == pytest.approx(once / twice, abs=0.05)
