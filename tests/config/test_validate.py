"""The gates: what they may be, and in which words a bad one is refused."""

from __future__ import annotations

import pytest

from onnxcalib.config import ValidateConfig
from onnxcalib.errors import ConfigError


def test_no_gate_but_that_of_steps_is_asked_for_by_default():
    gates = ValidateConfig().model_dump(exclude={"data", "class_axis"})
    assert {name: value for name, value in gates.items() if value is not None} == {
        "max_steps": 1, "confident": False, "batch": 1, "device_timeout": 600,
    }  # fmt: skip


def test_gates_take_the_ends_of_what_they_may_be():
    limits = {"max_drop": -0.5, "min_agreement": 100, "min_sqnr": -3, "max_size_ratio": 0.01, "min_speedup": 0.1}
    config = ValidateConfig(**limits, max_unfused=0, max_steps=0, max_saturating=0, metric="my.scores:Best.of")
    assert {name: getattr(config, name) for name in limits} == limits
    assert (config.max_unfused, config.max_steps, config.max_saturating) == (0, 0, 0)
    assert config.metric == "my.scores:Best.of"
    assert ValidateConfig(min_agreement=0).min_agreement == 0
    assert ValidateConfig(min_agreement=1.01).min_agreement == 1.01


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"min_agreement": 0.99}, "min_agreement: found 0.99; is in %, above 1 and at most 100; multiply it by 100"),
        ({"min_agreement": "99"}, "min_agreement: found '99'; input should be a valid number"),
        ({"min_agreement": 1}, "min_agreement: found 1; is in %, above 1 and at most 100"),
        ({"min_agreement": 101}, "min_agreement: found 101; input should be less than or equal to 100"),
        ({"min_agreement": -1}, "min_agreement: found -1; input should be greater than or equal to 0"),
        ({"min_agreement": float("nan")}, "min_agreement: found nan; input should be "),
        ({"max_drop": float("nan")}, "max_drop: found nan; input should be a finite number"),
        ({"max_drop": "one"}, "max_drop: found 'one'; input should be a valid number"),
        ({"min_sqnr": float("inf")}, "min_sqnr: found inf; input should be a finite number"),
        ({"max_size_ratio": 0}, "max_size_ratio: found 0; input should be greater than 0"),
        ({"max_size_ratio": float("inf")}, "max_size_ratio: found inf; input should be a finite number"),
        ({"min_speedup": -1}, "min_speedup: found -1; input should be greater than 0"),
        ({"max_unfused": -1}, "max_unfused: found -1; input should be greater than or equal to 0"),
        ({"max_unfused": True}, "max_unfused: found True; input should be a valid integer"),
        ({"max_unfused": 0.5}, "max_unfused: found 0.5; input should be a valid integer"),
        ({"max_steps": -1}, "max_steps: found -1; input should be greater than or equal to 0"),
        ({"max_steps": None}, "max_steps: found None; input should be a valid integer"),
        ({"max_saturating": -1}, "max_saturating: found -1; input should be greater than or equal to 0"),
        ({"max_saturating": 1.5}, "max_saturating: found 1.5; input should be a valid integer"),
        ({"confident": "yes"}, "confident: found 'yes'; input should be a valid boolean"),
        ({"metric": "scores"}, "metric: found 'scores'; must be MODULE:FUNCTION"),
        ({"metric": "my scores:f"}, "metric: found 'my scores:f'; must be MODULE:FUNCTION"),
        ({"batch": 0}, "batch: found 0; input should be greater than or equal to 1"),
        ({"gate": 8}, "gate: unknown setting; 'gate' is none of max_drop, min_agreement"),
        ({"weight_bits": 8}, "weight_bits: unknown setting; it belongs at the top of the file (QuantizeConfig)"),
        ({"max_dropp": 8}, "max_dropp: unknown setting; did you mean 'max_drop'?"),
        ({"data": {"means": 0}}, "means: unknown setting; did you mean 'mean'?"),
    ],
)
def test_a_bad_gate_is_refused_in_one_line(values, text):
    with pytest.raises(ConfigError) as refusal:
        ValidateConfig(**values)
    assert str(refusal.value).startswith(text) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("max_drop", -1e9, 1e9), ("min_agreement", 0, 100), ("min_sqnr", -1e4, 1e4), ("max_size_ratio", 1e-300, 1e6),
        ("min_speedup", 1e-300, 1e6), ("max_unfused", 0, 10**9), ("max_steps", 0, 65_535), ("threads", 1, 1024),
        ("max_saturating", 0, 10**9), ("samples", 1, 10**9), ("batch", 1, 4096),
        ("reference", 1, 10**9), ("min_reference_sqnr", -1e4, 1e4),
    ],
)  # fmt: skip
def test_gates_are_taken_between_their_bounds_and_refused_beyond_and_of_other_types(name, least, most):
    for value in (least, most):
        assert getattr(ValidateConfig(**{name: value}), name) == value
    for value in (least - 1, most * 1.001 + 1, 10**5000, 1e400, -1e400, float("nan"), True, str(most), [most], {}):
        with pytest.raises(ConfigError, match=f"^{name}: found .*"):
            ValidateConfig(**{name: value})


@pytest.mark.parametrize("metric", ["", " ", "a:", ":b", "a:b\n", "a:b;c", 3, "a:\ud800"])
def test_a_metric_names_a_function(metric):
    with pytest.raises(ConfigError, match=r"^metric: found "):
        ValidateConfig(metric=metric)
