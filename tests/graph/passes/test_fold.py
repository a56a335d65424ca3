import numpy as np
import pytest
from hypothesis import given, settings
from onnx import checker, helper, numpy_helper

from onnxcalib.graph.edit import copy_model
from onnxcalib.graph.load import load_model
from onnxcalib.graph.ops import RANDOM_OPS
from onnxcalib.graph.passes import fold
from onnxcalib.graph.passes.fold import fold_constants
from onnxcalib.graph.passes.normalise import lift_constants
from onnxcalib.graph.values import has_outside, with_values
from onnxcalib.graph.weight_file import WeightFile
from tests.graph.strategies import SHAPE, models, whole_numbers
from tests.small_models import run_model


def values(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def ops(model):
    return [node.op_type for node in model.graph.node]


def test_a_chain_of_constants_becomes_one_initializer_of_its_last_name(build, run, draw):
    model = build(
        "g (float[N, 3] x) => (float[N, 2] y) { t = Transpose (w) u = Mul (t, k) y = MatMul (x, u) }",
        w=draw(2, 3),
        k=np.float32(3.0),
    )
    x = draw(4, 3)
    before = run(model, x)[0]
    assert fold_constants(model) == 2
    assert ops(model) == ["MatMul"] and list(values(model)) == ["u"]
    checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(run(model, x)[0], before)


def test_a_scalar_stays_a_scalar(build):
    model = build("g (float[2] x) => (float[2] y) { b = Neg (a) y = Add (x, b) }", a=np.float32(2.0))
    fold_constants(model)
    assert values(model)["b"].shape == ()


def test_a_shape_that_is_fixed_is_folded_and_what_hangs_on_it(build, run, draw):
    model = build(
        "g (float[2, 3, 4] x) => (float[2, 12] y) { a = Relu (x) s = Shape (a) i = Gather (s, zero) "
        "u = Unsqueeze (i, axes) t = Concat <axis = 0> (u, rest) y = Reshape (x, t) }",
        zero=np.int64(0),
        axes=np.array([0]),
        rest=np.array([-1]),
    )
    assert fold_constants(model) == 4
    assert ops(model) == ["Reshape"]
    np.testing.assert_array_equal(values(model)["t"], [2, -1])


def test_fixed_dimensions_of_a_shape_with_a_free_batch_are_folded_and_the_batch_is_not(build):
    model = build(
        "g (float[N, 3, 4] x) => (int64 c, int64 n) { s = Shape (x) a = Gather (s, one) b = Gather (s, zero)"
        " c = Neg (a) n = Neg (b) }",
        one=np.int64(-2),
        zero=np.int64(0),
    )
    assert fold_constants(model) == 1
    assert values(model)["a"] == 3
    assert ops(model) == ["Shape", "Gather", "Neg", "Neg"]


def test_part_of_a_shape_and_a_size_are_folded(build):
    model = build(
        "g (float[N, 3, 4] x, float[5, 6] z) => (int64[2] c, int64 n) { s = Shape <start = 1> (x) k = Size (z)"
        " c = Neg (s) n = Neg (k) }"
    )
    assert fold_constants(model) == 2
    np.testing.assert_array_equal(values(model)["s"], [3, 4])
    assert values(model)["k"] == 30


def test_a_recorded_shape_that_is_wrong_is_not_believed(build):
    model = build("g (float[N, 3] x) => (int64[2] y) <float[7, 3] a> { a = Relu (x) s = Shape (a) y = Neg (s) }")
    assert fold_constants(model) == 0


def test_a_gather_outside_of_a_shape_is_left_alone(build):
    model = build("g (float[N, 3] x) => (int64 y) { s = Shape (x) a = Gather (s, i) y = Neg (a) }", i=np.int64(5))
    assert fold_constants(model) == 0


def test_a_weight_that_is_filled_in_is_folded_whatever_its_size(build, monkeypatch):
    monkeypatch.setattr(fold, "MOST_BYTES", 64)
    text = "g (float[N, 9] x) => (float[N, 8] y) {{ w = ConstantOfShape <value = float[1] {{2}}> (s) y = {op} (x, w) }}"
    model = build(text.format(op="MatMul"), s=np.array([9, 8]))
    assert fold_constants(model) == 1
    np.testing.assert_array_equal(values(model)["w"], np.full((9, 8), 2, np.float32))


def test_a_weight_that_is_larger_than_any_tensor_is_left_alone(build, monkeypatch):
    model = build("g (float[N, 4] x) => (float[N, 8] y) { w = ConstantOfShape (s) y = MatMul (x, w) }", s=[4, 8])
    monkeypatch.setattr(fold, "MOST_TENSOR_BYTES", 100)
    assert fold_constants(model) == 0
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([2**20, 2**20]), "s"))
    monkeypatch.undo()
    assert fold_constants(model) == 0


def test_a_result_that_would_swell_the_file_is_left_alone(build, monkeypatch):
    monkeypatch.setattr(fold, "MOST_BYTES", 64)
    model = build("g (float[9, 8] x) => (float[9, 8] y) { w = ConstantOfShape (s) y = Add (x, w) }", s=np.array([9, 8]))
    assert fold_constants(model) == 0
    assert ops(model) == ["ConstantOfShape", "Add"]


