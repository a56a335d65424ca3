"""Bits of weights alone: what is planned, by which losses, and what comes of it."""

import json

import numpy as np
import pytest
from onnx import numpy_helper

from onnxcalib import ConfigError, QuantizeConfig, plan, quantize
from onnxcalib.graph.constants import bits_per_weight, constant_bytes, count_weights
from onnxcalib.graph.layout import to_rows
from onnxcalib.numeric.divergence import Divergence
from onnxcalib.pipeline import prepare
from onnxcalib.planning.gradients import measure_gradients
from onnxcalib.quantization.compared import find_compared
from tests.small_models import run_model

# A decoder of one block, without attention: a gated layer, and a head over all words.
DECODER = """
decoder (int64[n, 16] ids) => (float[n, 16, words] logits) {
  x = Gather (table, ids)
  v = MatMul (x, wv)
  a = Add (x, v)
  g = MatMul (a, wg)
  s = Sigmoid (g)
  u = MatMul (a, wu)
  h = Mul (s, u)
  d = MatMul (h, wd)
  b = Add (a, d)
  logits = MatMul (b, wh)
}
"""
WORDS, WIDTH, INNER = 300, 64, 128
IDS = np.random.default_rng(0).integers(0, WORDS, (16, 16))
LAYERS = ("value", "gate", "up", "down", "head")


@pytest.fixture
def decoder(build, weigh):
    # Inputs of unlike size, as those of real layers: what a scale holds matters.
    unlike = np.exp(np.random.default_rng(1).normal(size=(INNER, 1))).astype(np.float32)
    model = build(
        DECODER, table=weigh(WORDS, WIDTH), wv=weigh(WIDTH, WIDTH), wg=weigh(WIDTH, INNER),
        wu=weigh(WIDTH, INNER), wd=3 * unlike * weigh(INNER, WIDTH), wh=20 * weigh(WIDTH, WORDS),
    )  # fmt: skip
    names = ("look", "value", "skip", "gate", "sigmoid", "up", "mul", "down", "add", "head")
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    return model


def settings(tmp_path, **changes):
    return QuantizeConfig(activation_bits=32, cache_dir=str(tmp_path), threads=1, **changes)


@pytest.mark.parametrize("limit", ["5bpw", "7bpw"])
def test_bits_and_blocks_of_weights_are_planned_within_bits_a_weight(decoder, limit, tmp_path):
    config = settings(tmp_path, max_size=limit)
    found = plan(decoder, IDS, config)
    result = quantize(decoder, IDS, config)
    named = json.loads(next(e.value for e in result.model.metadata_props if e.key == "onnxcalib.bits"))
    assert named == found.layers and set(found.layers) == {"look", *LAYERS}
    assert result.report.quantized_bytes == found.totals.bytes
    spent = bits_per_weight(result.model, count_weights(decoder))
    assert spent == found.totals.bits_per_weight == result.report.bits_per_weight
    assert float(limit.removesuffix("bpw")) - 0.5 < spent <= float(limit.removesuffix("bpw"))
    assert all(name.endswith("A32") or "A32g" in name for name in found.layers.values())


def test_a_plan_beats_one_format_everywhere_of_the_same_size(decoder, tmp_path):
    uniform = plan(decoder, IDS, settings(tmp_path, max_size="1@8-bit", candidates="W4A32g32"))
    planned = plan(decoder, IDS, settings(tmp_path / "other", max_size=str(uniform.totals.bytes)))
    assert planned.totals.bytes <= uniform.totals.bytes
    assert planned.totals.measured_loss < 0.97 * uniform.totals.measured_loss


def test_losses_by_gradients_are_near_those_of_models_with_one_layer_rounded(decoder, tmp_path):
    config = settings(tmp_path, max_size="5bpw", reconstruct=False)
    found = plan(decoder, IDS, config)
    for each in found.sets:
        (name,) = each.layers
        others = {other: {"exclude": True} for other in LAYERS if other != name}
        embedding = 32 if name != "look" else 4
        if name == "look":  # some layer has to stay
            continue
        alone = QuantizeConfig(
            weight_bits=4, activation_bits=32, block_size=32, embedding_bits=embedding, first_last_bits=4,
            reconstruct=False, layers=others, threads=1,
        )  # fmt: skip
        model = quantize(decoder, IDS, alone).model
        divergence = Divergence(axis=2)
        divergence.add(run_model(decoder, IDS)[0], run_model(model, IDS)[0])
        assert 0.6 < each.loss["W4A32g32"] / divergence.value < 1.6, name


