import numpy as np
import pytest

from onnxcalib.quantization import joined_runs
from onnxcalib.quantization.joined_runs import Outputs, join_runs, join_steps


def make_run(number, *, samples=1, width=3, real=None):
    values = np.full((samples, width), number, np.float32)
    return Outputs({"y": values}, {"y": values + 1}, samples, real)


def join(runs):
    return [(each.samples, each.wanted["y"][:, 0].tolist(), (each.given["y"] - 1)[:, 0].tolist()) for each in runs]


def test_neighbours_of_one_shape_are_joined_in_their_order():
    found = join(join_runs(map(make_run, range(5))))
    assert found == [(5, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4])]


def test_the_steps_of_a_sequence_are_one_sample(monkeypatch):
    runs = [make_run(number) for number in range(5)]
    assert join(join_steps(runs, [0, 0, 0, 1, 1])) == [(1, [0, 1, 2], [0, 1, 2]), (1, [3, 4], [3, 4])]
    odd = Outputs({"y": [np.zeros(3)]}, {"y": [np.zeros(3)]}, 1, None)
    assert [each is odd for each in join_steps([runs[0], odd], [0, 0])] == [False, True]
    monkeypatch.setattr(joined_runs, "MOST_BYTES", 2 * runs[0].wanted["y"].nbytes)
    assert join(join_steps(runs[:3], [0, 0, 0])) == [(1, [0, 1], [0, 1]), (1, [2], [2])]


def test_runs_are_joined_up_to_so_many_samples_and_bytes(monkeypatch):
    monkeypatch.setattr(joined_runs, "MOST_SAMPLES", 4)
    runs = [make_run(number, samples=2) for number in range(5)]
    assert [samples for samples, *_ in join(join_runs(runs))] == [4, 4, 2]
    monkeypatch.setattr(joined_runs, "MOST_BYTES", runs[0].wanted["y"].nbytes)
    assert [samples for samples, *_ in join(join_runs(runs))] == [2] * 5


@pytest.mark.parametrize(
    "other",
    [
        make_run(1, width=4),
        make_run(1, real=np.ones((1, 3), bool)),
        Outputs({"y": np.zeros((2, 3), np.float32)}, {"y": np.zeros((2, 3), np.float32)}, 1, None),
        Outputs({"y": [np.zeros(3)]}, {"y": [np.zeros(3)]}, 1, None),
        Outputs({"y": np.zeros((1, 3), np.float32)}, {"y": np.zeros((1, 2), np.float32)}, 1, None),
    ],
)
def test_runs_of_other_shapes_padding_or_types_stay_alone(other):
    assert [each is run for each, run in zip(join_runs([make_run(0), other]), [None, other], strict=True)][1]