@pytest.mark.parametrize(
    "text",
    [
        "g () => (float[2] y) { a = RandomNormal <shape = [2]> () y = Neg (a) }",
        "g () => (float[2] y) { a = RandomUniformLike (w) y = Neg (a) }",
        "g () => (float[2] y) { a = Dropout (w) y = Neg (a) }",
        "g () => (float[2] y) { y = Neg (w) }",
    ],
    ids=["random", "random like", "dropout", "output"],
)
def test_random_operators_and_outputs_are_left_alone(build, text):
    model = build(text, w=np.ones(2, np.float32))
    # The Neg that makes the output has a constant operand only where the node before it was folded.
    assert fold_constants(model) == 0


def test_a_dequantized_weight_is_left_alone(build):
    model = build(
        "g (float[N, 2] x) => (float[N, 2] y) { w = DequantizeLinear (q, s) y = MatMul (x, w) }",
        q=np.ones((2, 2), np.int8),
        s=np.float32(0.5),
    )
    assert fold_constants(model) == 0


def test_operators_of_other_domains_and_unknown_ones_are_left_alone(build):
    model = build("g () => (float[2] y) { b = Neg (w) y = Neg (b) }", w=np.ones(2, np.float32))
    model.graph.node[0].domain = "com.example"
    model.graph.node[0].op_type = "Strange"
    assert fold_constants(model) == 0
    model.graph.node[0].domain = ""
    assert fold_constants(model) == 0


def test_a_node_that_the_evaluator_fails_on_is_left_alone(build, monkeypatch):
    class Failing:
        def __init__(self, _):
            raise KeyError("no such operator")

    monkeypatch.setattr(fold, "ReferenceEvaluator", Failing)
    model = build("g () => (float[2] y) { b = Neg (w) y = Neg (b) }", w=np.ones(2, np.float32))
    assert fold_constants(model) == 0


@pytest.mark.parametrize("wrong", [np.ones(2), np.ones(3, np.float32), "text"], ids=["type", "shape", "no array"])
def test_an_answer_of_the_wrong_kind_is_not_taken(build, monkeypatch, wrong):
    class Wrong:
        def __init__(self, _):
            pass

        def run(self, names, feeds):
            return [wrong]

    monkeypatch.setattr(fold, "ReferenceEvaluator", Wrong)
    model = build("g () => (float[2] y) { b = Neg (w) y = Neg (b) }", w=np.ones(2, np.float32))
    assert fold_constants(model) == 0


def test_a_node_with_a_body_is_left_alone(build):
    model = build(
        """
        g (float[2] x) => (float[2] y)
        {
          a = If (flag) <
            then_branch = yes () => (float[2] p) { p = Neg (w) },
            else_branch = no () => (float[2] q) { q = Abs (w) }
          >
          y = Add (x, a)
        }
        """,
        flag=np.array(True),
        w=np.ones(2, np.float32),
    )
    assert fold_constants(model) == 0


def test_every_output_of_a_folded_node_becomes_an_initializer(build):
    model = build(
        "g (float[2] x) => (float[2] y) { a, b = Split (w) c = Add (x, a) y = Add (c, b) }",
        opset=13,
        w=np.arange(4, dtype=np.float32),
    )
    assert fold_constants(model) == 1
    np.testing.assert_array_equal(values(model)["a"], [0, 1])
    np.testing.assert_array_equal(values(model)["b"], [2, 3])


def test_an_operand_left_out_is_no_obstacle(build):
    model = build(
        "g (float[2] x) => (float[2] y) { a = Clip (w, , m) y = Add (x, a) }",
        w=np.array([1, 9], np.float32),
        m=np.float32(6),
    )
    assert fold_constants(model) == 1
    np.testing.assert_array_equal(values(model)["a"], [1, 6])


def test_a_constant_node_is_not_evaluated(build):
    model = build("g (float[2] x) => (float[2] y) { y = Relu (x) }")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value_float=1.0))
    assert fold_constants(model) == 0


@settings(max_examples=60, deadline=None)
@given(model=models(), x=whole_numbers(SHAPE, 3))
def test_folding_leaves_the_outputs_to_the_bit_and_nothing_to_fold(model, x):
    lift_constants(model)
    before, original = run_model(model, x), copy_model(model)
    fold_constants(model)
    checker.check_model(model, full_check=True)
    assert (model.graph.input, model.graph.output) == (original.graph.input, original.graph.output)
    for one, other in zip(before, run_model(model, x), strict=True):
        np.testing.assert_array_equal(one, other)
    known = values(model)
    for node in model.graph.node:
        assert node.op_type in RANDOM_OPS or not known.keys() >= set(node.input)
    folded = model.SerializeToString()
    assert fold_constants(model) == 0 and model.SerializeToString() == folded


def test_weights_that_lie_in_files_are_folded_as_others(build, draw, tmp_path, monkeypatch):
    text = "g (float[N, 300] x) => (float[N, 200] y) { t = Transpose (w)  u = Mul (t, k)  y = MatMul (x, u) }"
    model = build(text, w=draw(200, 300), k=np.float32(3.0))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    monkeypatch.setattr("onnxcalib.graph.values.LEAST_LARGE_MODEL", 1)
    light, file = load_model(tmp_path / "m.onnx"), WeightFile()
    assert has_outside(light)
    with file.taking():
        file.open_for(light)
        assert fold_constants(light) == 2
    assert fold_constants(model) == 2
    assert has_outside(light) and ops(light) == ["MatMul"]
    np.testing.assert_array_equal(values(with_values(light))["u"], values(model)["u"])
