"""The parts of real outputs: found by a run, on the shapes of samples."""

import numpy as np
import pytest
import torch

from onnxcalib.quantization.output_parts import find_parts, list_parts, take_parts
from onnxcalib.quantization.output_tally import OutputTally
from onnxcalib.quantization.tensor_shapes import measure_shapes
from onnxcalib.report import list_judged, list_rows, spell_worst

HEAD = """[b3] b3 = Conv (x, wb)  [s3] s3 = Conv (x, ws)
    [p] x4 = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (x)
    [b4] b4 = Conv (x4, wb)  [s4] s4 = Conv (x4, ws)
    [c3] c3 = Concat <axis = 1> (b3, s3)  [c4] c4 = Concat <axis = 1> (b4, s4)
    [r3] r3 = Reshape (c3, rows)  [r4] r4 = Reshape (c4, rows)  [c] c = Concat <axis = 2> (r3, r4)"""
ROWS = np.array([0, 7, -1])


@pytest.fixture
def detector(build, weigh):
    """Boxes of 4 and scores of 3 channels at two levels, joined."""
    return build(
        f"g (float[N, 3, H, W] x) => (float[N, M, 7] y) {{ {HEAD} [t] y = Transpose <perm = [0, 2, 1]> (c) }}",
        wb=weigh(4, 3, 1, 1), ws=weigh(3, 3, 1, 1), rows=ROWS,
    )  # fmt: skip


def test_boxes_and_scores_of_all_levels_are_two_parts(detector, draw):
    feeds = {"x": draw(2, 3, 8, 8)}
    found = find_parts(detector, feeds)
    assert [(part.label, part.tensors) for part in found["y"]] == [
        ("[:, :, 0:4]", ("b3", "b4")),
        ("[:, :, 4:7]", ("s3", "s4")),
    ]
    assert find_parts(detector, feeds, shapes=measure_shapes(detector, feeds)) == found


def test_parts_hold_for_other_sizes_of_the_other_axes_only(detector, draw):
    found = find_parts(detector, {"x": draw(2, 3, 8, 8)})
    assert len(list_parts(found, "y", (5, 320, 7))) == 2
    assert list_parts(found, "y", (5, 320, 8)) == () and list_parts(found, "z", (5, 320, 7)) == ()


def test_boxes_split_again_are_still_parts(build, weigh, draw):
    model = build(
        f"""g (float[N, 3, 8, 8] x) => (float[N, 7, M] y) {{ {HEAD} [s] b, s = Split <axis = 1> (c, sizes)
        [k] k = Mul (b, hundred)  [q] q = Sigmoid (s)  [y] y = Concat <axis = 1> (k, q) }}""",
        wb=weigh(4, 3, 1, 1), ws=weigh(3, 3, 1, 1), rows=ROWS, sizes=np.array([4, 3]), hundred=np.float32(100),
    )  # fmt: skip
    assert [part.tensors for part in find_parts(model, {"x": draw(1, 3, 8, 8)})["y"]] == [("k",), ("q",)]


def test_an_output_that_no_concat_joins_is_whole(residual, draw):
    assert find_parts(residual, {"x": draw(1, 4, 8, 8)}) == {}


def test_a_constant_that_is_joined_is_a_part(build, weigh, draw):
    model = build(
        "g (float[1, 4] x) => (float[1, 5] y) { [m] m = MatMul (x, w)  [j] y = Concat <axis = 1> (m, one) }",
        w=weigh(4, 3), one=np.ones((1, 2), np.float32),
    )  # fmt: skip
    assert [part.tensors for part in find_parts(model, {"x": draw(1, 4)})["y"]] == [("m",), ("one",)]


def test_arrays_and_tensors_are_taken_apart(detector, draw):
    found = find_parts(detector, {"x": draw(2, 3, 8, 8)})
    value = np.arange(2 * 5 * 7).reshape(2, 5, 7)
    taken = dict(take_parts(found, "y", value, value + 1))
    assert taken.keys() == {"y[:, :, 0:4]", "y[:, :, 4:7]"}
    np.testing.assert_array_equal(taken["y[:, :, 4:7]"][1], value[:, :, 4:] + 1)
    ((name, (whole,)),) = take_parts(None, "y", torch.ones(2, 5, 7))
    assert (name, whole.shape) == ("y", (2, 5, 7))


def test_each_part_has_its_own_sqnr_in_the_record(detector, draw):
    found = find_parts(detector, {"x": draw(2, 3, 8, 8)})
    wanted = np.concatenate([np.full((6, 20, 4), 100.0), np.full((6, 20, 3), 0.5)], axis=2).astype(np.float32)
    given = wanted + np.float32(0.05)
    tally = OutputTally(parts=found)
    for start in (0, 3):
        tally.add({"y": wanted[start : start + 3]}, {"y": given[start : start + 3]}, 3)
    (record,) = tally.records()
    boxes, scores = record.parts
    assert record.sqnr_db == pytest.approx(63.6, abs=0.1)
    assert (boxes.sqnr_db, scores.sqnr_db) == (pytest.approx(66.0, abs=0.1), pytest.approx(20.0, abs=0.1))
    assert scores.name == "y[:, :, 4:7]" and scores.tensors == ("s3", "s4") and scores.agreement is None
    assert list_judged([record]) == [boxes, scores] and list_rows([record]) == [record, boxes, scores]
    assert spell_worst([record]) == "20.0 dB"


def test_an_output_whose_joined_axis_changes_is_compared_as_a_whole(detector, draw):
    tally = OutputTally(parts=find_parts(detector, {"x": draw(2, 3, 8, 8)}))
    for width in (7, 8, 7):
        value = draw(2, 5, width)
        tally.add({"y": value}, {"y": value}, 2)
    (record,) = tally.records()
    assert record.parts == () and list_judged([record]) == [record]
