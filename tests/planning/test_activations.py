"""Activations of 16 bits as candidates of a plan: which sets of tensors get them, and what comes of it."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import pytest

from onnxcalib import ConfigError, DataConfig, QuantizeConfig, plan, quantize
from tests.test_pipeline import LIMITS, NET, SAMPLES

EIGHT, WIDE = onnx.TensorProto.UINT8, onnx.TensorProto.UINT16
# A residual branch in front of a norm.
POST = """g (float[1, 4, 8] x) => (float[1, 4, 8] y) {
    m = MatMul (x, w)  b = Add (m, bias)  s = Add (b, x)  n = LayerNormalization (s, scale, shift)  y = MatMul (n, v)
}"""
ON_HTP = {"target": "qnn", "data": DataConfig(shape="1,3,8,8"), "effort": "fast"}


@pytest.fixture
def net(build, weigh):
    weights = {"w1": weigh(8, 3, 3, 3), "w2": weigh(8, 8, 3, 3), "w3": weigh(8, 1, 3, 3), "w4": weigh(4, 8)}
    return build(NET, **weights, b1=weigh(8), b2=weigh(8), b4=weigh(4), **LIMITS)


def types_of(model):
    """The type of the integers of each activation, by the name of the tensor in front of its QuantizeLinear.

    Where a change of grid stands in between, that behind it.
    """
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    linear = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    return {node.input[0].removesuffix("_wide"): types[node.input[2]] for node in linear}


def test_the_share_of_16_bits_is_kept_and_takes_the_loss_where_it_is_largest(net):
    found = plan(net, SAMPLES, QuantizeConfig(max_a16=30, **ON_HTP))
    assert found.budgets == {"max_a16": 30} and 0 < found.totals.a16 <= 30 and found.eight_bit.a16 == 0
    assert found.totals.measured_loss < found.eight_bit.measured_loss / 2
    assert set(found.layers.values()) <= {"W8A8", "W8A16"} and set(found.tensors.values()) == {8, 16}
    assert {each.tensors for each in found.sets} >= {("image",), ("r",), ("c",), ("m", "f")}
    assert (
        sum(each.elements for each in found.sets) == 3 * 64 + 4 * 8 * 64 + 8 + 4
    )  # a Flatten counts with what it reads


def test_what_was_planned_is_written_tensors_that_no_layer_reads_too(net):
    found = plan(net, SAMPLES, QuantizeConfig(max_a16=15, **ON_HTP))
    rounded = QuantizeConfig(reconstruct=False, **ON_HTP)
    types = types_of(quantize(net, SAMPLES, rounded, plan=found).model)
    read = {"image": "stem", "r": "inner", "t": "deep", "f": "head"}
    for tensor, layer in read.items():
        assert types[tensor] == (WIDE if found.layers[layer] == "W8A16" else EIGHT)
    assert types["c"] == (WIDE if found.tensors["c"] == 16 else EIGHT)
    wide = QuantizeConfig(activation_bits=16, reconstruct=False, **ON_HTP)
    assert types_of(quantize(net, SAMPLES, wide, plan=found).model) == types
    edited = found.model_copy(update={"tensors": {"c": 16, "scores": 8}})
    assert types_of(quantize(net, SAMPLES, rounded, plan=edited).model)["c"] == WIDE


def test_sums_in_front_of_a_norm_count_and_have_16_bits_where_the_plan_says_so(build, weigh):
    weights = {"w": weigh(8, 8), "v": weigh(8, 8), "bias": weigh(8), "scale": weigh(8), "shift": weigh(8)}
    net, x = build(POST, **weights), np.random.default_rng(0).normal(size=(16, 4, 8)).astype(np.float32)
    settings = {"target": "qnn", "effort": "fast"}
    found = plan(net, x, QuantizeConfig(max_a16=25, **settings))
    assert found.eight_bit.a16 == 0 and 0 < found.totals.a16 <= 25
    types = types_of(quantize(net, x, QuantizeConfig(**settings), plan=found).model)
    elements = {each.tensors: each.elements for each in found.sets}
    assert elements[("m_Gemm", "b")] == elements[("s",)] == 32  # a Reshape of it counts once
    assert "s" in found.tensors and found.tensors.keys().isdisjoint(weights) and 8 in found.tensors.values()
    assert all((types[t] == WIDE) == (bits == 16) for t, bits in found.tensors.items() if t in types)


def test_a_larger_share_never_loses_more(net, tmp_path):
    config = QuantizeConfig(cache_dir=tmp_path, **ON_HTP)
    plans = [plan(net, SAMPLES, config.model_copy(update={"max_a16": share})) for share in (2.0, 20.0, 60.0, 100.0)]
    losses = [each.totals.predicted_loss for each in plans]
    assert losses == sorted(losses, reverse=True) and losses[-1] == 0.0 and plans[-1].totals.a16 == 100


def test_weights_and_activations_are_planned_together_beside_another_budget(net):
    found = plan(net, SAMPLES, QuantizeConfig(max_bops="0.9@8-bit", max_a16=40, **ON_HTP))
    assert found.totals.bops <= found.budgets["max_bops"] and 0 < found.totals.a16 <= 40
    bits = set(found.layers.values())
    assert any(name.startswith("W4") for name in bits) and bits <= {"W8A8", "W4A8", "W8A16", "W4A16"}
    result = quantize(net, SAMPLES, QuantizeConfig(reconstruct=False, **ON_HTP), plan=found)
    written = {each.name: f"W{each.weight_bits}A{each.activation_bits}" for each in result.report.layers}
    assert written == found.layers


def test_times_of_16_bits_are_read_from_a_file(net, tmp_path):
    rows = ["layer,configuration,milliseconds"]
    rows += [
        f"{layer},{bits},{ms}"
        for layer in ("stem", "inner", "deep", "head")
        for bits, ms in (("W8A8", 1), ("W8A16", 2))
    ]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    times = {"max_latency": "5ms", "latencies": str(tmp_path / "t.csv"), "candidates": "W8A8,W8A16"}
    found = plan(net, SAMPLES, QuantizeConfig(max_a16=100, **times, **ON_HTP))
    assert found.totals.milliseconds == 5 and list(found.layers.values()).count("W8A16") == 1


def test_measurements_are_of_the_rules_of_a_target_not_of_its_name(net, tmp_path):
    path, losses = tmp_path / "chip.toml", []
    rules = 'name = "chip"\n[rules.activation_types]\ntypes = ["uint8", "uint16"]\nsource = "page 7"\n'
    for more in ("", '[rules.power_of_two]\nof = ["activations"]\nsource = "page 8"\n'):
        path.write_text(rules + more)
        found = plan(net, SAMPLES, QuantizeConfig(target=str(path), max_a16=20, cache_dir=tmp_path / "cache"))
        losses.append([each.loss for each in found.sets])
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            {"target": "onnxruntime"},
            "max_a16: found 15; target 'onnxruntime' computes 16 bits in float; give a target of 16-bit activations,"
            " such as qnn, or leave it out",
        ),
        ({"target": "xint8"}, "max_a16: found 15; target 'xint8' takes 8; give a target of 16-bit activations"),
        (
            {"target": "qnn", "candidates": "W8A8,W4A8"},
            "max_a16: found 15 beside candidates W8A8, W4A8; one of 16 bits is needed; add W8A16",
        ),
    ],
)
def test_a_share_that_cannot_be_used_is_refused(net, settings, complaint):
    with pytest.raises(ConfigError, match="^" + re.escape(complaint)):
        plan(net, SAMPLES, QuantizeConfig(max_a16=15, data=DataConfig(shape="1,3,8,8"), **settings))


def test_bits_of_a_tensor_without_a_grid_are_refused(net):
    found = plan(net, SAMPLES, QuantizeConfig(max_a16=15, **ON_HTP))
    edited = json.loads(found.to_json()) | {"tensors": {"nowhere": 16}}
    with pytest.raises(ConfigError, match=r"^plan: found bits of tensor 'nowhere', and of 0 more; with these settings"):
        quantize(net, SAMPLES, QuantizeConfig(**ON_HTP), plan=type(found).model_validate(edited))
