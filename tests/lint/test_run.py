"""Files that are sound for a target pass its rules; files in which one thing is spoilt are told what and where."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, parser

import onnxcalib
from onnxcalib.errors import ConfigError, ModelError
from onnxcalib.lint import check_target
from onnxcalib.lint.run import CHECKS
from onnxcalib.targets import Target, list_targets
from onnxcalib.targets.rules import Rules

from .conftest import STEP

ALL = ("onnxruntime", "qnn", "openvino", "tensorrt", "xint8", "symmetric")
ATTRIBUTES = ALL[1:]
SIGNED = ("tensorrt", "xint8", "symmetric")
BY_CHANNEL = ("onnxruntime", "qnn", "openvino", "tensorrt", "symmetric")
INT32 = ("onnxruntime", "qnn", "openvino", "symmetric")
STRICT = ("qnn", "tensorrt", "xint8", "symmetric")
LEAKS = {"quantized_outputs"}  # as a node that reads a float tensor reads what another gives
TYPES = {"activation_types"}
I2, I4 = TensorProto.INT2, TensorProto.INT4


def change_opset(opset):
    def spoil(draft):
        draft.model.opset_import[0].version = opset

    return spoil


def free_batch(draft):
    draft.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"


def add_dynamic(draft):
    draft.graph.node.append(
        helper.make_node("DynamicQuantizeLinear", ["x"], ["d", "d_s", "d_z"], name="dynamic"),
    )


def add_sigmoid(draft):
    draft.add("Sigmoid", ["x"], "gate")
    draft.give("gate")


def add_operator(op):
    """A node of onnxruntime's own domain."""

    def spoil(draft):
        draft.add(op, ["x"], "strange", domain="com.microsoft")
        draft.give("strange")

    return spoil


def forget_group(draft):
    node = draft.node("conv1")
    node.attribute.remove(next(each for each in node.attribute if each.name == "group"))


def give_integers(draft):
    draft.give("add_q")


def quantize_for_nobody(draft):
    draft.graph.node.append(helper.make_node("QuantizeLinear", ["relu", "relu_q_s", "relu_q_z"], ["lone"], name="lone"))


def unlike_pair(draft):
    draft.set("flat_dq_s", np.float32(2 * STEP))


def read_integers(draft):
    draft.add("Cast", ["add_q"], "stray", to=TensorProto.FLOAT)
    draft.give("stray")


def sort_between(draft):
    draft.add("Abs", ["add_q"], "between")
    draft.node("add_dq").input[0] = "between"


def clip_between(draft):
    draft.add("Clip", ["add_q"], "between")
    draft.node("add_dq").input[0] = "between"


def spoil_bias_scale(value):
    return lambda draft: draft.set("b1_s", np.float32(value))


def spoil_weight_scale(value):
    return lambda draft: draft.set("w2_s", np.float32(value))


def compute_scale(draft):
    draft.add("Identity", ["w2_s"], "computed")
    draft.node("w2").input[1] = "computed"


def drop_zero_point(name):
    return lambda draft: draft.node(name).input.pop()


def share_zero_point(draft):
    draft.node("w2").input[2] = "w1_z"


def change_type(tensor, dtype=None, kind=None, opset=None):
    def spoil(draft):
        for part in ("q", "dq"):
            draft.set(f"{tensor}_{part}_z", np.zeros((), dtype or np.int8), kind)
        if opset:
            draft.model.opset_import[0].version = opset

    return spoil


def scale_by_channel(draft):
    for part in ("q", "dq"):
        draft.set(f"add_{part}_s", np.full(2, STEP, np.float32))
        draft.set(f"add_{part}_z", np.zeros(2, np.int8))


def move_zero_point(draft):
    for part in ("q", "dq"):
        draft.set(f"add_{part}_z", np.int8(3))


def narrow(draft):
    draft.scale("mul", 2.0**-24)


