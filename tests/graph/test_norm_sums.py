from dataclasses import replace

import pytest

from onnxcalib.graph.index import Index
from onnxcalib.graph.norm_sums import find_norm_sums, widen_sums
from onnxcalib.graph.passes.normalise import name_nodes
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.targets import load_target

QNN = load_target("qnn").requirements
# A residual branch in front of a norm, as BERT has it; the second product reads what the norm gives.
POST = """g (float[1, 4, 8] x) => (float[1, 4, 8] y) {
    m = MatMul (x, w)  b = Add (m, bias)  s = Add (b, x)  n = LayerNormalization (s, scale, shift)  y = MatMul (n, v)
}"""
# The sum itself is read by a layer.
READ = POST.replace("y = MatMul (n, v)", "p = MatMul (s, v)  y = Add (p, n)")


@pytest.fixture
def make(build, weigh):
    def read(text):
        vectors = {"bias": weigh(8), "scale": weigh(8), "shift": weigh(8)}
        model = build(text, w=weigh(8, 8), v=weigh(8, 8), **vectors)
        name_nodes(model)
        return model

    return read


def test_the_sums_in_front_of_a_norm_and_the_constants_in_them_are_found(make):
    assert find_norm_sums(Index(make(POST).graph), (), ["x", "n"]) == ["bias", "b", "s"]


def test_what_a_layer_reads_is_left_out(make):
    assert find_norm_sums(Index(make(READ).graph), (), ["x", "s"]) == ["bias", "b"]
    assert find_norm_sums(Index(make(POST).graph), (("b", "z"),), ["z"]) == ["bias", "s"]


def test_they_have_16_bits_beside_layers_of_8(make):
    scheme = make_scheme(make(POST), requirements=QNN)
    wide = [tensor for tensor, spec in scheme.activations.items() if spec.bits == 16]
    assert wide == ["bias", "b", "s"] and {layer.activation_spec.bits for layer in scheme.layers} == {8}
    assert {
        spec.bits for spec in make_scheme(make(POST), requirements=replace(QNN, wide_sums=False)).activations.values()
    } == {8}
    assert {
        spec.bits for spec in make_scheme(make(POST), activation_bits=16, requirements=QNN).activations.values()
    } == {16}


def test_bits_that_are_given_count_for_the_whole_set(make):
    scheme = make_scheme(make(POST), requirements=QNN, tensors={"b": 8})
    assert {tensor: scheme.activations[tensor].bits for tensor in ("bias", "b", "s")} == {"bias": 16, "b": 8, "s": 16}
    assert widen_sums(Index(make(POST).graph), (("b", "z"),), (), {"z": 8}) == {"bias": 16, "s": 16}


def test_constants_have_the_bits_of_what_is_computed_with_them(make):
    plain = replace(QNN, wide_sums=False)
    for given, wide in (("b", ["bias"]), ("s", []), ("n", ["scale", "shift"])):
        scheme = make_scheme(make(POST), requirements=plain, tensors={given: 16})
        assert sorted(t for t in scheme.constants if scheme.activations[t].bits == 16) == wide, given
    assert make_scheme(make(POST), requirements=plain, tensors={"b": 16, "bias": 8}).activations["bias"].bits == 8
