import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcalib.runtime.blocks import BlockError, to_torch
from tests.runtime.converters.parity import make_block, make_input, measure_error, node_error

TOLERANCE = 1e-5
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ACTIVATIONS = {"LSTM": 3, "GRU": 2, "RNN": 1}
STEPS, SAMPLES, INPUTS, HIDDEN = 4, 3, 5, 2


def make_constants(op, directions, optional=()):
    """Weight, recurrence, then those named of bias, lengths, hidden, cell and peepholes."""
    rows = GATES[op] * HIDDEN
    values = {
        "bias": make_input(directions, 2 * rows),
        "lengths": np.array([4, 2, 1], np.int32),
        "hidden": make_input(directions, SAMPLES, HIDDEN),
        "cell": make_input(SAMPLES, directions, HIDDEN).swapaxes(0, 1).copy(),
        "peepholes": make_input(directions, 3 * HIDDEN),
    }
    names = list(values)[: 5 if op == "LSTM" else 3]
    found = [values[name] if name in optional else None for name in names]
    while found and found[-1] is None:
        found.pop()
    return [make_input(directions, rows, INPUTS), make_input(directions, rows, HIDDEN), *found]


@st.composite
def recurrences(draw):
    op, direction = draw(st.sampled_from(sorted(GATES))), draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    directions = 1 + (direction == "bidirectional")
    attributes = {"direction": direction, "hidden_size": HIDDEN}
    if draw(st.booleans()):
        kinds = st.sampled_from(["Sigmoid", "Tanh", "Relu", "Softsign"])
        count = ACTIVATIONS[op] * directions
        attributes["activations"] = draw(st.lists(kinds, min_size=count, max_size=count))
    if op == "GRU":
        attributes["linear_before_reset"] = draw(st.integers(0, 1))
    optional = draw(st.sets(st.sampled_from(["bias", "lengths", "hidden", "cell", "peepholes"])))
    return op, make_constants(op, directions, optional), draw(st.integers(1, 3 if op == "LSTM" else 2)), attributes


@settings(max_examples=150, deadline=None, derandomize=True)
@given(version=st.sampled_from([7, 14, 22]), case=recurrences())
def test_a_recurrence_of_any_direction_activations_and_states_agrees(version, case):
    op, constants, outputs, attributes = case
    assert node_error(op, version, make_input(STEPS, SAMPLES, INPUTS), constants, outputs, **attributes) < TOLERANCE


@pytest.mark.parametrize("op", sorted(GATES))
def test_the_last_state_may_be_all_that_is_used(op):
    x = make_input(STEPS, SAMPLES, INPUTS)
    block = make_block(op, 14, {"x": x}, make_constants(op, 1), outputs=2, hidden_size=HIDDEN)
    del block.graph.output[0]
    assert measure_error(block, {"x": x}) < TOLERANCE
    block.graph.node[0].output[0] = ""
    assert measure_error(block, {"x": x}) < TOLERANCE


# onnxruntime refuses this layout, so that it is compared with the other one.
@pytest.mark.parametrize("op", sorted(GATES))
def test_samples_may_come_first(op):
    x, optional = make_input(STEPS, SAMPLES, INPUTS), ("bias", "lengths", "hidden")
    constants = make_constants(op, 2, optional)
    attributes = {"hidden_size": HIDDEN, "direction": "bidirectional"}
    plain = to_torch(make_block(op, 14, {"x": x}, constants, outputs=2, **attributes))
    swapped = [value.swapaxes(0, 1).copy() if place == 4 else value for place, value in enumerate(constants)]
    turned = x.swapaxes(0, 1).copy()
    other = to_torch(make_block(op, 14, {"x": turned}, swapped, outputs=2, layout=1, **attributes))
    states, last = plain(torch.from_numpy(x))
    found_states, found_last = other(torch.from_numpy(turned))
    torch.testing.assert_close(found_states, states.permute(2, 0, 1, 3), rtol=0, atol=1e-6)
    torch.testing.assert_close(found_last, last.transpose(0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"clip": 1.0}, "LSTM: clip"),
        ({"input_forget": 1}, "LSTM: input_forget"),
        ({"direction": "sideways"}, "LSTM: direction sideways"),
        ({"activations": ["Sigmoid", "Affine", "Elu"]}, "LSTM: activations Affine, Elu"),
    ],
)
def test_what_is_not_computed_is_refused(attributes, text):
    x = make_input(STEPS, SAMPLES, INPUTS)
    block = make_block("LSTM", 14, {"x": x}, make_constants("LSTM", 1), hidden_size=HIDDEN, **attributes)
    with pytest.raises(BlockError, match=text):
        to_torch(block)
