import pytest
from onnx import parser

from onnxcalib.graph.draws import key_of, list_draws, name_draws, spell_draws


@pytest.fixture
def model(build):
    return build(
        """g (float[N, 4] x, bool b) => (float[N, 4] y) {
            z = RandomNormalLike (x)  s = RandomUniformLike <seed = 3.0> (x)
            t = If (b) <
                then_branch = then () => (float[N, 4] p) { p = RandomNormalLike (x) },
                else_branch = other () => (float[N, 4] q) { q = Identity (x) }
            >
            y = Sum (z, s, t) }"""
    )


def test_draws_are_listed_those_of_bodies_too(model):
    assert [node.output[0] for node in list_draws(model)] == ["z", "s", "p"]
    assert spell_draws(model) == "3 operators (RandomNormalLike, RandomUniformLike) draw random values"


def test_a_model_that_draws_nothing_has_no_words(build):
    assert spell_draws(build("g (float[N] x) => (float[N] y) { y = Relu (x) }")) == ""


def test_the_key_is_the_rank_or_the_seed_and_stays_as_it_is(model):
    assert name_draws(model) == 3
    assert [key_of(node) for node in list_draws(model)] == ["0", "seed 3", "2"]
    del model.graph.node[0]
    assert name_draws(model) == 0
    assert [key_of(node) for node in list_draws(model)] == ["seed 3", "2"]


@pytest.mark.parametrize(
    ("inputs", "draws"),
    [("x", False), ("x, r", False), ("x, r, off", False), ("x, r, on", True), ("x, r, given", True)],
)
def test_a_dropout_draws_unless_its_training_mode_is_known_to_be_off(inputs, draws):
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N] x, bool given) => (float[N] y) <float r = {{0.5}}, bool off = {{0}}, bool on = {{1}}> {{
            y = Dropout ({inputs}) }}"""
    )
    assert bool(list_draws(model)) == draws


def test_draws_inside_the_model_s_own_functions_are_listed():
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[N] x) => (float[N] y) { y = own.noise (x) }
        <opset_import: ["" : 17], domain: "own">
        noise (a) => (b) { z = RandomNormalLike (a)  b = Add (a, z) }"""
    )
    assert spell_draws(model) == "1 operator (RandomNormalLike) draws random values"
