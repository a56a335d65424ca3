import pytest

from onnxcalib import QuantizeConfig, quantize, validate
from onnxcalib.progress import listening, track
from onnxcalib.report import Observer


def test_a_loop_tells_what_is_done_and_how_much_there_is():
    told = []
    with listening(lambda *each: told.append(each)):
        assert list(track("abc")) == ["a", "b", "c"]
        assert list(track(["aa", "b"], len)) == ["aa", "b"]
    assert told == [(1, 3), (2, 3), (3, 3), (2, 3), (3, 3)]
    assert list(track("abc")) == ["a", "b", "c"] and len(told) == 5  # nobody listens


def test_a_loop_inside_of_another_tells_nothing_and_one_that_is_left_early_lets_others_tell():
    told = []
    with listening(lambda *each: told.append(each)):
        for _ in track("ab"):
            list(track("abc"))
        for _ in track("abcd"):
            break
        list(track("a"))
    assert told == [(1, 2), (2, 2), (1, 1)]


class Listener(Observer):
    def __init__(self):
        self.told, self.now = {}, ""

    def stage(self, name):
        self.now = name
        self.told[name] = []

    def progress(self, done, total):
        self.told[self.now].append((done, total))


@pytest.mark.filterwarnings("ignore::onnxcalib.OnnxCalibWarning")
def test_stages_tell_how_far_they_are(build, weigh, draw):
    model = build(
        "g (float[N, 6] x) => (float[N, 4] y) { h = MatMul (x, w)  r = Relu (h)  y = MatMul (r, v) }",
        w=weigh(6, 6), v=weigh(6, 4),
    )  # fmt: skip
    samples, listener = draw(80, 6), Listener()
    config = QuantizeConfig(pipeline="advanced", weight_bits=4)
    quantized = quantize(model, samples, config, observer=listener).model
    telling = {name: told for name, told in listener.told.items() if told}
    assert {"calibrate", "reconstruct", "evaluate", "statistics", "biases", "verify"} <= telling.keys()
    assert all(0 < done <= total for told in telling.values() for done, total in told)
    listener = Listener()
    validate(model, quantized, samples, explain=True, observer=listener)
    telling = {name for name, told in listener.told.items() if told}
    assert {"compare", "explain"} <= telling