def test_the_squares_of_gradients_of_a_table_are_of_the_rows_that_are_looked_up(decoder, tmp_path):
    prepared = prepare(decoder, IDS, QuantizeConfig(activation_bits=32, threads=1))
    compared = find_compared(prepared, {"logits": run_model(decoder, IDS[:1])[0]})
    assert compared.axes == {"logits": 2} and compared.positions == 16
    layers = [*prepared.scheme.embeddings, *prepared.scheme.layers]
    found = measure_gradients(prepared, layers, compared)
    squares = found.squares
    assert found.remaining.keys() == set(LAYERS) and all(0 < share <= 1 for share in found.remaining.values())
    assert found.remaining["gate"] == found.remaining["up"]  # which read the same tensor
    used = np.zeros(WORDS, bool)
    used[
        np.unique(np.concatenate([prepared.samples.read([i])["ids"].ravel() for i in range(len(prepared.samples))]))
    ] = True
    assert np.array_equal(squares["look"][0].any(1).numpy(), used)
    rows = to_rows(numpy_helper.to_array(decoder.graph.initializer[1]), prepared.scheme.layers[0])
    assert squares["value"].shape == rows.shape


def test_the_smallest_file_within_a_divergence_is_planned(decoder, tmp_path):
    strict, loose = (plan(decoder, IDS, settings(tmp_path, max_loss=loss)) for loss in (3e-2, 3e-1))
    assert strict.totals.measured_loss <= 3e-2 and loose.totals.measured_loss <= 3e-1
    assert loose.totals.bytes < strict.totals.bytes < 4 * count_weights(decoder)


def test_bits_that_the_settings_give_are_not_planned(decoder, tmp_path):
    layers = {"up": {"weight_bits": 4, "block_size": "column"}, "look": {"weight_bits": 4, "block_size": 64}}
    found = plan(decoder, IDS, settings(tmp_path, max_size="6bpw", layers=layers, first_last_bits=8))
    assert found.layers["up"] == "W4A32" and found.layers["look"] == "W4A32g64"
    assert found.layers["head"] == found.layers["value"] == "W8A32"


def test_a_plan_has_the_zero_points_with_which_it_was_measured(decoder, tmp_path):
    config = settings(tmp_path, max_size="5bpw", candidates="W4A32g32,W4A32g64", weight_symmetry="asymmetric")
    found = plan(decoder, IDS, config)
    result = quantize(decoder, IDS, settings(tmp_path, reconstruct=False, weight_bits=4), plan=found)
    zeros = [each for each in result.model.graph.initializer if each.name.endswith("zero_point")]
    assert found.weight_symmetry == "asymmetric" and len(zeros) == len(LAYERS)
    assert result.report.quantized_bytes == found.totals.bytes
    other = settings(tmp_path, reconstruct=False, weight_symmetry="symmetric")
    warnings = quantize(decoder, IDS, other, plan=found).report.warnings
    assert any(each.startswith("weight_symmetry: found symmetric beside a plan of asymmetric") for each in warnings)
    with pytest.raises(ConfigError, match=r"^plan: found asymmetric weights; target 'openvino' takes weights without"):
        quantize(decoder, IDS, settings(tmp_path, target="openvino"), plan=found)


def test_bits_beside_a_budget_are_warned_of(decoder, tmp_path):
    report = quantize(decoder, IDS, settings(tmp_path, max_size="5bpw", weight_bits=2, reconstruct=False)).report
    assert any(each.startswith("weight_bits: found beside a budget, within which") for each in report.warnings)