def add_wide(op, dtype, scale, zero_point):
    """An operator whose result has 16 bits."""

    def spoil(draft):
        name = draft.pair(draft.add(op, ["relu_dq"], "wide"), scale)
        for part in ("q", "dq"):
            draft.set(f"wide_{part}_z", np.asarray(zero_point, dtype))
        draft.give(name)

    return spoil


def change_weight(kind, dtype=np.int8, opset=None):
    def spoil(draft):
        value = np.ones_like(draft.value("w2_q"))
        draft.set("w2_q", value.astype(dtype), kind)
        draft.set("w2_z", np.zeros((), dtype), kind)
        draft.model.opset_import[0].version = opset or draft.model.opset_import[0].version

    return spoil


def scale_weight(axis, name="w2", count=2):
    def spoil(draft):
        draft.set(f"{name}_s", np.full(count, 2.0**-6, np.float32))
        draft.set(f"{name}_z", np.zeros(count, np.int8))
        draft.node(name).attribute.append(helper.make_attribute("axis", axis))

    return spoil


def block_weight(draft):
    draft.set("w3_s", np.full((2, 2), 2.0**-6, np.float32))
    draft.set("w3_z", np.zeros((2, 2), np.int8))
    draft.node("w3").attribute.extend([helper.make_attribute("axis", 1), helper.make_attribute("block_size", 2)])
    draft.model.opset_import[0].version = 21


def move_weight_zero_point(draft):
    draft.set("w2_z", np.int8(1))


def make_bias(kind):
    def spoil(draft):
        draft.node("conv1").input[2] = "other"
        if kind == "float":
            draft.constant("other", np.ones(2, np.float32))
            return
        scale = 2.0**-10 if kind == np.int32 else 2.0**-6
        draft.dequantize("other", np.ones(2, kind), scale)
        node = draft.node("other")
        draft.graph.node.remove(node)
        draft.graph.node.insert(0, node)

    return spoil


def mismatch_bias(draft):
    draft.set("b1_s", np.float32(2.0**-9))


def move_bias_zero_point(draft):
    draft.set("b1_z", np.int32(2))


def read_float(draft):
    draft.node("conv2").input[0] = "pool"


def add_float(draft):
    draft.node("add").input[1] = "pool"


def add_floats(draft):
    draft.node("add").input[:] = ["conv2", "pool"]


def float_head(draft):
    draft.node("scores").output[0] = "y"
    draft.drop("scores_q")
    draft.drop("y")


def leak_float(draft):
    draft.give("mul")


def quantize_output(draft):
    node = draft.node("y")
    node.name = node.output[0] = "scores"
    draft.pair("scores", made="y")


def look_up(draft):
    draft.constant("table", np.ones((4, 2), np.float32))
    draft.constant("rows", np.array([1, 3]))
    draft.give(draft.pair(draft.add("Gather", ["table", "rows"], "looked_up")))


def add_swish(fed, gate, product):
    """The product of a tensor and its HardSigmoid, on grids of 2^-fed, 2^-gate and 2^-product."""

    def spoil(draft):
        made = draft.pair(draft.add("Relu", ["mul_dq"], "stem"), 2.0**-fed)
        gated = draft.pair(draft.add("HardSigmoid", [made], "gate", alpha=1 / 6), 2.0**-gate)
        draft.give(draft.pair(draft.add("Mul", [made, gated], "swish"), 2.0**-product))

    return spoil


def widen(tensor, scale):
    return lambda draft: draft.scale(tensor, scale)


