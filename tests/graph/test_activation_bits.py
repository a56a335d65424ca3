"""The bits of activations, and the grids that a target fixes."""

from __future__ import annotations

import re

import pytest

from onnxcalib.config import LayerConfig
from onnxcalib.graph.names import Selection
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.spec import Requirements

CONV = "Conv <pads = [1, 1, 1, 1]>"
FIXED = Requirements(fixed_grids={("Sigmoid", 16): (2**-16, 0), ("Tanh", 16): (2**-15, 32768)})


@pytest.fixture
def model_of(build, draw):
    """The model of a body in which ``conv(x)`` stands for a convolution that keeps 4 channels; ``wide(x)`` reads 8."""

    def make(body):
        body = re.sub(r"(\w) = (conv|wide) \((\w)\)", rf"[to_\1] \1 = {CONV} (\3, \2)", body)
        weights = {"conv": draw(4, 4, 3, 3), "wide": draw(4, 8, 3, 3)}
        text = f"g (float[N, 4, 8, 8] x) => (float[N, a, h, w] z) {{ {body} }}"
        return build(text, **{name: value for name, value in weights.items() if f", {name})" in body})

    return make


@pytest.fixture
def net(model_of):
    """Two convolutions, the first of which is added to the second, and a third."""
    return model_of("c = conv (x) d = conv (c) y = Add (c, d) z = conv (y)")


def bits_of(scheme):
    return {tensor: spec.bits for tensor, spec in scheme.activations.items()}


def layers_of(scheme):
    return [str(layer.bits) for layer in scheme.layers]


def test_all_activations_have_16_bits_not_only_what_layers_read(net):
    scheme = make_scheme(net, activation_bits=16)
    assert set(bits_of(scheme).values()) == {16} and scheme.requantized == {}
    assert layers_of(scheme) == ["W8A16"] * 3
    assert all(layer.weight_spec.pair_limit is None for layer in scheme.layers)


def test_one_tensor_has_16_bits_with_all_that_read_it(net):
    scheme = make_scheme(net, tensors={"c": 16})
    assert bits_of(scheme) == {"x": 8, "c": 16, "d": 8, "y": 8, "z": 8}
    assert layers_of(scheme) == ["W8A8", "W8A16", "W8A8"] and scheme.requantized == {}


def test_a_tensor_that_no_layer_reads_has_bits_of_its_own(net):
    scheme = make_scheme(net, tensors={"d": 16})
    assert bits_of(scheme) == {"x": 8, "c": 8, "d": 16, "y": 8, "z": 8}
    assert layers_of(scheme) == ["W8A8"] * 3


def test_a_layer_that_asks_for_16_bits_gets_them_of_its_whole_input(net):
    scheme = make_scheme(net, selection=Selection(layers=(("to_d", LayerConfig(activation_bits=16)),)))
    assert bits_of(scheme)["c"] == 16 and scheme.requantized == {}


def test_a_layer_that_asks_for_8_of_16_bits_reads_a_grid_of_its_own(net):
    scheme = make_scheme(
        net, activation_bits=16, selection=Selection(layers=(("to_d", LayerConfig(activation_bits=8)),))
    )
    assert bits_of(scheme)["c"] == 16 and scheme.requantized["c"].bits == 8


def test_what_shares_a_grid_has_its_bits(model_of):
    model = model_of("c = conv (x) m = MaxPool <kernel_shape = [2, 2]> (c) z = conv (m)")
    scheme = make_scheme(model, tensors={"c": 16})
    assert bits_of(scheme) == {"x": 8, "c": 16, "m": 16, "z": 8} and layers_of(scheme) == ["W8A8", "W8A16"]


@pytest.mark.parametrize(("bits", "found"), [(16, {"s": (2**-16, 0), "m": (2**-16, 0)}), (8, {})])
def test_a_target_fixes_the_grid_of_an_operator_and_of_what_shares_it_at_its_bits_alone(model_of, bits, found):
    model = model_of("c = conv (x) s = Sigmoid (c) m = MaxPool <kernel_shape = [2, 2]> (s) z = conv (m)")
    assert make_scheme(model, activation_bits=bits, requirements=FIXED).fixed == found


def test_a_fixed_grid_does_not_reach_the_other_inputs_of_a_concat(model_of):
    model = model_of("c = conv (x) s = Sigmoid (c) d = conv (x) k = Concat <axis = 1> (s, d) z = wide (k)")
    assert make_scheme(model, activation_bits=16).shared == (("s", "d", "k"),)
    scheme = make_scheme(model, activation_bits=16, requirements=FIXED)
    assert scheme.shared == (("d", "k"),) and scheme.fixed == {"s": (2**-16, 0)}
