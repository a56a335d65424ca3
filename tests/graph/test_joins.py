"""Concats whose parts are taken apart again, and those that have to stay on integers."""

import numpy as np
import pytest

from onnxcalib.graph.index import Index
from onnxcalib.graph.joins import find_parted_joins

TWO = "[b] b = Conv (x, wb)  [s] s = Conv (x, ws)  [j] j = Concat <axis = 1> (b, s)"
FLAT = np.array([0, 7, -1])


@pytest.fixture
def find(build, weigh):
    def run(body, outputs="float[N, A, B] y", **more):
        weights = {"wb": weigh(4, 3, 1, 1), "ws": weigh(3, 3, 1, 1), **more}
        used = {name: value for name, value in weights.items() if name in body}
        model = build(f"g (float[N, 3, 8, 8] x) => ({outputs}) {{ {body} }}", **used)
        return find_parted_joins(model, Index(model.graph))

    return run


def test_boxes_and_scores_of_two_levels_that_are_split_again(find):
    body = f"""{TWO}  [p] x4 = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (x)  [b4] b4 = Conv (x4, wb)
        [s4] s4 = Conv (x4, ws)  [j4] j4 = Concat <axis = 1> (b4, s4)  [r] r = Reshape (j, flat)
        [r4] r4 = Reshape (j4, flat)  [k] k = Concat <axis = 2> (r, r4)  [t] y, z = Split <axis = 1> (k, sizes)"""
    found = find(body, "float[N, 4, M] y, float[N, 3, M] z", flat=FLAT, sizes=np.array([4, 3]))
    assert found == {"j", "j4", "r", "r4", "k", "t"}


def test_slices_take_the_parts_apart_behind_a_transpose(find):
    body = f"""{TWO}  [t] t = Transpose <perm = [0, 2, 3, 1]> (j)  [f] y = Slice (t, zero, four, axis)
        [g] z = Slice (t, four, seven, axis)"""
    ends = {"zero": np.array([0]), "four": np.array([4]), "seven": np.array([7]), "axis": np.array([-1])}
    assert find(body, "float[N, 8, 8, 4] y, float[N, 8, 8, 3] z", **ends) == {"j", "t", "f", "g"}


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("[c] y = Conv (j, wc)", "float[N, 2, 8, 8] y"),  # U-Net, DenseNet: a layer reads all parts
        ("[t] y, z = Split <axis = 1> (j, across)", "float[N, 5, 8, 8] y, float[N, 2, 8, 8] z"),
        ("[t] y, z = Split <axis = 2> (j, halves)", "float[N, 7, 4, 8] y, float[N, 7, 4, 8] z"),
        ("[t] y, z = Split <axis = 1> (j, sizes)  [c] k = Conv (j, wc)", "float[N, 4, 8, 8] y, float[N, 2, 8, 8] k"),
        ("[t] y, z = Split <axis = 1> (j, sizes)", "float[N, 4, 8, 8] y, float[N, 7, 8, 8] j"),
    ],
)
def test_what_is_needed_together_stays_on_integers(find, weigh, body, outputs):
    sizes = {"across": np.array([5, 2]), "halves": np.array([4, 4]), "sizes": np.array([4, 3])}
    given = {name: value for name, value in sizes.items() if name in body}
    assert find(f"{TWO} {body}", outputs, wc=weigh(2, 7, 1, 1), **given) == set()


def test_a_channel_shuffle_mixes_the_parts_and_stays_on_integers(find, weigh):
    body = """[a] a = Conv (x, wa)  [b] b = Conv (x, wa)  [j] j = Concat <axis = 1> (a, b)  [r] r = Reshape (j, two)
        [t] t = Transpose <perm = [0, 2, 1, 3, 4]> (r)  [q] q = Reshape (t, back)
        [s] y, z = Split <axis = 1> (q, sizes)"""
    shapes = {"two": np.array([0, 2, 4, 8, 8]), "back": np.array([0, 8, 8, 8]), "sizes": np.array([4, 4])}
    assert find(body, "float[N, 4, 8, 8] y, float[N, 4, 8, 8] z", wa=weigh(4, 3, 1, 1), **shapes) == set()