# name: targets, the rule, the node or tensor, what spoils the model, and rules that cannot but break too.
SPOILT = {
    "old opset": (ALL, "opset", "file", change_opset(9), set()),
    "new opset": (("xint8", "symmetric"), "opset", "file", change_opset(21), set()),
    "free batch": (("qnn", "symmetric"), "static_shapes", "input x", free_batch, set()),
    "dynamic operator": (STRICT, "operators", "dynamic", add_dynamic, set()),
    "operator without a kernel": (("onnxruntime",), "operators", "strange", add_operator("QOrderedGelu"), set()),
    "operator that cannot be read": (("openvino",), "operators", "strange", add_operator("QGemm"), set()),
    "sigmoid": (("xint8",), "operators", "gate", add_sigmoid, set()),
    "no group": (ATTRIBUTES, "attributes", "conv1", forget_group, set()),
    "integers given out": (ALL, "pairs", "add_q", give_integers, set()),
    "Q without a reader": (ALL, "pairs", "lone", quantize_for_nobody, set()),
    "integers read": (ALL, "pairs", "add_q", read_integers, set()),
    "unlike grids in a pair": (ALL, "pairs", "tensor flat", unlike_pair, None),
    "operator in a pair": (ALL, "pairs", "add_dq", sort_between, None),
    "Clip in a pair": (STRICT, "pairs", "add_dq", clip_between, set()),
    "scale 0": (ALL, "positive_scales", "w2", spoil_weight_scale(0), None),
    "negative scale": (ALL[1:], "positive_scales", "w2", spoil_weight_scale(-1), None),
    "negative activation": (ALL, "positive_scales", "add", lambda draft: draft.set("add_q_s", np.float32(-1)), None),
    "infinite scale": (ALL, "positive_scales", "w2", spoil_weight_scale(np.inf), None),
    "computed scale": (ALL, "positive_scales", "w2", compute_scale, set()),
    "no zero point": (ALL, "explicit_zero_points", "w2", drop_zero_point("w2"), set()),
    "no zero point behind Q": (ALL, "explicit_zero_points", "flat_dq", drop_zero_point("flat_dq"), set()),
    "shared zero point": (ALL, "own_zero_points", "w2", share_zero_point, set()),
    "uint8 with zero point 0": (("xint8",), "activation_zero_points", "flat_q", change_type("flat", np.uint8), set()),
    "uint8": (("tensorrt", "symmetric"), "activation_types", "flat_q", change_type("flat", np.uint8), set()),
    "int4 activation": (("qnn", "openvino"), "activation_types", "flat_q", change_type("flat", kind=I4), set()),
    "16 bits in float": (("onnxruntime",), "activation_types", "mul_q", change_type("mul", np.uint16), set()),
    "int2 activation": (("onnxruntime",), "activation_types", "mul_q", change_type("mul", kind=I2, opset=25), set()),
    "uint16": (("openvino", "tensorrt", "xint8"), "activation_types", "flat_q", change_type("flat", np.uint16), set()),
    "16 bits too early": (("onnxruntime", "qnn"), "opset", "add_q", change_type("add", np.uint16, opset=19), TYPES),
    "scales of an activation": (ALL, "activation_per_tensor", "add_q", scale_by_channel, None),
    "zero point": (SIGNED, "activation_zero_points", "add_q", move_zero_point, None),
    "narrow": (("qnn",), "least_range", "mul_q", narrow, set()),
    "Sigmoid": (("qnn",), "fixed_grids", "wide_q", add_wide("Sigmoid", np.uint16, 2.0**-15, 0), set()),
    "Tanh": (("qnn",), "fixed_grids", "wide_q", add_wide("Tanh", np.int16, 2.0**-15, 9), set()),
    "uint8 weight": (ALL[2:], "weight_types", "conv2", change_weight(None, np.uint8), set()),
    "int2 weight": (("onnxruntime", "qnn"), "weight_types", "conv2", change_weight(I2, opset=25), set()),
    "plain int4 weight": (("openvino",), "weight_types", "conv2", change_weight(I4), set()),
    "axis of a Conv": (BY_CHANNEL, "weight_scales", "conv2", scale_weight(1), set()),
    "axis of a Gemm": (BY_CHANNEL, "weight_scales", "(Gemm)", scale_weight(1, "w3", 4), None),
    "a scale a channel": (("xint8",), "weight_scales", "conv2", scale_weight(0), set()),
    "blocks": (("qnn", "openvino"), "weight_scales", "(Gemm)", block_weight, None),
    "small blocks": (("tensorrt",), "weight_scales", "(Gemm)", block_weight, None),
    "zero point of a weight": (ATTRIBUTES, "weight_zero_points", "w2", move_weight_zero_point, set()),
    "float bias": (("onnxruntime", "xint8"), "biases", "conv1", make_bias("float"), set()),
    "int32 bias": (("tensorrt",), "biases", "conv1", make_bias(np.int32), set()),
    "int8 bias": (BY_CHANNEL, "biases", "conv1", make_bias(np.int8), set()),
    "scale of a bias": (INT32, "biases", "conv1", mismatch_bias, set()),
    "zero point of a bias": (INT32, "biases", "conv1", move_bias_zero_point, set()),
    "no power of two": (("xint8",), "power_of_two", "mean_q", widen("mean", 0.1), {"aligned"}),
    "weight no power of two": (("xint8",), "power_of_two", "w2", spoil_weight_scale(0.01), set()),
    "bias no power of two": (("xint8",), "power_of_two", "b1", spoil_bias_scale(0.01), set()),
    "float input": (STRICT, "quantized_inputs", "conv2", read_float, LEAKS),
    "float table": (("qnn",), "whole_units", "looked_up", look_up, set()),
    "int4 beside int8": (("tensorrt",), "quantized_inputs", "conv2", change_weight(I4), set()),
    "float input of Add": (("qnn", "xint8"), "quantized_inputs", "add", add_float, LEAKS),
    "float residual": (("tensorrt",), "residual_inputs", "add", add_floats, set()),
    "unlike bits": (("qnn",), "even_bits", "conv2", change_type("conv2", np.uint16), set()),
    "float output": (("qnn", "xint8"), "quantized_outputs", "scores", float_head, set()),
    "float reader": (("qnn", "xint8"), "quantized_outputs", "mul", leak_float, set()),
    "quantized output": (("tensorrt",), "float_outputs", "y", quantize_output, set()),
    "unlike MaxPool": (("onnxruntime", "xint8"), "aligned", "pool", widen("pool", 2 * STEP), None),
    "unlike Concat": (("openvino", "xint8"), "aligned", "concat", widen("mul", 2 * STEP), set()),
    "shift_cut": (("xint8",), "shift_cut", "conv2", widen("conv2", 2.0**-12), None),
    "shift_bias": (("xint8",), "shift_bias", "conv1", spoil_bias_scale(2.0**9), set()),
    "shift_read": (("xint8",), "shift_read", "add", widen("conv2", 2.0**4), None),
    "shift_write of Add": (("xint8",), "shift_write_add", "add", widen("add", 2.0**-12), None),
    "shift_write of Mul": (("xint8",), "shift_write_mul", "mul", widen("mul", 2.0**-9), None),
    "shift_swish": (("xint8",), "shift_swish", "swish", add_swish(4, 9, -4), set()),
    "input of a HardSigmoid": (("xint8",), "hard_sigmoid", "gate", add_swish(-1, 9, 4), set()),
    "output of a HardSigmoid": (("xint8",), "hard_sigmoid", "gate", add_swish(4, 6, 4), set()),
    "shift of a HardSigmoid": (("xint8",), "hard_sigmoid", "gate", add_swish(2, 17, 8), set()),
}  # fmt: skip
CASES = [(target, name) for name, (targets, *_) in SPOILT.items() for target in targets]


