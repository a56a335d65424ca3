import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxcalib.runtime.blocks import BlockError, compare, to_torch
from tests.runtime.converters.parity import make_block, make_input, node_error

TOLERANCE = 1e-5
VERSIONS = (1, 11, 22)


@st.composite
def convolutions(draw, op):
    rank, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4]))
    channels, filters = 4, 4 * draw(st.integers(1, 2))
    kernel = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    strides = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    attributes = {
        "group": groups,
        "strides": strides,
        "dilations": draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank)),
        "pads": draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank)),
    }
    if draw(st.booleans()):
        attributes["pads"] = attributes["pads"][:rank] * 2
    if op == "ConvTranspose" and draw(st.booleans()):
        attributes["output_padding"] = [draw(st.integers(0, stride - 1)) for stride in strides]
    shape = (filters, channels // groups) if op == "Conv" else (channels, filters // groups)
    constants = [make_input(*shape, *kernel)] + ([make_input(filters)] if draw(st.booleans()) else [])
    return make_input(2, channels, *[7] * rank), constants, attributes


@settings(max_examples=100, deadline=None, derandomize=True)
@given(version=st.sampled_from(VERSIONS), case=convolutions("Conv"))
def test_a_convolution_of_any_rank_groups_and_padding_agrees(version, case):
    x, constants, attributes = case
    assert node_error("Conv", version, x, constants, **attributes) < TOLERANCE


@settings(max_examples=100, deadline=None, derandomize=True)
@given(version=st.sampled_from(VERSIONS), case=convolutions("ConvTranspose"))
def test_a_transposed_convolution_of_any_rank_groups_and_padding_agrees(version, case):
    x, constants, attributes = case
    assert node_error("ConvTranspose", version, x, constants, **attributes) < TOLERANCE


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_convolution_pads_by_itself(auto_pad, size, stride):
    x, weight = make_input(1, 2, size, size), make_input(3, 2, 2, 3)
    assert node_error("Conv", 11, x, [weight], auto_pad=auto_pad, strides=[stride, stride]) < TOLERANCE


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    version=st.sampled_from(VERSIONS),
    auto_pad=st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"]),
    kernel=st.integers(2, 4),
    stride=st.integers(1, 2),
    cut=st.integers(0, 3),
)
def test_a_transposed_convolution_has_the_size_that_is_asked_for(version, auto_pad, kernel, stride, cut):
    x, weight = make_input(1, 2, 5, 6), make_input(2, 3, kernel, kernel)
    attributes = {"auto_pad": auto_pad, "strides": [stride, stride]}
    assume(kernel >= stride)
    if auto_pad in ("NOTSET", "VALID"):
        attributes["output_shape"] = [(size - 1) * stride + kernel - cut for size in (5, 6)]
    assert node_error("ConvTranspose", version, x, [weight], **attributes) < TOLERANCE


def test_a_transposed_convolution_cannot_be_cut_to_more_than_it_has():
    x = make_input(1, 2, 5)
    block = make_block("ConvTranspose", 11, {"x": x}, [make_input(2, 2, 3)], output_shape=[9])
    with pytest.raises(BlockError, match="ConvTranspose: 9 elements asked for, of 7"):
        compare(to_torch(block), block, {"x": x}, [])


def test_a_convolution_over_four_axes_is_refused():
    x, weight = make_input(1, 1, 2, 2, 2, 2), make_input(1, 1, 1, 1, 1, 1)
    for op in ("Conv", "ConvTranspose"):
        with pytest.raises(BlockError, match=f"{op}: 4 spatial axes"):
            to_torch(make_block(op, 11, {"x": x}, [weight]))


def test_an_unknown_auto_pad_is_refused():
    block = make_block("Conv", 11, {"x": make_input(1, 2, 5)}, [make_input(2, 2, 3)], auto_pad="SAME")
    with pytest.raises(BlockError, match="Conv: auto_pad SAME"):
        to_torch(block)


def test_a_weight_that_is_computed_is_refused_with_its_name():
    block = make_block("Conv", 11, {"x": make_input(1, 2, 5), "w": make_input(2, 2, 3)})
    with pytest.raises(BlockError, match=r"Conv: input 1 \(w\) is not a constant"):
        to_torch(block)


def test_a_weight_of_integers_is_refused():
    block = make_block("Conv", 11, {"x": make_input(1, 2, 5)}, [make_input(2, 2, 3).astype("int8")])
    with pytest.raises(BlockError, match=r"Conv: weight of type torch.int8"):
        to_torch(block)
