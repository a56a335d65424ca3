"""When the divergence of outputs is known, and when it is infinite."""

from dataclasses import replace

import pytest

from onnxcalib.graph.parts import Part
from onnxcalib.planning.loss import ReferenceBatch, divergence_of


class Fake:
    """A session that gives these outputs, one after the other."""

    def __init__(self, *outputs):
        self.outputs, self.runs = list(outputs), 0

    def run(self, feeds, names):
        self.runs += 1
        return {"y": self.outputs[self.runs - 1]}


def keep(tensor, values):
    return values


def test_no_more_batches_are_run_once_the_divergence_is_known(draw):
    wanted = draw(8, 3, 4, 4)
    batches = [ReferenceBatch({}, {"y": wanted}, keep)] * 9
    session = Fake(*[wanted * 1.1] * 9)
    assert divergence_of(session, batches, ["y"]) == pytest.approx(0.01, rel=1e-4)
    assert session.runs == 2  # of 8 samples each, and 16 are needed at least
    some = [replace(each, same=number % 2 == 0) for number, each in enumerate(batches)]
    assert divergence_of(session, some, ["y"]) == pytest.approx(0.04 / 9, rel=1e-4)
    assert session.runs == 2 + 4
    noisy = Fake(*[wanted * (1 + 0.5**i) for i in range(9)])
    divergence_of(noisy, batches, ["y"])
    assert noisy.runs == 9


def test_each_part_counts_relative_to_its_own_power(draw):
    parts = {"y": (Part(1, 0, 4, 7, ("b",)), Part(1, 4, 7, 7, ("s",)))}
    wanted = draw(8, 7, 4)
    wanted[:, :4] *= 1000
    given = wanted.copy()
    given[:, 4:] *= 1.5
    batches = [ReferenceBatch({}, {"y": wanted}, keep, parts)] * 2
    assert divergence_of(Fake(given, given), batches, ["y"]) == pytest.approx(0.125)
    whole = [ReferenceBatch({}, {"y": wanted}, keep)] * 2
    assert divergence_of(Fake(given, given), whole, ["y"]) < 1e-5


def test_the_divergence_is_infinite_where_no_output_has_the_shape_of_its_reference(draw):
    batches = [ReferenceBatch({}, {"y": draw(2, 3)}, keep) for _ in range(2)]
    assert divergence_of(Fake(draw(1, 3), draw(3, 3)), batches, ["y"]) == float("inf")
    assert divergence_of(Fake(draw(1, 3), batches[1].outputs["y"]), batches, ["y"]) == 0