@pytest.mark.parametrize("target", ALL)
def test_a_sound_file_passes_and_says_so_in_one_line(sound, target):
    record = check_target(sound(target).model, target)
    assert [each.text for each in record.violations] == []
    text = f"all {len(record.rules)} rules of target {target} hold; the file was read, and the device was not run"
    assert record.passed and record.text == text


@pytest.mark.parametrize(("target", "name"), CASES, ids=[f"{target}-{name}" for target, name in CASES])
def test_what_is_spoilt_is_named_with_its_place_and_its_rule(sound, target, name):
    _, rule, where, spoil, others = SPOILT[name]
    draft = sound(target)
    spoil(draft)
    record = check_target(draft.model, target)
    told = [each.text for each in record.violations]
    assert any(each.rule == rule and where in each.where for each in record.violations), told
    if others is not None:
        assert {each.rule for each in record.violations} <= {rule} | others, told
    broken = [each.rule for each in record.violations]
    assert len(broken) == len(set(broken)), told  # one line, as one thing is to be mended
    source = next(each.source for each in record.violations if each.rule == rule)
    assert source and all(f"({each.source})" in each.text and "\n" not in each.text for each in record.violations)


def test_each_dequantize_linear_that_is_wrong_alone_is_told(sound):
    draft = sound("qnn")
    draft.add("DequantizeLinear", ["flat_q", "flat_dq_s"], "flat_again")
    draft.give("flat_again")
    drop_zero_point("flat_dq")(draft)
    places = [each.where for each in check_target(draft.model, "qnn").violations]
    assert places == ["flat_dq (DequantizeLinear)", "flat_again (DequantizeLinear)"]
    drop_zero_point("flat_q")(draft)
    (place,) = [e.where for e in check_target(draft.model, "qnn").violations if e.rule == "explicit_zero_points"]
    assert place == "flat_q (QuantizeLinear)"


