"""Bits of layers in bodies of If, Loop and Scan, and of recurrent ones, are planned with those outside."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import numpy_helper

from onnxcalib import BitPlan, ConfigError, QuantizeConfig, open_calibration, plan, prepare, quantize
from onnxcalib.bitplan import Totals
from onnxcalib.graph.edit import copy_model
from onnxcalib.graph.save import fingerprint
from onnxcalib.planning.graphs import open_graphs, order_samples
from onnxcalib.quantization import placement
from onnxcalib.runtime.session import Session
from tests.quantization.test_bodies import CONVS, conv_weights
from tests.test_pipeline import bits_of

pytestmark = pytest.mark.filterwarnings("ignore::onnxcalib.errors.OnnxCalibWarning")

# Both branches read w, one of them twice; the Loop runs twice.
NET = """
g (float[1, 6, 32] x, bool flag) => (float[1, 6, 32] y) {
  h = MatMul (x, u) r = Relu (h)
  z = If (flag) <
    then_branch = yes () => (float[1, 6, 32] p) {
      a = MatMul (r, w) b = Relu (a) n = MatMul (b, w)
      p = Loop (two, on, n) <
        body = turn (int64 i, bool c, float[1, 6, 32] s) => (bool d, float[1, 6, 32] t) {
          m = MatMul (s, v) t = Add (m, s) d = Identity (c)
        }
      >
    },
    else_branch = no () => (float[1, 6, 32] q) {
      e = MatMul (r, w) f = Tanh (e) [cell] , g = RNN <hidden_size = 32> (f, i, k) q = Identity (g)
    }
  >
  y = MatMul (z, o)
}
"""

BODY = """
g (float[1, 6, 32] x, bool flag) => (float[1, 6, 32] y) {
  a = MatMul (x, w)
  y = If (flag) <
    then_branch = yes () => (float[1, 6, 32] p) {
      b = MatMul (a, v) [cell] , g = RNN <hidden_size = 32> (b, i, k) p = Identity (g)
    },
    else_branch = no () => (float[1, 6, 32] q) { q = Identity (a) }
  >
}
"""


def settings(folder, **more):
    fixed = {"effort": "fast", "threads": 1, "jobs": 1, "candidates": ("W8A8", "W4A8")}
    return QuantizeConfig(**{**fixed, "cache_dir": str(folder), "placement": "all", **more})


def draw_samples(flags, shape=(1, 6, 32)):
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=shape).astype(np.float32), "flag": np.array(flag)} for flag in flags]


def read_float(layer):
    """A rule by which this layer reads float."""

    def find(prepared, behind):
        return {each.name: "a reason" for each in prepared.scheme.layers if each.name == layer}

    return find


@pytest.fixture
def net(build, weigh):
    weights = {**{name: weigh(32, 32) for name in "uwvo"}, **{name: weigh(1, 32, 32) for name in "ik"}}
    return build(NET, two=np.array(2), on=np.array(True), **weights)


@pytest.fixture
def small(build, weigh):
    return build(BODY, w=weigh(32, 32), v=weigh(32, 32), i=weigh(1, 32, 32), k=weigh(1, 32, 32))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_layers_in_bodies_are_planned_with_those_outside_and_a_plan_file_is_obeyed(net, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(placement, "find_coarse_spectra", read_float("MatMul_m"))
    samples = draw_samples([True, False] * 2)
    found = plan(net, samples, settings(cache, max_size="0.93@8-bit"))
    assert found.totals.bytes <= found.budgets["max_size"]
    assert {each.layers for each in found.sets} == {
        *(("MatMul_h",), ("MatMul_y",), ("MatMul_m",), ("cell",)),
        (
            "MatMul_a",
            "MatMul_n",
            "MatMul_e",
        ),  # one weight is stored once, for two layers of one graph and one of another
    }
    free = [each for each in found.sets if len(each.loss) > 1]
    assert {name for each in free for name in each.layers} == {"MatMul_a", "MatMul_e", "MatMul_m", "MatMul_n", "cell"}
    names = {each.layers[0]: set(each.loss) for each in free}
    assert names.pop("cell") == {"W8A32", "W4A32g32"} == names.pop("MatMul_m")  # the weights' bits of each candidate
    assert all(own == {"W8A8", "W4A8"} for own in names.values())
    assert all(few > many > 0 for many, few in (each.loss.values() for each in free))
    assert found.layers["MatMul_h"] == found.layers["MatMul_y"] == "W8A8"
    by_turns = next(each for each in found.sets if each.layers == ("MatMul_m",))
    assert by_turns.macs == 0.5 * 2 * 6 * 32 * 32  # half of the samples take the branch
    assert {"W4A8", "W4A32g32"} & set(found.layers.values())
    (tmp_path / "plan.json").write_text(found.to_json())
    result = quantize(net, samples, settings(cache), plan=tmp_path / "plan.json")
    assert bits_of(result.model) == found.layers and not result.report.in_float
    assert result.report.quantized_bytes == found.totals.bytes


@pytest.mark.parametrize(
    ("layers", "fault"),
    [
        ({"MatMul_a": "W8A8", "cell": "W8A32"}, "found no bits of layer 'MatMul_b', nor of 0 more"),
        ({"MatMul_a": "W8A8", "MatMul_b": "W8A8", "MatMul_z": "W8A8"}, "found bits of 'MatMul_z'; no node has this"),
    ],
)
def test_a_plan_that_lacks_a_layer_in_a_body_or_names_one_that_no_body_has_is_refused(small, layers, fault):
    nothing = Totals(predicted_loss=0, measured_loss=0, bytes=0, bops=0)
    given = {"model": fingerprint(small), "budgets": {}, "bound": 0, "rounds": 1, "sets": ()}
    found = BitPlan(layers=layers, totals=nothing, eight_bit=nothing, **given)
    config = QuantizeConfig(pipeline="light", threads=1, placement="all")
    with pytest.raises(ConfigError, match=f"plan: {fault}"):
        quantize(small, draw_samples([True]), config, plan=found)


def test_a_branch_that_no_sample_takes_is_float_in_the_plan_with_its_reason(small, cache):
    found = plan(small, draw_samples([False] * 4), settings(cache, max_bops="1@8-bit"))
    assert found.layers == {"MatMul_a": "W8A8", "MatMul_b": "float", "cell": "float"}
    assert found.in_float["cell"].startswith("If_y/then_branch stays in float: no sample runs it")
    # Samples that take it do not bring it back.
    result = quantize(small, draw_samples([True, False]), settings(cache), plan=found)
    assert bits_of(result.model).keys() == {"MatMul_a"}
    assert any("no sample runs it" in each.reason for each in result.report.in_float)


def test_bits_of_weights_alone_are_planned_in_bodies_too(net, cache):
    samples = draw_samples([True, False] * 2)
    config = settings(cache, activation_bits=32, max_size="0.9@8-bit", candidates=("W8A32", "W4A32g32"))
    result = quantize(net, samples, config)
    planned = result.report.plan
    assert planned["layers"] == bits_of(result.model) and len(set(planned["layers"].values())) == 2
    assert result.report.quantized_bytes == planned["totals"]["bytes"] <= planned["budgets"]["max_size"]
    losses = {each["layers"][0]: each["loss"] for each in planned["sets"]}
    assert losses.keys() == {"MatMul_h", "MatMul_y", "MatMul_a", "MatMul_n", "MatMul_m", "MatMul_e", "cell"}
    assert all(loss["W4A32g32"] > loss["W8A32"] > 0 for loss in losses.values())


def test_losses_are_measured_on_samples_drawn_from_all_where_the_first_may_be_of_one_kind(net, build):
    plain = build("g (float[1, 4] x) => (float[1, 4] y) { y = Relu (x) }")
    samples = open_calibration(np.arange(160, dtype=np.float32).reshape(40, 4), plain)
    for model, sequences, drawn in ((plain, None, False), (plain, np.zeros(40), True), (net, None, True)):
        samples.sequences = sequences
        found = order_samples(SimpleNamespace(samples=samples, model=model)).indices.tolist()
        assert sorted(found) == [*range(40)] and (found != [*range(40)]) == drawn


def test_a_weight_that_an_end_of_the_model_has_at_its_own_bits_is_solved_once_in_bodies_too(build, draw, tmp_path):
    model = build(CONVS, **conv_weights(draw))
    samples = [{**each, "x": draw(1, 8, 6, 6)} for each in draw_samples([True, False] * 2)]
    result = quantize(model, samples, settings(tmp_path, max_bops="1@8-bit", first_last_bits=4))
    assert result.report.plan["totals"]["bytes"] == result.report.quantized_bytes


def test_a_weight_whose_first_reader_has_unlike_channels_is_one_set_as_it_is_stored_once(build, weigh, cache):
    text = """
    g (float[1, 6, 32] x, bool flag) => (float[1, 6, 32] y) {
      y = If (flag) <
        then_branch = yes () => (float[1, 6, 32] p) { a = MatMul (x, w) p = Relu (a) },
        else_branch = no () => (float[1, 6, 32] q) { e = MatMul (x, w) q = Tanh (e) }
      >
    }
    """
    samples = draw_samples([True, False] * 2)
    for sample in samples[::2]:
        sample["x"][..., 0] *= 40
    found = plan(build(text, w=weigh(32, 32)), samples, settings(cache, max_bops="1@8-bit", candidates=("W8A8",)))
    assert [each.layers for each in found.sets] == [("MatMul_a", "MatMul_e")]


def test_samples_that_take_the_other_branch_are_not_run_for_the_losses_of_a_body(small, monkeypatch):
    prepared = prepare(small, draw_samples([True, False, False, True, False]), QuantizeConfig(threads=1))
    with open_graphs(prepared, prepared.samples) as graph:
        (body,) = graph.bodies
        part = copy_model(body.prepared.model)
        weight = next(each for each in part.graph.initializer if each.dims == [32, 32])
        weight.CopyFrom(numpy_helper.from_array(0.9 * numpy_helper.to_array(weight), weight.name))
        runs, run = [], Session.run
        monkeypatch.setattr(Session, "run", lambda self, *args: runs.append(1) or run(self, *args))
        loss = body.whole.measure(part)
        assert len(runs) == 5 + 2  # of the float model, and of that with the part
        monkeypatch.setattr("onnxcalib.planning.whole.Whole._find_condition", lambda self: "")
        assert replace(body.whole).measure(part) == pytest.approx(loss, rel=1e-9)
        assert len(runs) == 5 + 2 + 5 + 5
