import numpy as np
import pytest

from onnxcalib.graph.parts import Part
from onnxcalib.quantization.output_tally import OutputTally


@pytest.fixture
def draw():
    return np.random.default_rng(0)


def make_pair(draw, *shape, noise=0.1):
    wanted = draw.normal(size=shape)
    return wanted, wanted + noise * draw.normal(size=shape)


def test_estimates_take_note_of_samples_seen_and_measures_do_not(draw):
    tally, plain = OutputTally(estimates=True), OutputTally()
    held, seen = make_pair(draw, 16, 10), make_pair(draw, 48, 10, noise=0.05)
    for each in (tally, plain):
        each.add({"y": held[0]}, {"y": held[1]}, 16)
    (before,) = tally.records()
    tally.add_seen({"y": seen[0], "other": seen[0]}, {"y": seen[1], "other": seen[1]}, 48)
    (record,), (measured,) = tally.records(), plain.records()
    assert before.expected.sqnr_db == measured.sqnr_db and record.expected.sqnr_db != measured.sqnr_db
    assert before.expected.agreement != record.expected.agreement
    assert measured.expected is None
    assert (record.sqnr_db, record.agreement) == (measured.sqnr_db, measured.agreement)


def test_parts_have_estimates_of_their_own(draw):
    parts = {"y": (Part(1, 0, 4, 7, ("boxes",)), Part(1, 4, 7, 7, ("scores",)))}
    tally = OutputTally(parts=parts, estimates=True)
    soft = draw.dirichlet(np.ones(3), size=(64, 20)).transpose(0, 2, 1)
    boxes = 100 * make_pair(draw, 64, 4, 20)[0]
    wanted = np.concatenate([boxes, soft], axis=1)
    given = wanted + 0.01 * draw.normal(size=wanted.shape)
    tally.add({"y": wanted[:16]}, {"y": given[:16]}, 16)
    tally.add_seen({"y": wanted[16:]}, {"y": given[16:]}, 48)
    (record,) = tally.records()
    first, second = record.parts
    assert record.expected.agreement is None and first.expected.agreement is None
    assert second.expected.agreement == pytest.approx(second.agreement, abs=0.02)
    assert first.expected.sqnr_db > second.expected.sqnr_db + 20


def test_what_has_no_float_values_has_no_estimate(draw):
    tally = OutputTally(estimates=True)
    index = draw.integers(5, size=16)
    tally.add({"y": index}, {"y": index}, 16)
    tally.add_seen({"y": index}, {"y": index}, 16)
    assert tally.records()[0].expected is None
    few = OutputTally(estimates=True)
    few.add({"y": np.eye(5)}, {"y": np.eye(5) + 0.1}, 5)
    assert few.records()[0].expected is None


def test_the_tensors_of_a_sequence_are_estimated_from_their_errors(draw):
    tally = OutputTally(estimates=True)
    for add, count in ((tally.add, 16), (tally.add_seen, 48)):
        wanted, given = make_pair(draw, count, 4, 6)
        add({"y": [wanted]}, {"y": [given]}, count)
    (record,) = tally.records()
    assert record.name == "y[0]" and record.expected.sqnr_db == pytest.approx(20, abs=0.3)


def test_fill_values_of_masked_scores_add_nothing_and_are_no_values_left_out(draw):
    wanted, given = make_pair(draw, 32, 10)
    mask = np.zeros((32, 10), bool)
    mask[:, 3] = True
    masked, plain = OutputTally(), OutputTally()
    masked.add({"y": np.where(mask, -1e9, wanted)}, {"y": np.where(mask, -1e9, given)}, 32)
    plain.add({"y": wanted[~mask].reshape(32, 9)}, {"y": given[~mask].reshape(32, 9)}, 32)
    (found,), (expected,) = masked.records(), plain.records()
    assert found.sqnr_db == pytest.approx(expected.sqnr_db) and found.agreement == expected.agreement
    assert found.left_out == 0 and [*masked.warnings()] == []
