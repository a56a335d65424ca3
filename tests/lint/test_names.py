"""A target that names an operator which ONNX does not have is refused, as such a rule would hold for every file."""

from __future__ import annotations

import pytest

from onnxcalib.errors import ConfigError
from onnxcalib.lint.names import check_names
from onnxcalib.targets import Target, list_targets


@pytest.mark.parametrize("target", list_targets(), ids=lambda target: target.name)
def test_the_targets_name_operators_of_onnx(target):
    check_names(target)


@pytest.mark.parametrize(
    ("kind", "rule", "key"),
    [
        ("aligned", {"operators": ("MaxPool", "Concatt")}, "operators"),
        ("attributes", {"operators": {"Concatt": ("axis",)}}, "operators"),
        ("pairs", {"between": ("Concatt",)}, "between"),
        ("weight_scales", {"granularity": "channel", "axes": {"Concatt": 0}}, "axes"),
        ("biases", {"kinds": {"Concatt": ("int32",)}}, "kinds"),
        ("fixed_grids", {"grids": {"Concatt": {"uint8": (0.5, 0)}}}, "grids"),
        ("quantized_outputs", {"operators": ("Conv",), "through": ("Concatt",)}, "through"),
        ("quantized_outputs", {"operators": ("Conv",), "at_exit": ("Concatt",)}, "at_exit"),
    ],
)
def test_an_operator_that_onnx_does_not_have_is_refused(kind, rule, key):
    target = Target.model_validate({"name": "chip", "rules": {kind: {**rule, "source": "page 7"}}})
    with pytest.raises(ConfigError, match=rf"target 'chip': rules\.{kind}\.{key}: found 'Concatt'; operators of ONNX"):
        check_names(target)


def test_patterns_of_forbidden_operators_may_name_any():
    rules = {"operators": {"forbidden": ("QLinear*", "MatMulNBits"), "source": "page 7"}}
    check_names(Target.model_validate({"name": "chip", "rules": rules}))
