"""Outputs that give an input's next value: what a user names, and what names let one guess."""

import re

import pytest

from onnxcalib.errors import ConfigError
from onnxcalib.graph.load import inputs_of
from onnxcalib.graph.states import mark_states, offer_states


@pytest.fixture
def cell(build):
    model = build(
        """g (float[N, 4] x, float[N, 4] h, float[N, 4] c) => (float[N, 4] y, float[N, 4] hn, float[N, 4] cn,
        int64[2] odd, float[N, 8] wide) {
        hn = Add (x, h)  cn = Add (x, c)  y = Add (hn, cn)  odd = Shape (x)  wide = Concat <axis = 1> (x, x) }"""
    )
    return model


def find(model, *pairs):
    return {spec.name: spec.state for spec in mark_states(model, inputs_of(model), pairs)}


def test_pairs_are_outputs_and_inputs_by_name(cell):
    assert find(cell, "hn:h", "cn:c") == {"x": "", "h": "hn", "c": "cn"}
    assert find(cell) == {"x": "", "h": "", "c": ""}


def test_a_star_stands_for_the_same_text_in_both_names(build):
    model = build(
        """g (float[N, 4] x, float[N, 4] past_0_k, float[N, 4] past_1_k) => (float[N, 4] present_0_k, float[N, 4]
        present_1_k) { present_0_k = Add (x, past_0_k)  present_1_k = Add (x, past_1_k) }"""
    )
    assert find(model, "present_*:past_*") == {"x": "", "past_0_k": "present_0_k", "past_1_k": "present_1_k"}


def test_names_may_have_colons(cell):
    for value in (*cell.graph.input, *cell.graph.output):
        value.name = f"net:{value.name}"
    assert find(cell, "net:hn:net:h")["net:h"] == "net:hn"


def test_pairs_that_cannot_be_states_are_refused(cell):
    def refuse(text, *pairs):
        with pytest.raises(ConfigError, match=re.escape(text)):
            find(cell, *pairs)

    refuse("state: found 'hm:h'; no output of the model has the name 'hm'; its outputs are 'y'", "hm:h")
    refuse("no input of the model has the name 'hh'", "hn:hh")
    refuse("state: found 'hn*:h*x'; no output of the model has the name 'hn*'", "hn*:h*x")
    refuse("state: found outputs 'hn' and 'cn' for input 'h'", "hn:h", "cn:h")
    refuse("state: output 'odd' is int64, input 'h' float32; a state has one type", "odd:h")
    refuse("state: output 'wide' has shape (any, 8), input 'h' (any, 4); a state has one shape", "wide:h")
    refuse("state: found a state for every input", "hn:h", "cn:c", "y:x")
    cell.graph.input[1].type.tensor_type.ClearField("shape")
    refuse("state: input 'h' has no shape in the file", "hn:h")
    cell.graph.output[1].type.sequence_type.elem_type.tensor_type.elem_type = 1
    refuse("state: output 'hn' is of sequence type; a state is a tensor; name another", "hn:h")


@pytest.mark.parametrize(
    ("name", "output", "offered"),
    [
        ("state", "stateN", "--state stateN:state"),
        ("h", "hn", "--state hn:h"),
        ("c0", "cn", "--state cn:c0"),
        ("h_in", "h_out", "--state h_out:h_in"),
        ("past_0_key", "present_0_key", "--state present_0_key:past_0_key"),
        ("old", "newer", ""),
    ],
)
def test_inputs_are_offered_the_output_of_a_like_name(build, name, output, offered):
    model = build(f"g (float[N, 4] x, float[N, 4] {name}) => (float[N, 4] {output}) {{ {output} = Add (x, {name}) }}")
    assert offer_states(model, inputs_of(model)) == offered


def test_many_pairs_are_offered_with_a_star(build):
    names = range(6)
    model = build(
        f"g (float[4] x, {', '.join(f'float[4] past_{n}_k' for n in names)}) =>"
        f" ({', '.join(f'float[4] present_{n}_k' for n in names)}) {{"
        + "  ".join(f"present_{n}_k = Add (x, past_{n}_k)" for n in names)
        + "}"
    )
    offered = offer_states(model, inputs_of(model))
    assert offered == "--state 'present_*:past_*'"
    assert len(find(model, "present_*:past_*")) == 7
