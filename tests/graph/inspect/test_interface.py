"""Whether two models can stand in for each other, and in which words they are refused."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxcalib.errors import ModelError
from onnxcalib.graph.inspect.interface import check_interface
from onnxcalib.spec import InputSpec

AGAIN = "both must be the same for one to replace the other; quantize this float model again"


def model_of(build, inputs="float[N, 4] x", outputs="float[N, 4] y"):
    names = [part.split()[-1] for part in outputs.replace("], ", "]; ").split("; ")] if outputs else []
    source = inputs.split()[-1]
    return build(f"g ({inputs}) => ({outputs}) {{ {' '.join(f'{name} = Identity ({source})' for name in names)} }}")


def match(build, one, other):
    return check_interface(model_of(build, **one), model_of(build, **other))


def refuse(build, one, other):
    with pytest.raises(ModelError) as refusal:
        match(build, one, other)
    assert str(refusal.value).endswith(AGAIN) and "\n" not in str(refusal.value)
    return str(refusal.value).removesuffix(f"; {AGAIN}")


def test_equal_models_match_with_their_inputs_in_order(build):
    inputs = {"inputs": "int64[2] b, float[N, 4] a, float x"}
    assert match(build, inputs, inputs) == (
        InputSpec("b", np.dtype(np.int64), (2,)),
        InputSpec("a", np.dtype(np.float32), (None, 4)),
        InputSpec("x", np.dtype(np.float32), ()),
    )


@pytest.mark.parametrize(
    ("one", "other", "shape"),
    [
        ("float[N, 4] x", "float[8, 4] x", (8, 4)),
        ("float[8, 4] x", "float[N, 4] x", (8, 4)),
        ("float[8, W] x", "float[N, 4] x", (8, 4)),
        ("float[N, 4] x", "float[batch, 4] x", (None, 4)),
        ("float[N, 4] x", None, (None, 4)),
        (None, "float[N, 4] x", (None, 4)),
        ("float x", None, ()),
        (None, None, None),
    ],
)
def test_what_one_of_them_fixes_holds_for_both(build, one, other, shape):
    models = [model_of(build, inputs=text or "float[N, 4] x") for text in (one, other)]
    for model, text in zip(models, (one, other), strict=True):
        if text is None:
            model.graph.input[0].type.tensor_type.ClearField("shape")
    (spec,) = check_interface(*models)
    assert spec == InputSpec("x", np.dtype(np.float32), shape)


@pytest.mark.parametrize(
    ("kind", "one", "other", "text"),
    [
        ("inputs", "float[4] x", "float[4] z", "inputs: the float model has x, the quantized one z"),
        ("inputs", "float[4] a, float[4] x", "float[4] x", "inputs: the float model has a, x, the quantized one x"),
        (
            "inputs",
            "float[4] a, float[4] x",
            "float[4] x, float[4] a",
            "inputs: the float model has a, x, the quantized one x, a, in another order",
        ),
        ("outputs", "float[4] y", "float[4] y, float[4] z", "outputs: the float model has y, the quantized one y, z"),
        (
            "outputs",
            "float[4] z, float[4] y",
            "float[4] y, float[4] z",
            "outputs: the float model has z, y, the quantized one y, z, in another order",
        ),
        ("inputs", "float[4] x", "uint8[4] x", "input x: the float model has float32, the quantized one uint8"),
        ("inputs", "double[4] x", "float[4] x", "input x: the float model has float64, the quantized one float32"),
        ("inputs", "float[4] x", "double[4] x", "input x: the float model has float32, the quantized one float64"),
        ("outputs", "float[4] y", "int8[4] y", "output y: the float model has float, the quantized one int8"),
        (
            "inputs",
            "float[N, 4] x",
            "float[N, 5] x",
            "input x: the float model has shape (any, 4), the quantized one (any, 5)",
        ),
        (
            "inputs",
            "float[N, 4] x",
            "float[N, 4, C] x",
            "input x: the float model has shape (any, 4), the quantized one (any, 4, any)",
        ),
        ("inputs", "float x", "float[N] x", "input x: the float model has shape (), the quantized one (any)"),
        (
            "outputs",
            "float[2, 4] y",
            "float[3, 4] y",
            "output y: the float model has shape (2, 4), the quantized one (3, 4)",
        ),
        (
            "outputs",
            "float[2, 4] y, float[2, 4] z",
            "float[2, 4] y, float[2] z",
            "output z: the float model has shape (2, 4), the quantized one (2)",
        ),
    ],
)
def test_every_difference_is_refused_with_what_each_has(build, kind, one, other, text):
    assert refuse(build, {kind: one}, {kind: other}) == text


def test_a_model_without_inputs_is_said_to_have_none(build):
    one, other = (model_of(build), model_of(build))
    del other.graph.input[:]
    with pytest.raises(ModelError, match="inputs: the float model has x, the quantized one none; both must"):
        check_interface(one, other)


def test_what_a_file_does_not_say_of_an_output_fits_anything(build):
    for change in ("untyped", "unshaped", "sequence"):
        one, other = model_of(build), model_of(build, outputs="int8[3] y")
        if change == "unshaped":
            other = model_of(build)
            other.graph.output[0].type.tensor_type.ClearField("shape")
        elif change == "untyped":
            other.graph.output[0].type.tensor_type.elem_type = TensorProto.UNDEFINED
        else:
            other.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None))
        assert len(check_interface(one, other)) == len(check_interface(other, one)) == 1


def test_initializers_among_the_inputs_are_none_to_be_fed(build):
    one = build("g (float[N, 4] x, float[4] k) => (float[N, 4] y) { y = Add (x, k) }", k=np.ones(4, np.float32))
    other = build("g (float[N, 4] x) => (float[N, 4] y) { y = Add (x, k) }", k=np.ones(4, np.float32))
    assert [spec.name for spec in check_interface(one, other)] == ["x"]


def test_a_quantized_model_matches_its_float_one(build, rough, draw):
    model = build("g (float[N, 4] x) => (float[N, 4] y) { y = MatMul (x, w) }", w=draw(4, 4))
    (spec,) = check_interface(model, rough(model, draw(2, 4)))
    assert spec == InputSpec("x", np.dtype(np.float32), (None, 4))