def test_an_opset_that_is_too_early_for_many_nodes_is_told_once(sound):
    draft = sound("onnxruntime")
    change_type("add", np.uint16)(draft)
    change_type("mul", np.uint16, opset=19)(draft)
    found = next(each for each in check_target(draft.model, "onnxruntime").violations if each.rule == "opset")
    assert (found.where, found.found) == ("add_q (QuantizeLinear)", "uint16 at opset 19, as in 3 other nodes")


@pytest.mark.parametrize(
    ("target", "spoil", "level"),
    [
        ("qnn", drop_zero_point("w2"), "advice"),
        ("qnn", lambda draft: (change_weight(I4)(draft), drop_zero_point("w2")(draft)), "refused"),
        ("openvino", change_weight(I4), "slower"),
        ("openvino", change_weight(None, np.uint8), "refused"),
        ("openvino", change_type("flat", np.uint16), "slower"),
        ("openvino", change_type("flat", kind=I4), "refused"),
        ("onnxruntime", change_type("add", np.uint16), "slower"),
    ],
)
def test_what_breaking_a_rule_means_may_depend_on_the_type(sound, target, spoil, level):
    draft = sound(target)
    spoil(draft)
    record = check_target(draft.model, target)
    assert [each.level for each in record.violations] == [level]
    assert record.passed == (level == "advice") and record.violations[0].text.startswith(f"{level}: ")


def test_what_is_refused_is_told_before_what_is_slower_and_before_advice(sound):
    draft = sound("qnn")
    forget_group(draft)
    float_head(draft)
    free_batch(draft)
    record = check_target(draft.model, "qnn")
    assert [each.level for each in record.violations] == ["refused", "slower", "advice"]
    start = "2 violations of 2 of the 20 rules of target qnn: static_shapes, quantized_outputs; advice: attributes; the"
    assert record.text.startswith(start)


def test_advice_alone_passes_and_is_counted(sound):
    draft = sound("qnn")
    forget_group(draft)
    conv2 = draft.node("conv2")
    del conv2.attribute[:]
    record = check_target(draft.model, "qnn")
    assert record.passed and record.broken == ()
    assert record.text.startswith("19 of 20 rules of target qnn hold; advice: attributes (2); the file was read")


