"""The padding of sliding windows, as onnxruntime's kernels have it."""

from types import SimpleNamespace

import pytest
import torch

from onnxcalib.runtime.converters.window import Window, WindowPad, pad_spatial, read_window


def make_window(**changes):
    given = {"kernel": (3,), "strides": (2,), "dilations": (1,), "pads": (1, 1), "auto_pad": "NOTSET", "ceil": False}
    return Window(**(given | changes))


def make_node(**attributes):
    return SimpleNamespace(operation_type="Conv", attributes=attributes)


def test_attributes_that_are_left_out_have_the_defaults_of_onnx():
    window = read_window(make_node(), (3, 5))
    assert window == Window((3, 5), (1, 1), (1, 1), (0, 0, 0, 0), "NOTSET", ceil=False)


def test_pads_do_not_count_beside_an_auto_pad():
    window = read_window(make_node(auto_pad="VALID", pads=[1, 1]), (3,))
    assert window.pads == (0, 0) and window.is_symmetric


def test_an_unknown_auto_pad_is_refused():
    with pytest.raises(NotImplementedError, match="Conv: auto_pad SAME"):
        read_window(make_node(auto_pad="SAME"), (3,))


@pytest.mark.parametrize(
    ("changes", "fixed", "symmetric"),
    [({}, True, True), ({"pads": (0, 1)}, True, False), ({"auto_pad": "SAME_UPPER"}, False, False)],
)
def test_padding_that_depends_on_sizes_or_differs_at_both_ends_is_told(changes, fixed, symmetric):
    window = make_window(**changes)
    assert (window.is_fixed, window.is_symmetric) == (fixed, symmetric)


@pytest.mark.parametrize(("auto_pad", "margins"), [("SAME_UPPER", [(0, 1)]), ("SAME_LOWER", [(1, 0)])])
def test_padding_to_the_same_size_puts_the_odd_element_at_the_end_or_at_the_begin(auto_pad, margins):
    """8 elements at stride 2 need 4 windows of 3, which reach over 9."""
    assert make_window(auto_pad=auto_pad).margins([8]) == margins


def test_a_dilated_window_needs_more_padding():
    assert make_window(auto_pad="SAME_UPPER", strides=(1,), dilations=(2,)).margins([8]) == [(2, 2)]


@pytest.mark.parametrize(
    ("size", "changes", "overhang"),
    [
        (8, {"ceil": True}, 1),  # windows begin at 0, 2, 4 and 6, and the last one ends at 9
        (7, {"ceil": True}, 0),
        (8, {"ceil": False}, 0),
        (4, {"ceil": True, "kernel": (2,), "strides": (3,)}, 1),  # windows begin at 0 and 3, and the last one ends at 5
    ],
)
def test_windows_overhang_only_where_sizes_are_rounded_up(size, changes, overhang):
    window = make_window(**changes, pads=(0, 0))
    assert window.overhangs([size], window.margins([size])) == [overhang]


def test_a_window_that_would_start_in_the_padding_at_the_end_is_left_out():
    """5 elements and a pad of 1 at both ends: windows of 2 at stride 3 begin at 0, 3 and, in the padding, 6."""
    window = make_window(ceil=True, kernel=(2,), strides=(3,), pads=(1, 1))
    assert window.overhangs([5], [(1, 1)]) == [0]
    assert make_window(ceil=True, kernel=(2,), strides=(3,), pads=(1, 0)).overhangs([6], [(1, 0)]) == [1]


def test_spatial_axes_are_padded_with_a_value_and_cropped_by_negative_margins():
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    padded = pad_spatial(x, [(0, 1), (-1, 0)], 9.0)
    assert padded.tolist() == [[[[1, 2], [4, 5], [9, 9]]]]
    assert pad_spatial(x, [(0, 0), (0, 0)], 9.0) is x


def test_the_module_pads_with_zeros_for_the_size_that_it_gets():
    module = WindowPad(make_window(auto_pad="SAME_UPPER"))
    assert [module(torch.ones(1, 1, size)).flatten().tolist() for size in (2, 3)] == [[1, 1, 0], [0, 1, 1, 1, 0]]
