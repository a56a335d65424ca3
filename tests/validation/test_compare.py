"""Comparing two models on a whole set: outputs against each other, against labels, and by a user's own metric."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from onnxcalib.data import open_calibration
from onnxcalib.errors import ConfigError, DataError, ModelError
from onnxcalib.graph.load import inputs_of
from onnxcalib.numeric.intervals import agreement_interval, drop_interval, mean_interval, sqnr_interval
from onnxcalib.quantization.output_tally import OutputTally
from onnxcalib.runtime.session import Session
from onnxcalib.spec import InputSpec
from onnxcalib.validation.compare import compare

ROWS = [InputSpec("x", np.dtype(np.float32), (None, 6))]
LONE = [InputSpec("x", np.dtype(np.float32), (None,)), InputSpec("y", np.dtype(np.float32), (3, 2))]


class Stub:
    """A session that computes its outputs by functions of the input."""

    def __init__(self, **outputs):
        self.made, self.outputs, self.rows = outputs, list(outputs), []

    def run(self, feeds):
        self.rows.append(len(feeds["x"]))
        return {name: make(feeds["x"]) for name, make in self.made.items()}


def samples_of(values, inputs=ROWS, **more):
    return open_calibration(np.asarray(values, np.float32), inputs, **more)


def same(x):
    return x


def one_hot(classes, count=6):
    return np.eye(count, dtype=np.float32)[np.asarray(classes)]


@pytest.fixture
def data(draw):
    return draw(10, 6)


def test_every_sample_is_run_once_in_batches_of_the_size_given(data):
    one, other = Stub(y=same), Stub(y=same)
    found = compare(one, other, samples_of(data), 4)
    assert one.rows == other.rows == [4, 4, 2]
    assert found.outputs[0].agreement_interval == agreement_interval(10, 10)


def test_a_model_of_fixed_batch_runs_as_many_as_it_must(data):
    one, other = Stub(y=same), Stub(y=same)
    samples = open_calibration(data, [InputSpec("x", np.dtype(np.float32), (5, 6))])
    labels = np.arange(10) % 6
    found = compare(one, other, samples, 4, labels=labels)
    assert one.rows == [5, 5]
    assert found.scores[0].float_score == pytest.approx(100 * np.mean(data.argmax(axis=1) == labels))


def test_outputs_are_compared_over_all_samples_and_not_batch_by_batch(data):
    noise = np.float32(0.1)
    (record,) = compare(Stub(y=same), Stub(y=lambda x: x + noise), samples_of(data), 3).outputs
    signal, error = np.square(data.astype(float)), np.square((data + noise).astype(float) - data)
    assert record.name == "y"
    assert record.sqnr_db == pytest.approx(10 * np.log10(signal.sum() / error.sum()))
    assert record.max_abs_error == pytest.approx(0.1, rel=1e-5)
    assert record.cosine == pytest.approx(
        (data * (data + noise)).sum() / np.sqrt(signal.sum() * ((data + noise) ** 2).sum())
    )
    a, e = signal.sum(axis=1), error.sum(axis=1)
    powers = np.array([a.sum(), e.sum(), (a**2).sum(), (e**2).sum(), (a * e).sum()])
    assert record.sqnr_interval == pytest.approx(sqnr_interval(powers, 10))


def test_agreement_counts_samples_of_equal_top_class(data):
    changed = data.copy()
    changed[[2, 7]] = np.roll(data[[2, 7]], 1, axis=1)
    (record,) = compare(Stub(y=same), Stub(y=lambda x: take(changed, data, x)), samples_of(data), 4).outputs
    assert record.agreement == 0.8 and record.agreement_interval == agreement_interval(8, 10)


def take(changed, data, x):
    """Rows of ``changed`` in the places that the rows ``x`` have in ``data``."""
    return changed[[int(np.flatnonzero((data == row).all(axis=1))[0]) for row in x]]


def test_integers_are_compared_by_the_share_of_equal_samples(build, data):
    text = "g (float[N, 6] x) => (int64[N, 1] best) {{ {} }}"
    top = build(text.format("best = ArgMax <axis = 1> (x)"))
    doubled = build(text.format("y = Mul (x, mask)  best = ArgMax <axis = 1> (y)"), mask=np.eye(6, dtype=np.float32)[0])
    (record,) = compare(Session(top), Session(doubled), samples_of(data), 4).outputs
    equal = int((data.argmax(axis=1) == (data * np.eye(6)[0]).argmax(axis=1)).sum())
    assert 0 < equal < 10
    assert (record.sqnr_db, record.cosine, record.max_abs_error) == (None, None, None)
    assert record.agreement == equal / 10 and record.agreement_interval == agreement_interval(equal, 10)


def test_a_sample_of_several_integers_is_equal_only_where_all_are(data):
    spoil = [lambda x: np.int64(x > 0), lambda x: np.int64(x > 0) + (np.arange(6) == 3) * (x[:, :1] > 0)]
    found = compare(Stub(y=spoil[0]), Stub(y=spoil[1]), samples_of(data), 4)
    assert found.outputs[0].agreement == np.mean(data[:, 0] <= 0)


def test_integers_without_a_row_for_each_sample_count_as_one_of_each_run(data):
    count = [lambda x: np.array([7, 8, 9]), lambda x: np.array([7, 8, 9]) + (len(x) == 2)]
    found = compare(Stub(y=count[0]), Stub(y=count[1]), samples_of(data), 4)
    assert found.outputs[0].agreement == pytest.approx(2 / 3)


def test_truth_values_and_strings_are_compared_by_their_equal_share(data):
    for made in (lambda x: x[:, :1] > 0, lambda x: np.where(x[:, :1] > 0, "cat", "dog").astype(object)):
        found = compare(Stub(y=made), Stub(y=lambda x, made=made: made(np.abs(x))), samples_of(data), 4)
        assert found.outputs[0].agreement == np.mean(data[:, 0] > 0)


def test_a_sequence_is_compared_tensor_by_tensor(build, data):
    text = (
        "g (float[N, 6] x) => (seq(float[M, 6]) parts, float[N, 6] y) { parts = SequenceConstruct (x)  y = Relu (x) }"
    )
    session = Session(build(text))
    found = compare(session, session, samples_of(data), 4)
    assert found.missed == {}
    assert [record.name for record in found.outputs] == ["parts[0]", "y"]


def test_outputs_of_unlike_shapes_are_reported_as_missed_with_both_shapes(data):
    found = compare(Stub(y=same, z=same), Stub(y=lambda x: x[:, :5], z=same), samples_of(data), 10)
    reason = "the float model gives shape (10, 6), the quantized one (10, 5)"
    assert found.missed == {"y": reason}
    assert [record.name for record in found.outputs] == ["z"]


def test_every_output_has_its_own_record(data):
    found = compare(Stub(y=same, z=same), Stub(y=same, z=lambda x: x + 1), samples_of(data), 4)
    by_name = {record.name: record for record in found.outputs}
    assert by_name["y"].sqnr_db == float("inf") and by_name["z"].sqnr_db < 10


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_in_the_quantized_model_alone_fails_every_measure_and_is_told(data, value):
    found = compare(Stub(y=same), Stub(y=lambda x: np.where(x > 1, np.float32(value), x)), samples_of(data), 4)
    (record,) = found.outputs
    assert (record.sqnr_db, record.cosine, record.max_abs_error) == (-np.inf, 0, np.inf)
    assert record.sqnr_interval == (-np.inf, np.inf)
    assert record.agreement == np.mean(~(data > 1).any(axis=1))
    assert (record.broken, record.left_out) == (np.count_nonzero(data > 1), 0)
    assert found.notes == (
        f"output y: {record.broken} values of the quantized model are not finite where the float model's are; its users"
        " would get no numbers; quantize it with other settings",
    )


@pytest.mark.parametrize("other", [same, lambda x: np.where(x > 1, np.nan, x), lambda x: np.where(x > 1, np.inf, x)])
def test_what_is_not_finite_in_the_float_model_is_left_out_counted_and_told(data, other):
    data[0, 0], data[1] = 2, 0.5
    found = compare(Stub(y=lambda x: np.where(x > 1, np.nan, x)), Stub(y=other), samples_of(data), 4)
    (record,) = found.outputs
    assert (record.sqnr_db, record.max_abs_error, record.agreement) == (np.inf, 0, 1)
    assert (record.broken, record.left_out) == (0, np.count_nonzero(data > 1))
    assert found.notes == (
        f"output y: {record.left_out} values of the float model are not finite, and are left out of every measure;"
        " check the model, or the preprocessing of the samples",
    )


@pytest.mark.parametrize("other", [same, lambda x: x * np.nan])
def test_an_output_without_a_finite_value_in_the_float_model_is_refused(data, other):
    wanted = "^output z: found no finite value in what the float model gives for the samples; nothing can be compared"
    with pytest.raises(ModelError, match=wanted):
        compare(Stub(y=same, z=lambda x: x * np.nan), Stub(y=same, z=other), samples_of(data), 4)


def test_an_output_without_values_is_missed_and_refused_where_it_is_the_only_one(data):
    def none(x):
        return x[:0]

    found = compare(Stub(y=same, z=none), Stub(y=same, z=none), samples_of(data), 4)
    assert found.missed == {"z": "it has no value in any sample"} and [each.name for each in found.outputs] == ["y"]
    for kind in (np.float32, np.int64):
        model = Stub(z=lambda x, kind=kind: x[:, :0].astype(kind))
        with pytest.raises(ModelError, match=r"^output z: found no value in any sample; one output"):
            compare(model, model, samples_of(data), 4)


def test_an_output_that_is_empty_in_some_batches_is_compared_in_the_others(data):
    model = Stub(z=lambda x: x if len(x) == 2 else x[:0])
    found = compare(model, model, samples_of(data), 4)
    assert found.missed == {} and found.outputs[0].agreement_interval == agreement_interval(2, 2)


def test_zeros_of_either_sign_and_the_smallest_values_are_equal_to_themselves(data):
    tiny = np.float32(1e-45)
    one, other = Stub(y=lambda x: x * 0 + tiny, z=lambda x: x * 0), Stub(y=lambda x: x * 0 + tiny, z=lambda x: -x * 0)
    assert [record.sqnr_db for record in compare(one, other, samples_of(data), 4).outputs] == [np.inf, np.inf]
    lost = compare(one, Stub(y=lambda x: x * 0, z=lambda x: x * 0), samples_of(data), 4).outputs[0]
    assert lost.sqnr_db == pytest.approx(0, abs=1e-6)


def test_floats_are_not_compared_with_what_is_no_number(data):
    found = compare(Stub(y=same, z=same), Stub(y=lambda x: x.astype(str).astype(object), z=same), samples_of(data), 4)
    assert found.missed == {"y": "the float model gives float32, the quantized one object"}


def test_sequences_of_other_lengths_and_other_classes_are_missed(data):
    one = Stub(y=same, a=lambda x: [x, x], b=lambda x: [{0: 0.5, 1: 0.5} for _ in x], c=lambda x: [])
    other = Stub(y=same, a=lambda x: [x], b=lambda x: [{0: 0.5, 2: 0.5} for _ in x], c=lambda x: [])
    assert compare(one, other, samples_of(data), 4).missed == {
        "a": "the float model gives 2 tensors, the quantized one 1",
        "b": "the two models give other classes",
        "c": "it has no value in any sample",
    }


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_wrong_answers_of_either_model(data, value):
    labels = data.argmax(axis=1)
    spoilt = Stub(y=lambda x: np.where((x[:, :1] > 0), np.float32(value), x))
    wrong = np.count_nonzero(data[:, 0] > 0)
    for models, found in (((Stub(y=same), spoilt), (100, 100 - 10 * wrong)), ((spoilt, Stub(y=same)), None)):
        score = compare(*models, samples_of(data), 4, labels=labels).scores[0]
        assert (score.float_score, score.quantized_score) == pytest.approx(found or (100 - 10 * wrong, 100))


def test_a_model_without_a_batch_axis_is_compared_sample_by_sample(build, draw):
    model = build(
        "g (float[K] x, float[3, 2] y) => (float[3, 2] z) { s = ReduceMax <keepdims = 0> (x)  z = Mul (y, s) }"
    )
    samples = open_calibration({"x": draw(4, 5), "y": draw(4, 3, 2)}, inputs_of(model))
    assert samples.fixed_batch == 1
    session = Session(model)
    (record,) = compare(session, session, samples, 8).outputs
    assert record.sqnr_db == float("inf")


# Labels


@pytest.mark.parametrize("shape", [(-1, 6), (-1, 6, 1, 1)])
def test_labels_give_the_accuracy_of_both_models_and_their_paired_drop(shape):
    truth = np.arange(12) % 6
    answers, others = truth.copy(), truth.copy()
    answers[[0]] = (truth[[0]] + 1) % 6
    others[[0, 1, 2]] = (truth[[0, 1, 2]] + 1) % 6
    data = one_hot(answers) + np.arange(12, dtype=np.float32)[:, None] / 128
    changed = one_hot(others)
    models = Stub(y=lambda x: x.reshape(shape)), Stub(y=lambda x: take(changed, data, x).reshape(shape))
    scores = compare(*models, samples_of(data), 5, labels=truth).scores
    assert [score.name for score in scores] == ["top-1", "top-5"]
    assert scores[0].float_score == pytest.approx(100 * 11 / 12)
    assert scores[0].quantized_score == pytest.approx(100 * 9 / 12)
    assert scores[0].drop == pytest.approx(100 * 2 / 12)
    assert scores[0].drop_interval == pytest.approx([100 * end for end in drop_interval(2, 0, 12)])


def test_without_labels_there_are_no_scores(data):
    assert compare(Stub(y=same), Stub(y=same), samples_of(data), 4).scores == ()


def test_top_5_asks_for_more_than_5_classes(data):
    labels = np.zeros(10, np.int64)
    for classes, names in ((5, ["top-1"]), (6, ["top-1", "top-5"])):
        model = Stub(y=lambda x, classes=classes: x[:, :classes])
        scores = compare(model, model, samples_of(data), 4, labels=labels).scores
        assert [score.name for score in scores] == names


def test_top_5_is_right_where_the_label_is_not_the_worst_of_6(data):
    labels = data.argmin(axis=1)
    labels[:3] = data[:3].argmax(axis=1)
    scores = compare(Stub(y=same), Stub(y=lambda x: -x), samples_of(data), 4, labels=labels).scores
    assert (scores[1].float_score, scores[1].quantized_score) == (30, 70)


def test_labels_are_for_the_first_output_that_is_class_scores_in_every_batch(data):
    """The last batch has one sample; a constant of one row must not pass for scores there."""
    labels = data[:9].argmax(axis=1)
    model = Stub(mean=lambda x: x.mean(axis=1), fixed=lambda x: -one_hot(labels[8:]), y=same)
    (top, _) = compare(model, model, samples_of(data[:9]), 4, labels=labels).scores
    assert top.float_score == top.quantized_score == 100


@pytest.mark.parametrize(("label", "text"), [(6, "the first is 6 of sample 3"), (-1, "the first is -1 of sample 3")])
def test_a_label_that_is_no_class_of_the_scores_is_refused(data, label, text):
    labels = np.zeros(10, np.int64)
    labels[3] = label
    with pytest.raises(DataError, match=f"output y: 1 of 10 labels are no class of the model, {text}.*0 to 5"):
        compare(Stub(y=same), Stub(y=same), samples_of(data), 4, labels=labels)


def test_labels_without_class_scores_are_refused_with_the_outputs_found(data):
    text = (
        "labels: found the outputs mean (4,), grid (4, 6, 2); labels need class scores, (samples, classes), of both"
        " models; leave the labels out, or give --metric MODULE:FUNCTION"
    )
    model = Stub(mean=lambda x: x.mean(axis=1), grid=lambda x: np.stack([x, x], axis=2))
    with pytest.raises(ConfigError, match=re.escape(text)):
        compare(model, model, samples_of(data), 4, labels=np.zeros(10, np.int64))


def test_integers_are_no_class_scores(data):
    model = Stub(y=lambda x: np.int64(x > 0))
    with pytest.raises(ConfigError, match="labels need class scores"):
        compare(model, model, samples_of(data), 4, labels=np.zeros(10, np.int64))


# Metrics


def largest(outputs, labels):
    return outputs["y"].max(axis=1)


def apply(metric, data, *, other=lambda x: x / 2, labels=None, size=4):
    return compare(Stub(y=same), Stub(y=other), samples_of(data), size, labels=labels, metric=("mine:own", metric))


def test_a_metric_of_one_number_has_no_interval(data):
    (score,) = apply(lambda outputs, labels: float(outputs["y"].mean()), data).scores
    assert (score.name, score.drop_interval) == ("mine:own", None)
    assert score.float_score == pytest.approx(data.mean(), abs=1e-6)
    assert score.drop == pytest.approx(data.mean() / 2, abs=1e-6)


def test_a_metric_of_a_number_for_each_sample_has_the_interval_of_its_mean_drop(data):
    (score,) = apply(largest, data).scores
    best = data.max(axis=1)
    assert score.float_score == pytest.approx(best.mean()) and score.quantized_score == pytest.approx(best.mean() / 2)
    assert score.drop == pytest.approx(best.mean() / 2)
    assert score.drop_interval == pytest.approx(mean_interval(best.astype(np.float64) / 2), rel=1e-5)


def test_a_metric_comes_before_accuracy_and_is_given_the_labels(data):
    seen = []

    def metric(outputs, labels):
        seen.append(labels)
        return 1.0

    labels = np.arange(10) % 6
    assert [score.name for score in apply(metric, data, labels=labels).scores] == ["mine:own", "top-1", "top-5"]
    assert len(seen) == 2 and all(each is labels for each in seen)
    apply(metric, data)
    assert seen[2:] == [None, None]


def test_a_metric_sees_all_samples_in_order_and_every_output_by_name(data):
    seen = []

    def metric(outputs, labels):
        seen.append({name: np.array(value) for name, value in outputs.items()})
        return 0

    models = Stub(y=same, z=lambda x: np.int64(x > 0)), Stub(y=lambda x: x + 1, z=lambda x: np.int64(x > 1))
    compare(*models, samples_of(data), 4, metric=("mine:own", metric))
    np.testing.assert_array_equal(seen[0]["y"], data)
    np.testing.assert_array_equal(seen[1]["y"], data + 1)
    np.testing.assert_array_equal(seen[1]["z"], data > 1)
    assert all(set(each) == {"y", "z"} for each in seen)


def test_a_metric_of_a_model_without_a_batch_axis_sees_one_row_a_sample(build, draw):
    model = build(
        "g (float[K] x, float[3, 2] y) => (float[3, 2] z) { s = ReduceMax <keepdims = 0> (x)  z = Mul (y, s) }"
    )
    x, y = draw(4, 5), draw(4, 3, 2)
    samples = open_calibration({"x": x, "y": y}, inputs_of(model))
    session = Session(model)
    (score,) = compare(session, session, samples, 8, metric=("m:f", lambda outputs, _: outputs["z"][:, 0, 0])).scores
    assert score.float_score == pytest.approx(np.mean(y[:, 0, 0] * x.max(axis=1)))


def fail(outputs, labels):
    raise KeyError("logits")


RAISED = "raised KeyError: 'logits'; it is given the outputs by name and the labels, and has to return a number"


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (fail, RAISED),
        (lambda outputs, labels: sys.exit(0), "raised SystemExit: 0; it is given"),
        (lambda outputs, labels: "good", "raised ValueError: could not convert string to float: 'good'; it is given"),
        (lambda outputs, labels: float("nan"), "returned numbers that are not finite for the float model; one finite"),
        (lambda outputs, labels: np.full(10, np.inf), "returned numbers that are not finite for the float model"),
        (lambda outputs, labels: np.zeros(9), "returned shape (9,) for the float model; one finite number, or one for"),
        (lambda outputs, labels: np.zeros((10, 1)), "returned shape (10, 1) for the float model; one finite number"),
    ],
)
def test_a_metric_that_fails_is_refused(data, metric, text):
    with pytest.raises(ConfigError, match=re.escape(f"metric mine:own: {text}")) as refusal:
        apply(metric, data)
    assert str(refusal.value).endswith("correct it")


def test_a_metric_of_the_quantized_model_that_is_no_number_is_a_result_without_an_interval(data):
    (score,) = apply(largest, data, other=lambda x: x * np.nan).scores
    assert np.isfinite(score.float_score) and np.isnan(score.drop) and score.drop_interval is None


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e200])
def test_a_metric_of_the_quantized_model_without_bound_has_no_interval(data, value):
    (score,) = apply(lambda outputs, _: outputs["y"][:, 0] * 0.0 + outputs["y"].max(), data, other=lambda x: x).scores
    assert score.drop_interval is not None
    calls = iter((0.0, value))
    (score,) = apply(lambda outputs, _: np.full(10, next(calls)), data).scores
    assert score.quantized_score == pytest.approx(value) and score.drop_interval is None


KEPT = re.escape(
    "metric mine:own: output z has no row of one shape for each sample; only such numbers can be kept for a metric;"
    " leave out --metric"
)


@pytest.mark.parametrize(
    "made", [lambda x: np.array(x.mean()), lambda x: x[:2], lambda x: [x], lambda x: x.astype(str).astype(object)]
)
def test_an_output_without_a_row_for_each_sample_cannot_be_kept_for_a_metric(data, made):
    model = Stub(y=same, z=made)
    with pytest.raises(ConfigError, match=KEPT):
        compare(model, model, samples_of(data), 10, metric=("mine:own", largest))


def test_rows_of_unlike_shapes_cannot_be_kept_for_a_metric(data):
    """As of a model that takes images of any size, one a run."""
    model = Stub(y=same, z=lambda x: np.ones((len(x), 1 + int(x[0, 0] > 0)), np.float32))
    with pytest.raises(ConfigError, match=KEPT):
        compare(model, model, samples_of(data), 1, metric=("mine:own", largest))


def test_outputs_are_kept_on_disk_alone():
    """A list of all batches would hold every array that the sessions gave."""
    import weakref

    alive = []

    class Traced(Stub):
        def run(self, feeds):
            alive.append(sum(each() is not None for each in made))
            outputs = super().run(feeds)
            made.extend(weakref.ref(value) for value in outputs.values())
            return outputs

    for metric in (None, ("mine:own", largest)):
        made: list = []
        alive.clear()
        model = Traced(y=lambda x: x + 1)
        compare(model, model, samples_of(np.ones((40, 6))), 2, metric=metric)
        assert len(alive) == 40 and max(alive) <= 3


def test_a_tally_has_no_records_before_it_is_given_any():
    assert OutputTally().records() == ()


def test_an_output_that_one_sample_rules_is_warned_of():
    wanted = np.ones((8, 3), np.float32)
    wanted[5] = 100
    tally = OutputTally()
    tally.add({"y": wanted}, {"y": wanted + 0.1}, 8)
    assert list(tally.warnings()) == [
        "output y: one of 8 samples has 99.9% of the energy, so that its SQNR is that of this sample; the median of all"
        " is 20.0 dB; check the samples for one that is unlike the others"
    ]