def test_there_are_sixty_spoilt_files_and_every_rule_of_every_target_is_broken_in_one():
    assert len(CASES) >= 60
    broken = {(target, SPOILT[name][1]) for target, name in CASES}
    kept = {(target.name, rule) for target in list_targets() for rule in target.list_rules()}
    assert kept <= broken, sorted(kept - broken)


def test_every_kind_of_rule_has_a_check_in_the_same_order():
    assert list(CHECKS) == list(Rules.model_fields)


@pytest.mark.parametrize(
    ("op", "dtype", "scale", "zero_point"),
    [("Sigmoid", np.uint16, 2.0**-16, 0), ("Tanh", np.uint16, 2.0**-15, 2**15), ("Tanh", np.int16, 2.0**-15, 0)],
)
def test_the_one_grid_of_16_bits_passes(sound, op, dtype, scale, zero_point):
    draft = sound("qnn")
    add_wide(op, dtype, scale, zero_point)(draft)
    assert check_target(draft.model, "qnn").passed


def test_an_average_at_the_exit_of_the_graph_may_be_float_for_qnn(sound):
    draft = sound("qnn")
    draft.add("GlobalAveragePool", ["mul_dq"], "mean2")
    draft.add("Flatten", ["mean2"], "flat2")
    draft.give("flat2")
    assert check_target(draft.model, "qnn").passed
    draft.add("Exp", ["mean2"], "other")
    draft.give("other")
    (found,) = check_target(draft.model, "qnn").violations
    assert (found.rule, found.where) == ("quantized_outputs", "mean2 (GlobalAveragePool)")


def test_a_mean_that_xint8_corrects_by_a_constant_passes(sound):
    draft = sound("xint8")
    draft.node("mean_q").input[0] = "corrected"
    factor = draft.constant("factor", np.float32(49 / 64))
    correct = helper.make_node("Mul", ["mean", factor], ["corrected"], name="correct")
    nodes = draft.graph.node
    nodes.insert(list(nodes).index(draft.node("mean")) + 1, correct)
    assert [each.text for each in check_target(draft.model, "xint8").violations] == []
    draft.scale("mean", STEP / 2)
    assert [each.rule for each in check_target(draft.model, "xint8").violations] == ["aligned"]


def test_long_chains_of_nodes_are_followed(sound):
    draft = sound("qnn")
    tensor = "mul_dq"
    for number in range(1500):
        tensor = draft.add("Relu", [tensor], f"r{number}")
    draft.add("GlobalAveragePool", [draft.pair(tensor)], "leaving")
    tensor = "leaving"
    for number in range(1500):
        tensor = draft.add("Identity" if number else "Flatten", [tensor], f"f{number}")
    draft.give(tensor)
    integers = "add_q"
    for number in range(1500):
        integers = draft.add("Identity", [integers], f"i{number}")
    draft.add("DequantizeLinear", [integers, "add_dq_s", "add_dq_z"], "late")
    draft.give("late")
    assert {each.rule for each in check_target(draft.model, "qnn").violations} <= {"pairs", "quantized_outputs"}


def test_a_weight_of_scale_0_beside_a_bias_is_told_without_a_division(sound):
    draft = sound("qnn")
    draft.set("w1_s", np.float32(0))
    rules = {each.rule for each in check_target(draft.model, "qnn").violations}
    assert rules == {"positive_scales", "biases"}


def test_a_target_that_names_no_operator_of_onnx_judges_no_file(sound):
    target = Target.model_validate({"name": "chip", "rules": {"aligned": {"operators": ("concat",), "source": "a"}}})
    with pytest.raises(ConfigError, match="found 'concat'; operators of ONNX are allowed, spelled as there; correct"):
        check_target(sound("qnn").model, target)


def test_xint8_takes_uint8_around_its_middle(sound):
    draft = sound("xint8")
    for part in ("q", "dq"):
        draft.set(f"flat_{part}_z", np.uint8(128))
    assert check_target(draft.model, "xint8").passed


