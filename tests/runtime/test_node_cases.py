"""The cases that the onnx package has for every operator: a block either gives what they expect, or is refused."""

import warnings
from collections import Counter

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases

from onnxcalib.runtime.blocks import BlockError, to_torch
from onnxcalib.runtime.converters.registry import get_converter

TOLERANCE = 1e-3
# Versions of the onnx package differ; 1.23 has 660, of 115 operators.
LEAST_CASES, LEAST_OPERATORS = 550, 95


def has_converters(model: ModelProto) -> bool:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    try:
        for node in model.graph.node:
            get_converter(node.op_type, versions.get(node.domain, 0), node.domain)
    except NotImplementedError:
        return False
    return not model.functions


def list_cases():
    """(name, model, inputs, outputs) of each case of one node on tensors that numpy holds."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        cases = collect_testcases()
    for case in cases:
        inputs, outputs = case.data_sets[0]
        arrays = all(isinstance(value, np.ndarray) for value in (*inputs, *outputs))
        if arrays and len(case.model.graph.node) == 1 and has_converters(case.model):
            yield case.name, case.model, inputs, outputs


def fix_inputs(model: ModelProto, inputs) -> ModelProto:
    """The model with all its inputs but the first as constants, as weights, shapes and axes mostly are."""
    fixed = ModelProto.FromString(model.SerializeToString())
    names = [value.name for value in fixed.graph.input[1:]]
    fixed.graph.initializer.extend(map(numpy_helper.from_array, inputs[1:], names))
    del fixed.graph.input[1:]
    return fixed


def differs(given: np.ndarray, wanted: np.ndarray) -> bool:
    if given.shape != wanted.shape or given.dtype != wanted.dtype:
        return True
    if wanted.dtype.kind != "f":
        return not np.array_equal(given, wanted)
    finite = np.abs(wanted[np.isfinite(wanted)].astype(np.float64))
    return not np.allclose(given, wanted, rtol=0, atol=TOLERANCE * finite.max(initial=0.0), equal_nan=True)


def run_block(model: ModelProto, inputs) -> list[np.ndarray] | None:
    """What the block computes; None where it is refused, or stops."""
    try:
        module = to_torch(model)
    except BlockError:
        return None
    try:
        with torch.no_grad():
            return [value.numpy() for value in module(*map(torch.from_numpy, inputs))]
    except Exception:  # whatever torch raises, compare() turns into a BlockError
        return None


def is_as_onnxruntime(model: ModelProto, inputs, given) -> bool:
    """Whether it gives the same where the operator's text and onnxruntime part: it runs the models that we write."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = session.run(None, dict(zip([value.name for value in session.get_inputs()], inputs, strict=True)))
    return not any(differs(ours, theirs) for ours, theirs in zip(given, wanted, strict=True))


@pytest.fixture(scope="module")
def results():
    """Name -> (operator, whether it was computed, whether it is right)."""
    found = {}
    for name, model, inputs, outputs in list_cases():
        given = run_block(model, inputs)
        if given is None and len(inputs) > 1:
            model, inputs = fix_inputs(model, inputs), inputs[:1]
            given = run_block(model, inputs)
        right = given is not None and not any(differs(a, b) for a, b in zip(given, outputs, strict=True))
        if given is not None and not right:
            right = is_as_onnxruntime(model, inputs, given)
        found[name] = (model.graph.node[0].op_type, given is not None, right)
    return found


def test_no_case_is_computed_wrong(results):
    assert [name for name, (_, computed, right) in results.items() if computed and not right] == []


def test_most_cases_are_computed(results):
    computed = Counter(op for op, done, _ in results.values() if done)
    assert computed.total() >= LEAST_CASES
    assert len(computed) >= LEAST_OPERATORS


def test_a_wrong_answer_differs():
    wanted = np.array([1.0, np.inf, 0.5], np.float32)
    assert not differs(wanted * np.float32(1.0005), wanted)
    assert differs(wanted * np.float32(1.01), wanted)
    assert differs(-wanted, wanted)
    assert differs(wanted.astype(np.float64), wanted)
    assert differs(wanted[:2], wanted)
