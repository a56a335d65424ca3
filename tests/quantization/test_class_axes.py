"""Classes lie along the axes that the settings name, and agreement is counted there."""

import numpy as np
import pytest

import onnxcalib
from onnxcalib.config import QuantizeConfig, ValidateConfig
from onnxcalib.errors import ConfigError
from onnxcalib.graph.parts import Part
from onnxcalib.quantization.class_axes import find_class_axes

OUTPUTS = {
    "map": np.zeros((2, 5, 4, 4), np.float32),
    "flat": np.zeros((2, 5), np.float32),
    "boxes": np.zeros((2, 9, 7), np.float32),
    "count": np.zeros((2, 3, 3), np.int64),
}
PARTS = {"boxes": (Part(1, 0, 4, 9, ("a",)), Part(1, 4, 9, 9, ("b",)))}
# Logits of a segmentation, and a second output of other shape.
SEGMENTS = """g (float[N, 3, 6, 6] x) => (float[N, 5, 6, 6] y, float[N, 6, 6, 8] z) {
    [first] a = Conv (x, w1)  r = Relu (a)  [second] y = Conv (r, w2)  z = Transpose <perm = [0, 2, 3, 1]> (r) }"""


@pytest.fixture
def segments(build, weigh):
    return build(SEGMENTS, w1=weigh(8, 3, 1, 1), w2=weigh(5, 8, 1, 1))


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ((), {}),
        (("1",), {"map": 1}),
        (("-1",), {"map": 3, "boxes": 2}),
        (("-1", "map=1"), {"map": 1, "boxes": 2}),
        (("flat=1",), {"flat": 1}),
        (("boxes[:, 4:9]=-2",), {"boxes[:, 4:9]": 1}),
    ],
)
def test_an_axis_is_that_of_one_output_or_of_all_that_have_it(settings, found):
    assert find_class_axes(settings, OUTPUTS, PARTS, batched=True) == found


def test_the_last_axis_of_logits_is_that_of_classes_where_the_model_reads_tokens():
    outputs = {"logits": np.zeros((2, 5, 7), np.float32), "hidden": np.zeros((2, 5, 4), np.float32)}
    assert find_class_axes((), outputs, {}, batched=True, inputs=["input_ids"]) == {"logits": 2}
    assert find_class_axes((), outputs, {}, batched=True, inputs=["x"]) == {}
    assert find_class_axes(("logits=1",), outputs, {}, batched=True, inputs=["input_ids"]) == {"logits": 1}
    assert find_class_axes(("1",), outputs, {}, batched=True, inputs=["input_ids"]) == {"logits": 1, "hidden": 1}


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("map=4", r"map: found 4; its shape is \(2, 5, 4, 4\), and axis 1 to 3, or -3 to -1, may be that of classes; "),
        ("map=0", r"map: found 0; its shape is .*, and axis 1 to 3, or -3 to -1,"),
        ("mop=1", r"no output has the name 'mop'; did you mean 'map'\?$"),
        ("?=1", r"no output has the name '\?'; there are map, flat, boxes, boxes\[:, 0:4\], "),
        ("count=1", r"count: found 1; an output of floats with 2 axes or more has classes; leave it out$"),
        ("boxes=1", r"boxes: found 1; along it the output joins parts .*; name one: boxes\[:, 4:9\]=1$"),
        ("flat=0", r"flat: found 0; its shape is \(2, 5\), and axis 1, or -1, may be that of classes; "),
        ("7", r"found 7 and the outputs map \(2, 5, 4, 4\), flat .*; give the axis along which its classes lie$"),
    ],
)
def test_an_axis_that_cannot_be_one_of_classes_is_refused(setting, text):
    with pytest.raises(ConfigError, match=f"^class_axis: {text}"):
        find_class_axes((setting,), OUTPUTS, PARTS, batched=True)


def test_an_axis_that_does_not_fit_the_one_output_of_many_axes_is_refused_with_what_fits():
    outputs = {"boxes": OUTPUTS["boxes"], "list": [OUTPUTS["flat"], OUTPUTS["map"]]}
    with pytest.raises(ConfigError, match=r"^class_axis: boxes: found 1; along it the output joins parts .*; name one"):
        find_class_axes(("1",), outputs, PARTS, batched=True)
    with pytest.raises(ConfigError, match=r"^class_axis: found 1 and the outputs flat \(2, 5\), list; one of floats "):
        find_class_axes(("1",), {"flat": OUTPUTS["flat"], "list": outputs["list"]}, {}, batched=True)


def test_one_class_is_none():
    with pytest.raises(ConfigError, match=r"^class_axis: y: found -1; its shape is \(2, 5, 1\), of one class along"):
        find_class_axes(("y=-1",), {"y": np.zeros((2, 5, 1), np.float32)}, {}, batched=True)


def test_without_an_axis_of_samples_the_first_may_have_the_classes():
    assert find_class_axes(("0",), {"y": np.zeros((5, 4, 4), np.float32)}, {}, batched=False) == {"y": 0}


def test_agreement_of_the_result_and_of_validate_is_counted_at_each_position(segments, draw):
    samples = draw(24, 3, 6, 6)
    result = onnxcalib.quantize(segments, samples, QuantizeConfig(class_axis="y=1", placement="all", threads=1))
    by_name = {record.name: record for record in result.report.outputs}
    assert by_name["y"].positions == 24 * 36 and 0.5 < by_name["y"].agreement < 1
    assert by_name["z"].agreement is None
    verdict = onnxcalib.validate(
        segments, result.model, samples, ValidateConfig(class_axis="y=1", min_agreement=50, threads=1)
    )
    assert {each.name: each.agreement for each in verdict.outputs} == {"y": by_name["y"].agreement, "z": None}
    assert [gate.passed for gate in verdict.gates if "agreement" in gate.name] == [True]


def test_the_file_does_not_depend_on_it(segments, draw):
    samples = draw(16, 3, 6, 6)
    settings = (QuantizeConfig(class_axis=axis, placement="all", threads=1) for axis in ((), 1))
    without, given = (onnxcalib.quantize(segments, samples, each).model.SerializeToString() for each in settings)
    assert without == given


def test_a_plan_limits_the_positions_whose_class_changes(segments, draw):
    config = {"max_disagreement": 20.0, "effort": "fast", "placement": "all", "first_last_bits": 4, "jobs": 1}
    with pytest.raises(ConfigError, match=r"^max_disagreement: found no class scores .*, or class_axis where there"):
        onnxcalib.plan(segments, draw(16, 3, 6, 6), QuantizeConfig(**config))
    found = onnxcalib.plan(segments, draw(16, 3, 6, 6), QuantizeConfig(**config, class_axis=("y=1",)))
    assert 80 <= found.totals.agreement < 100