def test_a_swish_within_the_shifts_of_xint8_passes(sound):
    draft = sound("xint8")
    add_swish(4, 7, 4)(draft)
    assert check_target(draft.model, "xint8").passed


def test_the_shape_of_integers_may_be_read(sound):
    draft = sound("xint8")
    draft.add("Shape", ["add_q"], "sizes")
    draft.give("sizes")
    assert check_target(draft.model, "xint8").passed


def test_biases_in_front_of_a_leaky_relu_shift_one_way_alone(sound):
    draft = sound("xint8")
    spoil_bias_scale(2.0**-11)(draft)
    assert check_target(draft.model, "xint8").passed
    draft.node("relu").op_type = "LeakyRelu"
    (found,) = check_target(draft.model, "xint8").violations
    assert (found.where, found.found, found.allowed) == ("conv1 (Conv)", "shift_bias -1", "0 to 15")


def test_the_text_of_a_violation_says_what_was_found_what_is_allowed_and_why(sound):
    draft = sound("tensorrt")
    move_zero_point(draft)
    text = check_target(draft.model, "tensorrt").violations[0].text
    assert text == (
        "refused: add_q (QuantizeLinear): activation_zero_points: found zero point 3; allowed: 0 for int8"
        " (onnx-tensorrt onnxOpImporters.cpp: the zero point must be 0)"
    )


def test_how_many_rules_are_broken_is_said_in_one_line(sound):
    draft = sound("xint8")
    forget_group(draft)
    assert check_target(draft.model, "xint8").text.startswith("1 violation of 1 of the ")
    add_sigmoid(draft)
    assert ": attributes, operators" in check_target(draft.model, "xint8").text


def test_four_bits_for_openvino_pass_through_a_cast(sound):
    draft = sound("openvino")
    change_weight(I4)(draft)
    draft.set("w2_z", np.int8(0))
    node = draft.node("w2")
    cast = helper.make_node("Cast", ["w2_q"], ["w2_cast"], name="w2_cast", to=TensorProto.INT8)
    draft.graph.node.insert(0, cast)
    node.input[0] = "w2_cast"
    assert check_target(draft.model, "openvino").passed


def test_nodes_inside_bodies_are_held_to_the_rules_too(sound):
    draft = sound("symmetric")
    inner = [
        helper.make_node("QuantizeLinear", ["x", "x_q_s", "inner_z"], ["i"], name="inner_q"),
        helper.make_node("DequantizeLinear", ["i", "x_q_s", "inner_z"], ["out"], name="inner_dq"),
    ]
    draft.constant("inner_z", np.uint8(0))
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    body = helper.make_graph(inner, "body", [], [out])
    draft.constant("condition", np.bool_(True))
    draft.graph.node.append(
        helper.make_node("If", ["condition"], ["chosen"], name="choice", then_branch=body, else_branch=body)
    )
    draft.give("chosen")
    places = {each.where for each in check_target(draft.model, "symmetric").violations}
    assert "choice/inner_q (QuantizeLinear)" in places


def test_a_layer_in_a_body_reads_a_tensor_that_is_quantized_outside(sound):
    """The input and the weight of the layer come from DequantizeLinears of the graph around it."""
    draft = sound("symmetric")
    layer = draft.node("scores")
    inner = [helper.make_node(layer.op_type, list(layer.input), ["out"], name="inner")]
    body = helper.make_graph(inner, "body", [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)])
    draft.constant("condition", np.bool_(True))
    draft.graph.node.append(
        helper.make_node("If", ["condition"], ["chosen"], name="choice", then_branch=body, else_branch=body)
    )
    draft.give("chosen")
    found = [each for each in check_target(draft.model, "qnn").violations if "inner" in each.where]
    assert [each.rule for each in found] == ["quantized_outputs"]  # as its result leaves the body in float


