import numpy as np
import pytest
from onnx import checker, parser

from onnxcalib.graph.draws import list_draws
from onnxcalib.graph.edit import copy_model
from onnxcalib.graph.passes.draws import TABLE_SIZE, fix_draws
from onnxcalib.graph.passes.normalise import normalise
from onnxcalib.graph.passes.opset import raise_opset


def fix(build, text, **options):
    model = build(text, **options)
    fixed = fix_draws(model)
    checker.check_model(fixed)
    assert list_draws(model) and not list_draws(fixed)
    return fixed


def test_a_model_that_draws_nothing_is_the_same_object(build):
    model = build("g (float[N] x) => (float[N] y) { y = Relu (x) }")
    assert fix_draws(model) is model


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21])
def test_normal_draws_have_the_mean_and_the_scale_asked_for(build, run, opset):
    text = "g (float[N, 300] x) => (float[N, 300] y) { y = RandomNormalLike <mean = 2.0, scale = 0.5> (x) }"
    fixed = fix(build, text, opset=opset)
    (y,) = run(fixed, np.zeros((400, 300), np.float32))
    assert y.shape == (400, 300) and y.dtype == np.float32
    assert abs(y.mean() - 2) < 0.01 and abs(y.std() - 0.5) < 0.01
    assert abs(np.mean((y - 2) ** 4) / np.var(y) ** 2 - 3) < 0.1  # as of a normal distribution
    np.testing.assert_array_equal(run(fixed, np.ones((400, 300), np.float32))[0], y)


def test_draws_differ_between_positions_samples_and_nodes(build, run):
    text = """g (float[N, 300] x) => (float[N, 300] y, float[N, 300] z) {
        y = RandomNormalLike (x) z = RandomNormalLike (x) }"""
    y, z = run(fix(build, text), np.zeros((400, 300), np.float32))
    assert y.size > TABLE_SIZE
    for one, other in ((y[:-1], y[1:]), (y[:, :-1], y[:, 1:]), (y, z), (y.flat[:-TABLE_SIZE], y.flat[TABLE_SIZE:])):
        assert abs(np.corrcoef(np.ravel(one), np.ravel(other))[0, 1]) < 0.02


def test_nodes_with_one_seed_draw_the_same(build, run):
    text = """g (float[N] x) => (float[N] y, float[N] z) {
        y = RandomNormalLike <seed = 5.0> (x) z = RandomNormalLike <seed = 5.0> (x) }"""
    y, z = run(fix(build, text), np.zeros(100, np.float32))
    np.testing.assert_array_equal(y, z)


def test_uniform_draws_of_a_given_shape_lie_within_their_bounds(build, run):
    text = """g (float x) => (double[50, 200] y, float z) {
        y = RandomUniform <shape = [50, 200], low = -1.0, high = 3.0, dtype = 11> ()
        u = RandomNormal <shape = [1]> ()  v = Squeeze (u)  z = Add (x, v) }"""
    y, z = run(fix(build, text), np.array(1, np.float32))
    assert y.dtype == np.float64 and z.shape == ()
    assert -1 < y.min() < -0.99 and 2.99 < y.max() < 3 and abs(y.mean() - 1) < 0.05


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (0, 4), (2, 1, 3)])
def test_draws_have_the_shape_of_an_empty_tensor_and_of_a_scalar_too(build, run, shape, opset):
    kind = f"double[{', '.join('abc'[: len(shape)])}]".replace("[]", "")
    (y,) = run(fix(build, f"g ({kind} x) => ({kind} y) {{ y = RandomUniformLike (x) }}", opset=opset), np.zeros(shape))
    assert y.shape == shape and y.dtype == np.float64


def test_bernoulli_draws_ones_with_the_chance_given(build, run):
    fixed = fix(build, "g (float[N] x) => (bool[N] y, float[N] z) { y = Bernoulli <dtype = 9> (x) z = Bernoulli (x) }")
    y, z = run(fixed, np.linspace(0, 1, 20_000, dtype=np.float32))
    assert y.dtype == bool and set(np.unique(z)) == {0, 1}
    assert abs(y[:10_000].mean() - 0.25) < 0.02 and abs(z[10_000:].mean() - 0.75) < 0.02


