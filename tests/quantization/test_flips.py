import numpy as np
import pytest

from onnxcalib.data import open_calibration
from onnxcalib.graph.load import inputs_of
from onnxcalib.quantization.flips import Flip, describe_flips, lower_expected
from onnxcalib.report import ExpectedRecord, OutputRecord

# None of the values lies near a whole number.
DATA = np.random.default_rng(0).integers(-4, 4, size=(64, 6)).astype(np.float32) + np.float32(0.5)
MODEL = "g (float[N, 6] x) => (float[N, 6] y) { [layer] s = MatMul (x, w) [step] y = Floor (s) }"


def describe(model, other, sqnr_db=60.0, *, data=DATA, others=None, output="y"):
    specs = inputs_of(model)
    records = (OutputRecord(output, sqnr_db, None, None),)
    more = None if others is None else open_calibration(others, specs)
    samples = open_calibration(data, specs)
    return [
        flip.text for flip in describe_flips(model, other, samples, records, batches=(8, 4), others=more, threads=1)
    ]


def make(build, noise=0.0, text=MODEL):
    return build(text, w=np.eye(6, dtype=np.float32) + np.float32(noise) * draw_noise())


def draw_noise():
    return np.random.default_rng(1).normal(size=(6, 6)).astype(np.float32)


def test_values_far_from_a_step_need_no_words(build):
    assert describe(make(build), make(build, 0.001)) == []


def test_a_step_that_would_flip_on_other_samples_is_told_with_the_quality_to_be_expected(build):
    near = DATA.copy()
    near[:, 0] = np.round(near[:, 0]) + 0.002
    (line,) = describe(make(build), make(build, 0.001), others=near)
    assert line.startswith("output y: Floor (step) makes whole steps of small errors in s (")
    assert " of its values; that leaves " in line
    assert " dB to be expected, where 60.0 are measured on these samples; " in line
    assert line.endswith("leave the layers in front of it (layer) in float with exclude, or the step out of the model")


def test_an_output_that_a_step_alone_spoils_is_told_although_it_was_measured_so(build):
    near = np.round(DATA) + np.float32(0.002)
    assert len(describe(make(build), make(build, 0.01), 10.0, data=near)) == 1


@pytest.mark.parametrize("text", [MODEL.replace("Floor", "Abs"), MODEL.replace("s = MatMul (x, w)", "s = Neg (x)")])
def test_models_without_a_step_and_steps_of_exact_values_need_no_words(build, text):
    assert describe(make(build, text=text), make(build, 0.01, text=text), 1.0) == []


LOOP = """g (float[1, 6] x) => (float[1, 6] y) { [layer] s = MatMul (x, w)
    [loop] y = Loop (trips, yes, s) <body = b (int64 i, bool c, float[1, 6] h) => (bool d, float[1, 6] o)
        { o = Add (h, five)  m = ReduceMax <keepdims = 0> (h)  d = Greater (m, five) }> }"""


def test_a_loop_whose_condition_flips_is_told_though_no_measured_sample_shows_it(build):
    def fill(noise):
        constants = {"trips": np.int64(3), "yes": np.array(True), "five": np.float32(3.0)}
        return build(LOOP, w=np.eye(6, dtype=np.float32) + np.float32(noise) * draw_noise(), **constants)

    near = DATA.copy()
    near[:4, 0], near[:4, 1:] = 3.001, 0
    assert describe(fill(0), fill(0.001)) == []
    (line,) = describe(fill(0), fill(0.001), others=near)
    assert "Loop (loop) makes whole steps of small errors in s (" in line and "% of its samples; " in line


@pytest.mark.parametrize(("most", "expected"), [(14.0, (14.0, (10.0, 42.0))), (60.0, (40.0, (10.0, 42.0)))])
def test_no_more_is_expected_of_other_samples_than_steps_leave(most, expected):
    record = OutputRecord("y", 44.0, None, None, expected=ExpectedRecord(40.0, (10.0, 42.0), None, None))
    (found,) = lower_expected([record], [Flip("y", "", most)])
    assert (found.expected.sqnr_db, found.expected.sqnr_interval) == expected


@pytest.mark.parametrize(
    ("kind", "branch"),
    [("string", "m = Greater (s, one)  b = Where (m, word, other)"), ("float", "r = Relu (s)  b = Log (r)")],
    ids=["texts", "infinite values"],
)
def test_a_step_that_gives_no_numbers_is_looked_at_without_a_fault(build, kind, branch):
    text = f"""g (float[N, 6] x) => (float[N, 6] s, {kind}[N, 6] y) {{ [layer] s = MatMul (x, w)
        [if] y = If (yes) <then_branch = a () => ({kind}[N, 6] b) {{ {branch} }},
            else_branch = c () => ({kind}[N, 6] b) {{ {branch} }}> }}"""
    words = {"word": np.array(["a"], object), "other": np.array(["b"], object)} if kind == "string" else {}
    constants = {"yes": np.array(True), "one": np.float32(1), **words}
    one, other = (
        build(text, w=np.eye(6, dtype=np.float32) + np.float32(noise) * draw_noise(), **constants)
        for noise in (0, 0.001)
    )
    assert describe(one, other, output="s") == []