def test_a_table_that_two_nodes_look_up_is_one_set_and_counts_once(build, weigh, tmp_path):
    text = DECODER.replace("v = MatMul (x, wv)", "y = Gather (table, more)\n v = MatMul (y, wv)").replace(
        "(int64[n, 16] ids)", "(int64[n, 16] ids, int64[n, 16] more)"
    )
    weights = {
        "wv": weigh(WIDTH, WIDTH),
        "wg": weigh(WIDTH, INNER),
        "wu": weigh(WIDTH, INNER),
        "wd": weigh(INNER, WIDTH),
    }
    model = build(text, table=weigh(WORDS, WIDTH), wh=weigh(WIDTH, WORDS), **weights)
    found = plan(model, {"ids": IDS, "more": IDS[::-1].copy()}, settings(tmp_path, max_size="5bpw"))
    (tables,) = [each for each in found.sets if len(each.layers) == 2]
    assert tables.bytes["W8A32"] == WORDS * WIDTH + 4 * WORDS and tables.macs == 0
    assert len({found.layers[name] for name in tables.layers}) == 1


def test_what_torch_cannot_run_is_refused_with_the_reason(decoder, tmp_path, monkeypatch):
    monkeypatch.setattr("onnxcalib.planning.gradients.MOST_MODEL_BYTES", 1000)
    with pytest.raises(ConfigError, match=r"^plan: found a model that torch does not take \(the model has .*yourself$"):
        plan(decoder, IDS, settings(tmp_path, max_size="5bpw"))


def test_constants_are_counted_without_nodes_and_names(decoder):
    floats = sum(numpy_helper.to_array(t).size for t in decoder.graph.initializer)
    assert count_weights(decoder) == floats and constant_bytes(decoder) == 4 * floats
    assert bits_per_weight(decoder, floats) == 32


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"candidates": "W4A32,W8A8"}, r"^candidates: found W8A8 beside W4A32; weights alone, .* one kind$"),
        (
            {"candidates": "W4A32", "activation_bits": 8},
            r"^activation_bits: found 8 beside candidates W4A32, whose layers read float; give 32, or leave it out$",
        ),
        ({"candidates": "W4A8"}, r"^candidates: found W4A8 beside activation_bits 32; .* leave one of both out$"),
        ({"max_latency": "1ms"}, r"^max_latency: found it beside weights alone, .*, or another budget$"),
        ({"max_a16": 15.0}, r"^max_a16: found it beside activation_bits 32, .*; leave it out$"),
        ({"max_size": "1bpw"}, r"^max_size: found .* bytes; the smallest that can be reached is .*"),
        ({"layers": {"look": {"weight_bits": 2}}}, r"^layers: 'look': weight_bits: found 2; a table .*; give these$"),
    ],
)
def test_settings_that_contradict_a_plan_of_weights_are_refused(decoder, changes, complaint, tmp_path):
    with pytest.raises(ConfigError, match=complaint):
        plan(
            decoder,
            IDS,
            QuantizeConfig(**{"activation_bits": 32, "max_size": "5bpw", "cache_dir": str(tmp_path)} | changes),
        )


def test_bits_of_recurrent_layers_are_planned_with_those_of_others(build, weigh, tmp_path):
    text = """g (float[N, 6, 40] x) => (float[N, 8] y) {
        [first] m = MatMul (x, w1)  t = Transpose <perm = [1, 0, 2]> (m)  [it] , h = GRU <hidden_size = 32> (t, w, r)
        s = Squeeze (h, zero)  [last] y = MatMul (s, w2) }"""
    weights = {"w1": weigh(40, 40), "w": weigh(1, 96, 40), "r": weigh(1, 96, 32), "w2": weigh(32, 8)}
    model = build(text, opset=21, ir=10, zero=np.array([0]), **weights)
    x = np.random.default_rng(0).normal(size=(16, 6, 40)).astype(np.float32)
    result = quantize(model, x, settings(tmp_path, max_size="0.33", candidates=("W8A32", "W4A32g32")))
    planned = result.report.plan
    assert planned["totals"]["bytes"] == result.report.quantized_bytes <= planned["budgets"]["max_size"]
    assert planned["layers"].keys() == {"first", "it", "last"} and planned["layers"]["it"] == "W4A32g32"
    assert next(layer.weight_bits for layer in result.report.layers if layer.name == "it") == 4
    (own,) = (each for each in planned["sets"] if each["layers"] == ["it"])
    assert own["loss"]["W4A32g32"] > own["loss"]["W8A32"] > 0