def test_a_float_model_is_refused(build):
    model = build("g (float[1, 2] x) => (float[1, 2] y) { y = Relu (x) }")
    with pytest.raises(ModelError, match="g: found no quantized operator; a quantized model is needed to hold it to"):
        check_target(model, "qnn")


PACKED = """<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
g (float[1, 32] x, uint8[8, 2, 8] w, float[16] s) => (float[1, 8] y) {
    [packed] y = com.microsoft.OP <K = 32, N = 8, bits = 4, block_size = 16> (x, w, s)
}"""


def test_quantized_operators_that_a_target_is_known_to_run_are_judged():
    model = parser.parse_model(PACKED.replace("OP", "MatMulNBits"))
    for target in ("onnxruntime", "openvino"):
        record = check_target(model, target)
        assert record.passed and (record.judged, record.unjudged) == (1, {})


def test_a_file_of_operators_that_no_rule_is_about_does_not_pass():
    record = check_target(parser.parse_model(PACKED.replace("OP", "MatMulBnb4")), "openvino")
    assert not record.passed and record.violations == () and record.unjudged == {"MatMulBnb4": 1}
    text = "no rule of target openvino judges what is quantized: 1 MatMulBnb4; the file was read, and the device was"
    assert record.text == f"{text} not run"


def test_operators_that_no_rule_is_about_are_named_beside_what_holds(sound):
    draft = sound("openvino")
    for number in range(2):
        node = helper.make_node("MatMulBnb4", ["x"], [f"m{number}"], name=f"m{number}", domain="com.microsoft")
        draft.graph.node.append(node)
    record = check_target(draft.model, "openvino")
    assert record.passed and record.text.startswith(
        "all 14 rules of target openvino hold; not judged: 2 MatMulBnb4; the"
    )
    forget_group(draft)
    assert "attributes; not judged: 2 MatMulBnb4; the file" in check_target(draft.model, "openvino").text


def test_unnamed_nodes_are_named_by_what_they_make(sound):
    draft = sound("qnn")
    forget_group(draft)
    draft.node("conv1").name = ""
    assert check_target(draft.model, "qnn").violations[0].where == "Conv of conv1"


def test_control_characters_of_names_are_escaped(sound):
    draft = sound("qnn")
    forget_group(draft)
    draft.node("conv1").name = "a\x1b[2J\nb"
    assert check_target(draft.model, "qnn").violations[0].where == "a\\x1b[2J\\x0ab (Conv)"


RESIDUAL = """g (float[N, 3, 8, 8] image) => (float[N, 5] scores) {
    [stem] c1 = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)  [relu1] r1 = Relu (c1)
    [deep] c3 = Conv <pads = [1, 1, 1, 1]> (r1, w3)  [add] s = Add (c3, r1)
    [pool] p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (s)  [tail] c4 = Conv (p, w4)
    [mean] m = GlobalAveragePool (c4)  [flat] f = Flatten (m)  [head] scores = Gemm <transB = 1> (f, w5, b5)
}"""


@pytest.mark.parametrize("bits", [{}, {"weight_bits": 4}, {"weight_bits": 4, "activation_bits": 4}])
def test_what_quantize_writes_keeps_the_rules_of_onnxruntime(build, draw, bits):
    weights = {"w1": draw(8, 3, 3, 3), "w3": draw(8, 8, 3, 3), "w4": draw(6, 8, 1, 1), "w5": draw(5, 6)}
    model = build(RESIDUAL, b1=draw(8), b5=draw(5), **weights)
    config = onnxcalib.QuantizeConfig(effort="fast", placement="all", **bits)
    result = onnxcalib.quantize(model, draw(16, 3, 8, 8), config)
    assert [each.text for each in check_target(result.model, "onnxruntime").violations] == []


def test_onnxruntime_takes_negative_scales_of_weights_and_their_biases(sound):
    draft = sound("onnxruntime")
    for name in ("w1_s", "b1_s"):
        draft.set(name, -draft.value(name))
    assert check_target(draft.model, "onnxruntime").passed
