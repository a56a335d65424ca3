"""Nodes on integers that onnxruntime refuses are found before the expensive stages, and stay in float."""

import re

import numpy as np
import pytest

import onnxcalib
from onnxcalib.errors import ModelError
from onnxcalib.graph.names import Selection
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.quantization import trial as module
from onnxcalib.quantization.trial import Trial, emit_placeholders, find_fault

# onnxruntime turns its convolutions' channels to the end, where its cubic Resize cannot read them.
CUBIC = """g (float[N, 4, 8, 8] x) => (float[N, 4, a, b] y) {
    [first] c = Conv (x, w1)  [cubic] m = Resize <mode = "cubic"> (c, , s)  [last] y = Conv (m, w2)
    [other] z = Conv (x, w3)
}""".replace("y)", "y, float[N, 4, 8, 8] z)", 1)
CHAIN = """g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
    [one] a = Conv (x, w1)  [sigmoid] b = Sigmoid (a)  [two] c = Conv (b, w2)  [add] d = Add (c, b)
    [three] y = Conv (d, w3)
}"""


@pytest.fixture
def trial_of(build, weigh, draw):
    """The trial of a model with weights w1 to w3, and a batch of its input."""

    def make(text, encoding="runtime", **bits):
        weights = {f"w{i}": weigh(4, 4, 1, 1) for i in (1, 2, 3)} | {"s": np.float32([1, 1, 1.5, 0.75])}
        used = {name: value for name, value in weights.items() if re.search(rf"\b{name}\b", text)}
        model = build(text, opset=21, ir=10, **used)
        feeds = {"x": draw(2, 4, 8, 8)}
        return Trial(
            model,
            lambda names: make_scheme(model, selection=Selection(frozenset(names)), **bits),
            lambda scheme: emit_placeholders(model, scheme, encoding),
            feeds,
        )

    return make


@pytest.mark.parametrize("bits", [{}, {"weight_bits": 4, "activation_bits": 4}, {"activation_bits": 32}])
@pytest.mark.parametrize("encoding", ["runtime", "standard"])
def test_a_model_that_onnxruntime_takes_has_no_culprits(trial_of, encoding, bits):
    assert trial_of(CHAIN, encoding, **bits).find_refused({}) == {}


def test_what_onnxruntime_refuses_stays_in_float_and_the_reason_quotes_it(trial_of):
    trial = trial_of(CUBIC)
    found = trial.find_refused({})
    assert list(found) == ["first"]
    assert re.match(r"with it on integers, onnxruntime cannot take the file: \[ONNXRuntimeError\]", found["first"])
    assert trial.find_fault(trial.make(found)) is None


def test_a_model_with_a_node_that_is_refused_still_gets_a_file(trial_of, draw):
    model = trial_of(CUBIC).model
    result = onnxcalib.quantize(model, draw(32, 4, 8, 8), onnxcalib.QuantizeConfig(reconstruct=False))
    assert [record.name for record in result.report.in_float] == ["first"]
    assert find_fault(result.model, {"x": draw(1, 4, 8, 8)}) is None
    assert [layer.name for layer in result.report.layers] == ["last", "other"]


@pytest.mark.parametrize("refused", [{"add"}, {"two"}, {"sigmoid", "three"}, {"one", "add", "three"}])
@pytest.mark.parametrize("most", [module.MOST_CULPRITS, 1])
def test_the_nodes_are_found_by_bisection(trial_of, monkeypatch, refused, most):
    """onnxruntime is replaced by one that refuses some nodes: these are found, and no others."""
    monkeypatch.setattr(module, "MOST_CULPRITS", most)
    trial = trial_of(CHAIN)
    tried = []

    def find_fault_of(self, scheme):
        float_now = set(tried[-1])
        return "no" if refused - float_now else None

    def make(names):
        tried.append(names)
        return make_scheme(trial.model, selection=Selection(frozenset(names)))

    monkeypatch.setattr(Trial, "find_fault", find_fault_of)
    found = Trial(trial.model, make, trial.emit, trial.feeds).find_refused({})
    assert set(found) == refused
    assert len(tried) < 40


def test_a_model_of_which_nothing_is_taken_is_refused(trial_of, monkeypatch):
    monkeypatch.setattr(module, "find_fault", lambda *_, **options: "[E] no")
    with pytest.raises(ModelError, match=r"^graph: onnxruntime takes no layer of it on integers: \[E\] no; keep the"):
        trial_of(CHAIN).find_refused({})
