"""The tallies that score both models, by labels and by a user's metric, fed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcalib.data import open_calibration
from onnxcalib.errors import DataError, GateError
from onnxcalib.numeric.intervals import drop_interval, mean_interval
from onnxcalib.runtime.store import Store
from onnxcalib.spec import InputSpec
from onnxcalib.validation.score import LabelTally, MetricTally

ROWS = [InputSpec("x", np.dtype(np.float32), (None, 6))]
LABELS = np.array([0, 1, 2, 3])
ORDER = np.arange(4)


def one_hot(classes, count=6):
    return np.eye(count, dtype=np.float32)[np.asarray(classes)]


@pytest.fixture
def samples(draw):
    return open_calibration(draw(4, 6), ROWS)


@pytest.fixture
def by_label(samples):
    """A tally of four samples, by labels."""

    def make(labels=LABELS, order=ORDER, *, demanded=True):
        return LabelTally(labels, samples, order, demanded=demanded)

    return make


@pytest.fixture
def by_metric():
    """A tally of four samples, by a function of the outputs and labels."""
    with Store() as store:
        yield lambda metric, order=ORDER: MetricTally("mine", metric, store, order)


# By labels


def test_right_answers_are_counted_over_batches_in_both_models_and_in_pairs(by_label):
    tally = by_label()
    tally.add({"y": one_hot([0, 1])}, {"y": one_hot([0, 5])}, 2)  # the quantized model loses one
    tally.add({"y": one_hot([5, 3])}, {"y": one_hot([2, 3])}, 2)  # and gains one
    top_1, top_5 = tally.records()
    assert (top_1.name, top_1.float_score, top_1.quantized_score, top_1.drop) == ("top-1", 75.0, 75.0, 0.0)
    low, high = drop_interval(1, 1, 4)
    assert top_1.drop_interval == (100 * low, 100 * high) and top_1.output == "y"
    assert (top_5.name, tally.notes) == ("top-5", [])


@pytest.mark.parametrize(("classes", "names"), [(4, ["top-1"]), (5, ["top-1"]), (6, ["top-1", "top-5"])])
def test_top_5_needs_more_than_5_classes(by_label, classes, names):
    tally = by_label()
    tally.add({"y": one_hot(LABELS, classes)}, {"y": one_hot(LABELS, classes)}, 4)
    assert [record.name for record in tally.records()] == names


def test_labels_follow_the_samples_where_these_are_run_in_another_order(by_label):
    order = np.array([3, 0, 2, 1])
    tally = by_label(order=order)
    for part in (order[:2], order[2:]):
        tally.add({"y": one_hot(LABELS[part])}, {"y": one_hot(LABELS[part])}, 2)
    assert [record.float_score for record in tally.records()] == [100.0, 100.0]


def test_of_several_outputs_the_one_counts_on_which_the_float_model_is_most_accurate(by_label):
    tally = by_label()
    features, scores = one_hot([5, 1, 5, 5], 8), one_hot([0, 1, 2, 5])
    tally.add({"features": features, "scores": scores}, {"features": one_hot(LABELS, 8), "scores": scores}, 4)
    assert {record.output for record in tally.records()} == {"scores"}
    assert tally.notes == [
        "labels: compared with output scores, on which the float model is most accurate, and not with features"
    ]


def test_an_output_with_fewer_classes_than_the_labels_ask_for_is_left_out_without_a_word(by_label):
    tally = by_label()
    outputs = {"coarse": one_hot([0, 1, 2, 2], 3), "fine": one_hot(LABELS)}
    tally.add(outputs, outputs, 4)
    assert {record.output for record in tally.records()} == {"fine"} and tally.notes == []


def test_a_label_beyond_the_widest_output_is_refused(by_label):
    with pytest.raises(DataError, match=r"output y: 1 of 4 labels are no class of the model, the first is 6 of sample"):
        by_label(np.array([0, 1, 6, 2])).add({"y": one_hot(LABELS)}, {"y": one_hot(LABELS)}, 4)


UNFIT = {
    "integers": {"y": one_hot(LABELS).astype(np.int64)},
    "one score a sample": {"y": np.ones((4, 1), np.float32)},
    "maps": {"y": np.ones((4, 6, 2), np.float32)},
    "no row for each sample": {"y": np.ones((1, 6), np.float32)},
    "a sequence": {"y": [np.ones((4, 6), np.float32)]},
}


@pytest.mark.parametrize("outputs", UNFIT.values(), ids=UNFIT)
def test_labels_that_fit_no_output_are_refused_where_they_are_demanded_and_else_noted(by_label, outputs):
    with pytest.raises(GateError, match=r"labels: found the outputs y .*; leave the labels out, or give --metric"):
        by_label().add(outputs, outputs, 4)
    tally = by_label(demanded=False)
    tally.add(outputs, outputs, 4)
    (note,) = tally.notes
    assert note.startswith("labels: found the outputs y ") and note.endswith("; the labels of the data are not used")
    assert tally.records() == []


def test_an_output_whose_shape_the_quantized_model_changes_does_not_fit(by_label):
    with pytest.raises(GateError, match="labels need class scores"):
        by_label().add({"y": one_hot(LABELS)}, {"y": one_hot(LABELS, 7)}, 4)


def test_a_label_tally_without_samples_has_no_records(by_label):
    assert by_label().records() == []


@pytest.mark.parametrize(
    ("classes", "right", "samples", "warned"),
    [
        (10, 1, 6, True),  # below 2 / 10
        (10, 1, 5, False),
        (2, 2, 7, True),  # below 30%
        (2, 3, 10, False),
        (1000, 0, 20, True),
        (1000, 1, 20, False),
    ],
)
def test_a_float_model_that_is_hardly_better_than_chance_is_warned_of(draw, classes, right, samples, warned):
    labels = np.zeros(samples, np.int64)
    tally = LabelTally(labels, open_calibration(draw(samples, 6), ROWS), np.arange(samples), demanded=True)
    outputs = {"y": one_hot((np.arange(samples) >= right).astype(int), classes)}
    tally.add(outputs, outputs, samples)
    assert tally.records()[0].float_score == pytest.approx(100 * right / samples)
    share = f"{100 * right / samples:.1f}% of the samples"
    text = f"labels: the float model is right in only {share}; check the preprocessing and the labels"
    assert tally.notes == [text] * warned


# By a metric


def test_a_metric_gets_all_batches_as_one_array_and_the_labels(by_metric, draw):
    values, seen = draw(4, 3), []

    def metric(outputs, labels):
        seen.append((np.array(outputs["y"]), labels))
        return float(outputs["y"].sum())

    tally = by_metric(metric)
    for part in (slice(0, 3), slice(3, 4)):
        tally.add({"y": values[part]}, {"y": 2 * values[part]}, len(values[part]))
    record = tally.record(LABELS)
    for factor, (outputs, labels) in zip((1, 2), seen, strict=True):
        np.testing.assert_array_equal(outputs, factor * values)
        assert labels is LABELS
    assert record.float_score == pytest.approx(values.sum()) and record.drop == pytest.approx(-values.sum())
    assert (record.name, record.drop_interval, record.output) == ("mine", None, None)


def test_a_metric_gets_the_samples_in_their_own_order_whatever_order_they_are_run_in(by_metric):
    order = np.array([2, 0, 3, 1])
    seen = []
    tally = by_metric(lambda outputs, labels: seen.append(outputs["y"].ravel().tolist()) or 0.0, order)
    tally.add({"y": order[:, None].astype(np.float32)}, {"y": order[:, None].astype(np.float32)}, 4)
    tally.record(None)
    assert seen == [[0, 1, 2, 3]] * 2


def test_a_number_for_each_sample_gives_the_interval_of_the_mean_drop(by_metric):
    wanted, given = np.array([[3.0], [1], [2], [4]]), np.array([[2.0], [1], [2], [2]])
    tally = by_metric(lambda outputs, labels: outputs["y"][:, 0])
    tally.add({"y": wanted}, {"y": given}, 4)
    record = tally.record(None)
    assert (record.float_score, record.quantized_score, record.drop) == (2.5, 1.75, 0.75)
    assert record.drop_interval == mean_interval((wanted - given)[:, 0], 3.0)


def test_one_sample_without_a_batch_axis_is_a_row(by_metric):
    tally = by_metric(lambda outputs, labels: float(outputs["y"].shape == (2, 3)))
    for _ in range(2):
        tally.add({"y": np.ones(3)}, {"y": np.ones(3)}, 1)
    assert tally.record(None).float_score == 1.0


@pytest.mark.parametrize("output", [np.array(["a", "b"]), [np.ones(2)], np.ones((3, 2))], ids=["texts", "list", "rows"])
def test_an_output_without_a_row_of_numbers_for_each_sample_is_refused(by_metric, output):
    tally = by_metric(lambda outputs, labels: 0.0)
    with pytest.raises(GateError, match=r"metric mine: output y has no row of one shape for each sample; .* --metric"):
        tally.add({"y": output}, {"y": output}, 2)


def fail(outputs, labels):
    raise KeyError("z")


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (fail, r"metric mine: raised KeyError: 'z'; .*; correct it"),
        (lambda outputs, labels: [1.0, 2.0], r"metric mine: returned shape \(2,\) for the float model; .* 4 samples"),
        (lambda outputs, labels: np.nan, r"metric mine: returned numbers that are not finite for the float model"),
    ],
)
def test_a_metric_that_fails_is_refused_with_what_it_gave(by_metric, metric, text):
    tally = by_metric(metric)
    tally.add({"y": np.ones((4, 1))}, {"y": np.ones((4, 1))}, 4)
    with pytest.raises(GateError, match=text):
        tally.record(None)


def test_nan_of_the_quantized_model_is_a_score(by_metric):
    tally = by_metric(lambda outputs, labels: outputs["y"][:, 0])
    tally.add({"y": np.ones((4, 1))}, {"y": np.full((4, 1), np.nan)}, 4)
    record = tally.record(None)
    assert (record.float_score, record.drop_interval) == (1.0, None) and np.isnan(record.quantized_score)
