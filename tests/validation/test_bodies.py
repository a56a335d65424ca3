"""Layers in bodies of If, Loop and Scan are explained, and their integer tensors compared, as those outside are."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
from onnx import numpy_helper

from onnxcalib import OnnxCalibWarning, QuantizeConfig, quantize
from onnxcalib.data import open_calibration
from onnxcalib.graph.edit import copy_model
from onnxcalib.graph.index import all_graphs
from onnxcalib.graph.load import inputs_of
from onnxcalib.validation.explain import explain
from onnxcalib.validation.kernel_consistency import check_consistency
from tests.quantization.odd_bodies import ODD


@pytest.fixture(scope="module")
def quantized():
    """Quantizes one of ODD, each once."""
    done = {}

    def make(name):
        odd = ODD[name]
        if name not in done:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", OnnxCalibWarning)
                config = QuantizeConfig(threads=1, reconstruct=False)
                done[name] = quantize(odd.build(), odd.samples(), config).model
        model = odd.build()
        return model, copy_model(done[name]), open_calibration(odd.samples(), inputs_of(model))

    return make


def scale(model, pattern, factor):
    """Multiply the one scale whose name matches, in whichever graph it is."""
    found = [t for graph in all_graphs(model.graph) for t in graph.initializer if re.fullmatch(pattern, t.name)]
    (tensor,) = found
    value = numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))


@pytest.mark.parametrize(
    ("name", "pattern", "worst"),
    [
        ("an outer tensor of layers outside and inside", "v_scale", "second"),
        ("an outer tensor of layers outside and inside", "w_scale", "one"),
        ("an If in a Loop in an If", "w_scale", "other"),
        ("a Scan with a state", "v_scale", "in"),
        ("node names of outside and of the other branch", "w_scale", "fc_2"),
    ],
)
def test_the_layer_whose_scale_is_wrong_is_the_worst_wherever_it_is(quantized, name, pattern, worst):
    original, model, samples = quantized(name)
    before = explain(original, model, samples, 1)
    assert before.unmatched == () and all(layer.alone_db > 35 for layer in before.layers)
    scale(model, pattern, 1.5)
    found = explain(original, model, samples, 1)
    assert found.layers[0].name == worst and found.layers[0].alone_db == pytest.approx(6, abs=0.5)
    assert any("are ranked by the outputs of their body" in note for note in found.notes)


def test_tensors_with_numbers_behind_the_names_of_the_other_branch_are_told_apart(quantized):
    original, model, samples = quantized("names with numbers in both branches")
    found = explain(original, model, samples, 1)
    assert found.unmatched == () and all(layer.alone_db > 35 for layer in found.layers)


def test_functions_and_branches_that_constants_choose_are_read_as_quantize_does(quantized):
    for name, layers in (("a function called in a body", 2), ("a constant condition", 2)):
        original, model, samples = quantized(name)
        found = explain(original, model, samples, 1)
        assert found.unmatched == () and len({each.name for each in found.layers}) == layers
        assert all(layer.alone_db > 35 for layer in found.layers)


def test_bodies_that_no_sample_runs_are_named(quantized):
    original, model, samples = quantized("a branch that no sample takes")
    line = "If_y/then_branch: no sample runs it"
    assert explain(original, model, samples, 1).unmatched == (line,)
    record = check_consistency(model, samples, 1)
    assert record.unread == (line,) and [each.tensor for each in record.tensors] == ["If_y/else_branch/x_quantized"]


def test_a_body_that_the_float_model_does_not_have_is_named(quantized):
    _, model, samples = quantized("both branches")
    other, _, _ = quantized("a layer behind a Loop alone")
    found = explain(other, model, samples, 1)
    assert {"If_y/then_branch: the float model has no such body"} <= {*found.unmatched}


def test_integer_tensors_of_bodies_are_compared_each_from_those_before(quantized):
    _, model, samples = quantized("an If in a Loop in an If")
    found = check_consistency(model, samples, 1)
    assert sorted(each.tensor.rpartition("/")[0] for each in found.tensors) == [
        f"If_y/then_branch/Loop_p/body/If_t/{branch}_branch" for branch in ("else", "then")
    ]
    assert found.steps == 0 and found.unread == ()
