"""Which ranges of an output that a Concat joins are parts, told by the number of the tensor of each element."""

import numpy as np
import pytest

from onnxcalib.graph.index import Index
from onnxcalib.graph.parts import MOST_PARTS, Joined, Part, find_joined, separate

CONV = ("Conv",)


def joined(*kinds):
    return Joined(tuple(f"t{number}" for number in range(len(kinds))), kinds, ())


def test_two_tensors_of_unlike_kinds_are_two_parts():
    labels = np.repeat([0, 1], [4, 18])[None, :, None].repeat(3, axis=0).repeat(50, axis=2)
    parts = separate(labels, joined((("Mul", *CONV), 64), (("Sigmoid", *CONV), 18)))
    assert parts == (Part(1, 0, 4, 22, ("t0",)), Part(1, 4, 22, 22, ("t1",)))
    assert [part.label for part in parts] == ["[:, 0:4]", "[:, 4:22]"]
    assert parts[1].fits((7, 22, 9)) and not parts[1].fits((7, 23, 9)) and not parts[1].fits((7,))


def test_heads_of_one_kind_and_one_size_are_parts():
    labels = np.repeat([[0, 1, 2]], 5, axis=0)
    assert len(separate(labels, joined(*[(("Gemm",), 1)] * 3))) == 3


def test_levels_that_repeat_the_pattern_merge():
    levels = [np.repeat([2 * level, 2 * level + 1], [4, 3])[None, None].repeat(size, axis=1) for level, size in
              enumerate((64, 16, 4))]  # fmt: skip
    parts = separate(np.concatenate(levels, axis=1), joined(*[(CONV, 4), (CONV, 3)] * 3))
    assert parts == (Part(2, 0, 4, 7, ("t0", "t2", "t4")), Part(2, 4, 7, 7, ("t1", "t3", "t5")))


def test_levels_alone_are_no_parts():
    labels = np.repeat([0, 1, 2], [64, 16, 4])[None, :, None].repeat(3, axis=2)
    assert separate(labels, joined(*[((*CONV, "Sigmoid"), 3)] * 3)) == ()


@pytest.mark.parametrize(
    "labels",
    [
        np.array([[0, 0], [1, 1]]),  # samples
        np.array([[[0, 1], [1, 0]]]),  # no axis parts them
        np.arange(MOST_PARTS + 1)[None],  # features
        np.zeros((2, 3), int),
    ],
)
def test_what_is_not_parted_along_one_axis_stays_whole(labels):
    assert separate(labels, joined(*[(("Gemm",), 1)] * (MOST_PARTS + 1))) == ()


def test_operators_that_move_values_are_followed_to_the_joined_tensors(build, weigh):
    model = build(
        """g (float[N, 4, 8, 8] x, int64[3] shape) => (float[N, M, 5] y, float[N, 2, 8, 8] z)
        { [a] b = Conv (x, w1)  [b] c = Conv (x, w2)  [s] p = Sigmoid (c)  [m] doubled = Add (shape, shape)
          [j] j = Concat <axis = 1> (b, p)  [r] r = Reshape (j, doubled)  [t] y = Transpose <perm = [0, 2, 1]> (r)
          [z] z = Identity (b) }""",
        w1=weigh(2, 4, 1, 1), w2=weigh(3, 4, 1, 1),
    )  # fmt: skip
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    assert find_joined(Index(model.graph), shapes) == {
        "y": Joined(("b", "p"), ((("Conv",), 2), (("Sigmoid", "Conv"), 3)), ("doubled",))
    }
