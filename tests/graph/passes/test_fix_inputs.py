import onnx
import pytest

from onnxcalib import ConfigError, ModelError
from onnxcalib.graph.load import inputs_of
from onnxcalib.graph.passes.fix_inputs import fix_inputs, fix_outputs, fix_specs
from onnxcalib.graph.shapes import recorded_shape

PAIR = "g (float[N, S, 4] a, float[N, S, 4] b) => (float[N, T, 4] y) { y = Add (a, b) }"


def shapes_of(model):
    return {spec.name: spec.shape for spec in inputs_of(model)}


def test_a_shape_without_a_name_is_that_of_all_inputs(build):
    model = build(PAIR)
    assert fix_inputs(model, {"": (1, 6, 4)}) == 2
    assert shapes_of(model) == {"a": (1, 6, 4), "b": (1, 6, 4)}
    assert fix_inputs(model, {"": (1, 6, 4)}) == 0


def test_a_named_shape_wins_over_that_of_all(build):
    model = build("g (float[N, S] a, float[N, T] b) => (float[P, Q] y) { y = Concat <axis = 1> (a, b) }")
    fix_inputs(model, {"": (1, 6), "b": (1, 3)})
    assert shapes_of(model) == {"a": (1, 6), "b": (1, 3)}
    assert fix_outputs(model) == 1 and recorded_shape(model.graph.output[0]) == (1, 9)


def test_a_dimension_of_the_same_name_is_fixed_with_it(build):
    model = build(PAIR)
    assert fix_inputs(model, {"a": (2, 6, 4)}) == 2
    assert shapes_of(model)["b"] == (2, 6, 4)


def test_without_shapes_nothing_changes(build):
    model = build(PAIR)
    before = model.SerializeToString()
    assert fix_inputs(model, {}) == 0 and model.SerializeToString() == before


def test_an_input_of_unknown_rank_gets_one(build):
    model = build(PAIR)
    model.graph.input[1].type.tensor_type.ClearField("shape")
    fix_inputs(model, {"b": (1, 6, 4)})
    assert shapes_of(model)["b"] == (1, 6, 4)


def test_outputs_have_the_sizes_that_follow_and_others_keep_their_names(build):
    model = build("g (float[N, S] a) => (float[N, T] y, int64[K, M] z) { y = Relu (a) z = NonZero (a) }")
    fix_inputs(model, {"a": (2, 6)})
    assert fix_outputs(model) == 2
    assert [recorded_shape(value) for value in model.graph.output] == [(2, 6), (2, None)]
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ({"c": (1, 6, 4)}, "shape: found input 'c'; the model's are 'a', 'b'; name one of them"),
        ({"a": (1, 6)}, r"shape: input 'a': found \(1, 6\); the model's is \(any, any, 4\), of 3 dimensions; give as"),
        ({"": (1, 6, 5)}, r"input 'a': found \(1, 6, 5\); the model's is \(any, any, 4\), of which only what is 'any'"),
        ({"a": (1, 6, 4), "b": (1, 7, 4)}, "input 'b': found 7 as its dimension 'S'; input 'a' has 6 of the same name"),
    ],
)
def test_shapes_that_inputs_cannot_have_are_refused(build, shapes, text):
    with pytest.raises(ConfigError, match=text):
        fix_inputs(build(PAIR), shapes)


def test_sizes_that_no_machine_holds_are_refused(build):
    model = build("g (float[N] a) => (float[N, M] y) <int64[1] one = {1}> { b = Unsqueeze (a, one) y = Mul (b, a) }")
    with pytest.raises(ModelError, match=r"its output y has dimensions \[900000000, 900000000\], which are"):
        fix_inputs(model, {"a": (900_000_000,)})


def test_described_inputs_take_shapes_too(build):
    inputs = inputs_of(build(PAIR))
    assert [spec.shape for spec in fix_specs(inputs, {"b": (1, 6, 4)})] == [(None, None, 4), (1, 6, 4)]