def test_multinomial_draws_classes_by_their_logits(build, run):
    fixed = fix(
        build, "g (float[N, 3] x) => (int64[N, 2000] y, int32[N, 1] z) {"
        " y = Multinomial <sample_size = 2000, dtype = 7> (x) z = Multinomial (x) }"
    )  # fmt: skip
    y, z = run(fixed, np.log(np.float32([[0.2, 0.3, 0.5], [0.7, 0.2, 0.1]])))
    assert y.shape == (2, 2000) and y.dtype == np.int64 and z.shape == (2, 1) and z.dtype == np.int32
    shares = np.stack([(y == each).mean(1) for each in range(3)], 1)
    np.testing.assert_allclose(shares, [[0.2, 0.3, 0.5], [0.7, 0.2, 0.1]], atol=0.04)


@pytest.mark.parametrize("opset", [12, 17, 22])
def test_a_dropout_in_training_keeps_the_mean_and_off_is_the_identity(build, run, opset):
    model = build(
        "g (float[N] x, bool t) => (float[N] y, bool[N] m) { y, m = Dropout (x, r, t) }", opset=opset, r=np.float32(0.2)
    )
    fixed = fix_draws(model)
    x = np.full(20_000, 3, np.float32)
    y, mask = run(fixed, x, np.array(True))
    assert abs(mask.mean() - 0.8) < 0.02 and abs(y.mean() - 3) < 0.05
    np.testing.assert_allclose(y, np.where(mask, 3 / 0.8, 0), rtol=1e-6)
    y, mask = run(fixed, x, np.array(False))
    np.testing.assert_array_equal(y, x)
    assert mask.all()


def test_draws_in_bodies_and_in_functions_are_fixed():
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[N] x, bool b) => (float[N] y) {
            p = own.noise (x)  q = own.noise (x)
            t = If (b) <
                then_branch = then () => (float[N] r) { r = RandomNormalLike (x) },
                else_branch = other () => (float[N] s) { s = RandomUniformLike (x) }
            >
            y = Sum (p, q, t) }
        <opset_import: ["" : 17], domain: "own">
        noise (a) => (c) { z = RandomNormalLike (a)  c = Add (a, z) }"""
    )
    before = copy_model(model)
    fixed = fix_draws(model)
    checker.check_model(fixed, full_check=True)
    assert model == before and not list_draws(fixed) and not fixed.functions


def test_draws_survive_that_the_model_is_prepared_and_renumbered(build, run, draw):
    model = build(
        """g (float[N, 4] x) => (float[N, 4] y) {
            dead = RandomNormalLike (x)  a = RandomNormalLike (x)  i = Identity (a)  b = RandomUniformLike (x)
            t = If (c) <
                then_branch = then () => (float[N, 4] p) { p = RandomNormalLike (x) },
                else_branch = other () => (float[N, 4] q) { q = Identity (x) }
            >
            s = Add (b, i)  y = Add (s, t) }""",
        opset=11, c=np.bool_(True),
    )  # fmt: skip
    prepared = copy_model(model)
    normalise(prepared)
    assert raise_opset(prepared, 13)
    x = draw(5, 4)
    np.testing.assert_array_equal(*(run(fix_draws(each), x)[0] for each in (model, prepared)))


def test_iterations_of_a_loop_draw_each_for_itself(build, run):
    model = build(
        """g (float[N] x) => (float[T, N] y) {
            last, y = Loop (five, on, x) <
                body = step (int64 i, bool go, float[N] s) => (bool more, float[N] t, float[N] z) {
                    more = Identity (go)  z = RandomNormalLike (s)  t = Add (s, z) }
            > }""",
        five=np.int64(5), on=np.bool_(True),
    )  # fmt: skip
    fixed = fix_draws(model)
    (y,) = run(fixed, np.zeros(2000, np.float32))
    shares = np.corrcoef(y)
    assert y.shape == (5, 2000) and np.abs(shares - np.eye(5)).max() < 0.1
    np.testing.assert_array_equal(run(fixed, np.zeros(2000, np.float32))[0], y)
