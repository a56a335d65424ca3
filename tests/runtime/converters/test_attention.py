import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcalib.runtime.blocks import BlockError, to_torch
from tests.runtime.converters.parity import make_block, make_input, node_error

SAMPLES, TOKENS, WIDTH = 2, 5, 4
TOLERANCE = 1e-5


@st.composite
def attentions(draw):
    groups, shared = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    heads, joined = groups * shared, draw(st.booleans())
    attributes = {"is_causal": draw(st.integers(0, 1))}
    if draw(st.booleans()):
        attributes["scale"] = 0.3
    if joined:
        attributes |= {"q_num_heads": heads, "kv_num_heads": groups}
        tensors = [make_input(SAMPLES, TOKENS, count * WIDTH) for count in (heads, groups, groups)]
    else:
        tensors = [make_input(SAMPLES, count, TOKENS, WIDTH) for count in (heads, groups, groups)]
    mask = draw(st.sampled_from([None, "float", "bool"]))
    if mask:
        values = make_input(TOKENS, TOKENS)
        tensors.append(values if mask == "float" else (values > 0) | np.eye(TOKENS, dtype=bool))
    return tensors, attributes


@settings(max_examples=60, deadline=None, derandomize=True)
@given(version=st.sampled_from([23, 24]), case=attentions())
def test_attention_of_any_heads_mask_and_scale_agrees(version, case):
    (query, *others), attributes = case
    assert node_error("Attention", version, query, others, **attributes) < TOLERANCE


@pytest.mark.parametrize(
    ("more", "outputs", "attributes", "text"),
    [
        ([], 4, {}, "Attention: more than one output is used"),
        ([None, make_input(1, 1, 2, 4), make_input(1, 1, 2, 4)], 1, {}, "Attention: keys and values of the past"),
        ([], 1, {"softcap": 1.0}, "Attention: softcap"),
        ([], 1, {"softmax_precision": 11}, "Attention: softmax_precision 11"),
    ],
)
def test_what_is_not_computed_is_refused(more, outputs, attributes, text):
    x = make_input(1, 1, TOKENS, WIDTH)
    block = make_block("Attention", 23, {"x": x}, [x, x, *more], outputs, **attributes)
    with pytest.raises(BlockError, match=text):
        to_torch(block)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("looked_up", [False, True])
@pytest.mark.parametrize("width", [0, 4])
def test_a_rotary_embedding_turns_pairs(interleaved, joined, looked_up, width):
    heads, size = 3, 8
    x = make_input(SAMPLES, TOKENS, heads * size) if joined else make_input(SAMPLES, heads, TOKENS, size)
    angles = make_input(*((20,) if looked_up else (SAMPLES, TOKENS)), (width or size) // 2)
    constants = [np.cos(angles), np.sin(angles)]
    if looked_up:
        constants.append(np.arange(SAMPLES * TOKENS).reshape(SAMPLES, TOKENS))
    attributes = {"interleaved": interleaved, "rotary_embedding_dim": width} | ({"num_heads": heads} if joined else {})
    if width and not joined:
        attributes["num_heads"] = heads  # onnxruntime asks for it
    assert node_error("RotaryEmbedding", 23, x, constants, **attributes) < TOLERANCE
