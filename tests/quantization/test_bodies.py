"""Bodies of If, Loop and Scan are quantized as what they are: models on their own samples, in their place."""

import json

import numpy as np
import onnx
import pytest

from onnxcalib import calibrate, prepare, quantize, reconstruct
from onnxcalib.config import QuantizeConfig
from onnxcalib.errors import ConfigError, ModelError
from onnxcalib.graph.index import all_graphs, all_nodes
from onnxcalib.report import Observer

pytestmark = pytest.mark.filterwarnings("ignore::onnxcalib.errors.OnnxCalibWarning")

BRANCHES = """
g (float[1, 8] x, bool flag) => (float[1, 4] y)
{
  y = If (flag) <
    then_branch = yes () => (float[1, 4] p) { a = MatMul (x, w) b = Relu (a) p = MatMul (b, v) },
    else_branch = no () => (float[1, 4] q) { c = MatMul (x, u) q = Tanh (c) }
  >
}
"""


class Heard(Observer):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)

    def warn(self, text):
        self.notes.append(text)


def draw_samples(flags, seed=0, shape=(1, 8)):
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=shape).astype(np.float32), "flag": np.array(flag)} for flag in flags]


def quantize_fast(model, samples, **settings):
    heard = Heard()
    result = quantize(model, samples, QuantizeConfig(**{"effort": "fast", "threads": 1, **settings}), observer=heard)
    return result, heard.notes


def measure_db(run, result, model, samples):
    pairs = [[run(each, *sample.values()) for each in (model, result.model)] for sample in samples]
    wanted, given = (np.concatenate([np.concatenate([o.ravel() for o in pair[i]]) for pair in pairs]) for i in (0, 1))
    return 10 * np.log10(np.square(wanted).sum() / np.square(wanted - given).sum())


def ops_of(model):
    return [node.op_type for node in all_nodes(model.graph)]


def branches(build, draw):
    return build(BRANCHES, w=draw(8, 16), v=draw(16, 4), u=draw(8, 4))


def test_both_branches_of_an_if_are_quantized_on_the_samples_that_take_them(build, draw, run):
    model = branches(build, draw)
    result, _ = quantize_fast(model, draw_samples([True, False] * 24))
    assert [record.name for record in result.report.layers] == ["MatMul_a", "MatMul_p", "MatMul_c"]
    assert all(record.sqnr_db > 30 for record in result.report.layers)
    assert not result.report.in_float
    assert measure_db(run, result, model, draw_samples([True, False] * 8, seed=1)) > 30
    bits = {entry.key: entry.value for entry in result.model.metadata_props}["onnxcalib.bits"]
    assert json.loads(bits).keys() == {"MatMul_a", "MatMul_p", "MatMul_c"}
    onnx.checker.check_model(result.model, full_check=True)


def test_a_branch_that_no_sample_takes_stays_in_float_with_that_reason(build, draw, run):
    model = branches(build, draw)
    result, notes = quantize_fast(model, draw_samples([True] * 16))
    assert [record.name for record in result.report.layers] == ["MatMul_a", "MatMul_p"]
    (record,) = result.report.in_float
    assert (record.name, record.bytes) == ("MatMul_c", 4 * 32)
    assert "If_y/else_branch, which stays in float: no sample runs it" in record.reason
    assert any(note.startswith("If_y/else_branch: stays in float: no sample runs it") for note in notes)
    sample = {"x": draw_samples([False], 3)[0]["x"], "flag": np.array(False)}
    assert np.array_equal(*(run(each, *sample.values())[0] for each in (model, result.model)))


def test_a_model_of_whose_bodies_none_is_run_is_refused_with_the_reasons(build, draw):
    text = """
    g (float[1, 8] x) => (float[1, 8] y) {
      y = Loop (zero, , x) <
        body = turn (int64 i, bool c, float[1, 8] s) => (bool d, float[1, 8] t) { t = MatMul (s, w) d = Identity (c) }
      >
    }
    """
    model = build(text, w=draw(8, 8), zero=np.array(0, np.int64))
    with pytest.raises(ModelError, match="no layer could be quantized: Loop_y/body: no sample runs it"):
        quantize_fast(model, np.ones((16, 8), np.float32))


LOOP = """
g (float[1, 8] x) => (float[1, 8] y, float[K, 1, 8] all) {
  h = MatMul (x, w)
  y, all = Loop (four, yes, h) <
    body = turn (int64 i, bool c, float[1, 8] s) => (bool d, float[1, 8] t, float[1, 8] u) {
      a = MatMul (s, w) b = Add (a, x) t = Tanh (b) u = Identity (t) d = Identity (c)
    }
  >
}
"""
FOUR, YES = np.array(4, np.int64), np.array(True)


def test_a_loop_is_as_good_as_its_turns_written_out(build, draw, run):
    weights = {"w": draw(8, 8)}
    turns = "".join(f"a{i} = MatMul (s{i}, w) b{i} = Add (a{i}, x) s{i + 1} = Tanh (b{i}) " for i in range(4))
    plain = build(f"g (float[1, 8] x) => (float[1, 8] s4) {{ s0 = MatMul (x, w) {turns} }}", **weights)
    loop = build(LOOP, four=FOUR, yes=YES, **weights)
    samples = [{"x": sample["x"]} for sample in draw_samples([True] * 32)]
    others = [{"x": sample["x"]} for sample in draw_samples([True] * 32, seed=1)]
    wanted, found = (measure_db(run, quantize_fast(each, samples)[0], each, others) for each in (plain, loop))
    assert found > wanted - 1


def test_layers_do_not_depend_on_what_a_call_before_found_on_other_ranges(build, draw):
    model = build(LOOP.replace("8]", "32]"), four=FOUR, yes=YES, w=draw(32, 32))
    config = QuantizeConfig(effort="fast", threads=1, weight_bits=4, first_last_bits=4)
    samples = draw(16, 32)
    ranges = calibrate(prepare(model, samples, config))
    narrow = {name: (low / 4, high / 4) for name, (low, high) in ranges.activations.items()}
    others = ranges.model_copy(update={"activations": narrow})
    prepared = prepare(model, samples, config)
    again, once = (reconstruct(prepared, each).layers["MatMul_h"].integers for each in (ranges, others))
    only = reconstruct(prepare(model, samples, config), others).layers["MatMul_h"].integers
    assert np.array_equal(once, only) and not np.array_equal(again, once)


def test_a_weight_that_the_graph_and_a_body_read_is_stored_once(build, draw):
    size = 32
    text = LOOP.replace("8]", f"{size}]")
    result, _ = quantize_fast(build(text, four=FOUR, yes=YES, w=draw(size, size)), draw(16, size))
    integers = [t for t in result.model.graph.initializer if list(t.dims) == [size, size]]
    assert [t.data_type for t in integers] == [onnx.TensorProto.INT8]
    (loop,) = (node for node in result.model.graph.node if node.op_type == "Loop")
    assert not [t for t in loop.attribute[0].g.initializer if len(t.dims) == 2]


def test_bits_and_ranges_of_tensors_are_those_outside_and_that_is_said(build, draw):
    model = branches(build, draw)
    with pytest.raises(ConfigError, match=r"found bits of .b.; .*; it is in a body of an If, a Loop or a Scan"):
        quantize_fast(model, draw_samples([True, False] * 8), tensors={"b": 8})
    heard = Heard()
    prepared = prepare(model, draw_samples([True, False] * 8), QuantizeConfig(threads=1), observer=heard)
    ranges = calibrate(prepared)
    told = "ranges of bodies in the file: none, each run calibrates bodies on what they read in it"
    assert told in heard.notes and not ranges.activations
    result = quantize(model, draw_samples([True, False] * 8), QuantizeConfig(threads=1, effort="fast"), ranges=ranges)
    assert [each.what for each in result.report.left_out] == ["ranges of bodies in the file"]


def test_layers_that_are_solved_apart_share_their_weight_too(build, draw):
    model = build(LOOP.replace("8]", "32]"), four=FOUR, yes=YES, w=draw(32, 32))
    bits = {"weight_bits": 4, "first_last_bits": 4}
    result, _ = quantize_fast(model, draw(16, 32), pipeline="parallel", statistics=False, **bits)
    assert len(result.report.layers) == 2
    assert len([t for g in all_graphs(result.model.graph) for t in g.initializer if list(t.dims) == [32, 32]]) == 1


def test_a_scan_is_followed_along_its_axes_and_directions(build, draw, run):
    text = """
    g (float[1, 8] x, float[8, 5] z) => (float[1, 8] y, float[K, 1, 8] all) {
      y, all = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_input_directions = [1],
        body = turn (float[1, 8] s, float[8] e) => (float[1, 8] t, float[1, 8] u) {
          a = Add (s, e) b = MatMul (a, w) t = Tanh (b) u = Identity (t)
        }
      > (x, z)
    }
    """
    model, rng = build(text, w=draw(8, 8)), np.random.default_rng(0)

    def sample():
        return {"x": rng.normal(size=(1, 8)).astype(np.float32), "z": rng.normal(size=(8, 5)).astype(np.float32)}

    result, _ = quantize_fast(model, [sample() for _ in range(16)])
    assert [record.name for record in result.report.layers] == ["MatMul_b"]
    assert measure_db(run, result, model, [sample() for _ in range(8)]) > 25


NESTED = """
g (float[1, 8] x, bool flag) => (float[1, 8] y)
{
  h = MatMul (x, w)
  r = Relu (h)
  y = If (flag) <
    then_branch = yes () => (float[1, 8] p) {
      a = MatMul (r, v)
      last, p = Loop (two, on, a) <
        body = turn (int64 i, bool c, float[1, 8] s) => (bool d, float[1, 8] t) { t = MatMul (s, w) d = Identity (c) }
      >
    },
    else_branch = no () => (float[1, 8] q) { q = Identity (r) }
  >
}
""".replace("last, p", "p")


def nested(build, draw):
    return build(NESTED, w=draw(8, 8), v=draw(8, 8), two=np.array(2, np.int64), on=YES)


def test_bodies_in_bodies_are_quantized_and_return_what_is_outside(build, draw, run):
    model = nested(build, draw)
    result, _ = quantize_fast(model, draw_samples([True, False] * 16))
    assert [record.name for record in result.report.layers] == ["MatMul_h", "MatMul_a", "MatMul_t"]
    assert measure_db(run, result, model, draw_samples([True, False] * 8, seed=1)) > 25


def test_settings_name_nodes_in_bodies(build, draw):
    model, samples = nested(build, draw), draw_samples([True, False] * 8)
    result, _ = quantize_fast(
        model, samples, exclude=["MatMul_t"], layers={"MatMul_a": {"weight_bits": 4}}, activation_bits=32
    )
    assert {record.name: record.weight_bits for record in result.report.layers} == {"MatMul_h": 8, "MatMul_a": 4}
    with pytest.raises(ConfigError, match="exclude: 'MatMul_k'"):
        quantize_fast(model, samples, exclude=["MatMul_k"])


def test_a_value_that_is_a_sequence_leaves_the_body_in_float(build, draw):
    text = """
    g (float[1, 8] x, bool flag) => (float[1, 8] y)
    {
      h = MatMul (x, w)
      s = SequenceConstruct (h, h)
      y = If (flag) <
        then_branch = yes () => (float[1, 8] p) { a = SequenceAt (s, one) p = MatMul (a, w) },
        else_branch = no () => (float[1, 8] q) { q = Identity (h) }
      >
    }
    """
    result, notes = quantize_fast(build(text, w=draw(8, 8), one=np.array(1, np.int64)), draw_samples([True] * 8))
    assert [record.name for record in result.report.layers] == ["MatMul_h"]
    assert any("If_y/then_branch: stays in float: its input s is a sequence" in note for note in notes)


def conv_weights(draw):
    return {name: draw(8, 8, 3, 3) for name in ("w", "v", "u")}


CONVS = """
g (float[1, 8, 6, 6] x, bool flag) => (float[1, 8, 6, 6] y)
{
  h = Conv <pads = [1, 1, 1, 1]> (x, w)
  r = Relu (h)
  z = If (flag) <
    then_branch = yes () => (float[1, 8, 6, 6] p) {
      a = Conv <pads = [1, 1, 1, 1]> (r, v) b = Relu (a) p = Conv <pads = [1, 1, 1, 1]> (b, u)
    },
    else_branch = no () => (float[1, 8, 6, 6] q) { q = Conv <pads = [1, 1, 1, 1]> (r, u) }
  >
  y = Conv <pads = [1, 1, 1, 1]> (z, v)
}
"""


def scales_of(model, tensor):
    """Scales on which a tensor, or what was dequantized of it, is quantized, in all graphs."""
    stored = {
        t.name: float(onnx.numpy_helper.to_array(t))
        for g in all_graphs(model.graph)
        for t in g.initializer
        if not t.dims
    }
    nodes = [node for node in all_nodes(model.graph) if node.op_type == "QuantizeLinear"]
    return {stored[node.input[1]] for node in nodes if node.input[0] in (tensor, f"{tensor}_dequantized")}


def test_tensors_have_one_grid_inside_and_outside(build, draw):
    result, _ = quantize_fast(build(CONVS, **conv_weights(draw)), draw_samples([True, False] * 12, shape=(1, 8, 6, 6)))
    assert len(scales_of(result.model, "r")) == 1
    assert len(scales_of(result.model, "z") | scales_of(result.model, "p") | scales_of(result.model, "q")) == 1


def test_what_a_loop_carries_has_one_grid_from_turn_to_turn(build, draw):
    text = """
    g (float[1, 8, 6, 6] x) => (float[1, 8, 6, 6] y) {
      h = Conv <pads = [1, 1, 1, 1]> (x, w)
      r = Relu (h)
      z = Loop (four, yes, r) <
        body = turn (int64 i, bool c, float[1, 8, 6, 6] s) => (bool d, float[1, 8, 6, 6] t) {
          a = Conv <pads = [1, 1, 1, 1]> (s, v) t = Relu (a) d = Identity (c)
        }
      >
      y = Conv <pads = [1, 1, 1, 1]> (z, u)
    }
    """
    model = build(text, four=FOUR, yes=YES, **{name: each / 6 for name, each in conv_weights(draw).items()})
    samples = [{"x": each["x"]} for each in draw_samples([True] * 16, shape=(1, 8, 6, 6))]
    result, _ = quantize_fast(model, samples, placement="all")
    assert len(scales_of(result.model, "s") | scales_of(result.model, "t")) == 1


def test_layers_in_a_body_are_the_first_and_last_where_those_around_it_are_not(build, draw):
    samples = draw_samples([True, False] * 12, shape=(1, 8, 6, 6))
    result, _ = quantize_fast(build(CONVS, **conv_weights(draw)), samples, weight_bits=4, placement="all")
    bits = {record.name: record.weight_bits for record in result.report.layers}
    assert bits == {"Conv_h": 8, "Conv_y": 8, "Conv_a": 4, "Conv_p": 4, "Conv_q": 4}
    text = CONVS[: CONVS.index("  h = Conv")] + CONVS[CONVS.index("  z = If") :].replace("(r,", "(x,")
    result, _ = quantize_fast(build(text, **conv_weights(draw)), samples, weight_bits=4, placement="all")
    bits = {record.name: record.weight_bits for record in result.report.layers}
    assert bits == {"Conv_y": 8, "Conv_a": 8, "Conv_p": 4, "Conv_q": 8}


@pytest.mark.parametrize("encoding", ["runtime", "matmulnbits"])
def test_weights_alone_in_bodies_run_and_are_stored_once_where_onnxruntime_lets_them(build, draw, run, encoding):
    text = """
    g (float[1, 64] x, bool flag) => (float[1, 64] y) {
      y = If (flag) <
        then_branch = yes () => (float[1, 64] p) { p = MatMul (x, w) },
        else_branch = no () => (float[1, 64] q) { a = MatMul (x, w) q = Tanh (a) }
      >
    }
    """
    model, samples = build(text, opset=21, ir=10, w=draw(64, 64)), draw_samples([True, False] * 16, shape=(1, 64))
    result, _ = quantize_fast(model, samples, activation_bits=32, weight_bits=4, first_last_bits=4, encoding=encoding)
    assert measure_db(run, result, model, samples) > 18
    stored = [tensor for graph in all_graphs(result.model.graph) for tensor in graph.initializer]
    large = [tensor for tensor in stored if np.prod(tensor.dims) >= 1024]
    assert len(large) == (1 if encoding == "matmulnbits" else 2)


def test_targets_are_for_what_is_outside(build, draw):
    samples = draw_samples([True, False] * 8)
    with pytest.raises(ModelError, match="If_y/then_branch, If_y/else_branch: target 'qnn' is not known to run"):
        quantize_fast(branches(build, draw), samples, target="qnn")
    with pytest.raises(ConfigError, match="exclude: no layer is left to quantize"):
        quantize_fast(branches(build, draw), samples, exclude=["op:MatMul"])


@pytest.mark.parametrize("exclude", [["MatMul_a", "MatMul_t"], ["If_y"], ["op:Loop"], ["MatMul_t"]])
def test_excluded_layers_of_bodies_are_not_listed_as_float_and_are_float_on_purpose(build, draw, exclude):
    model, samples = nested(build, draw), draw_samples([True, False] * 8)
    result, _ = quantize_fast(model, samples, exclude=exclude)
    assert not result.report.in_float
    assert {record.name for record in result.report.layers} == {"MatMul_h"} | (
        {"MatMul_a"} if len(exclude) == 1 and exclude != ["If_y"] else set()
    )
    outside, _ = quantize_fast(model, samples, exclude=exclude, target="xint8")
    left = {record.name for record in outside.report.in_float}
    assert left.isdisjoint({"If_y": {"MatMul_a", "MatMul_t"}}.get(exclude[0], set(exclude)))
    told = {each.where: each.level for each in outside.lint.violations if each.rule == "quantized_inputs"}
    assert set(told.values()) == {"advice"} and "If_y/MatMul_a (MatMul)" in told


GROWS = """
g (float[1, 8] x) => (float[1, 8] y, float[M, 8] all) {
  h = MatMul (x, w)
  y, all = Loop (four, yes, h, none) <
    body = turn (int64 i, bool c, float[1, 8] s, float[K, 8] before) => (bool d, float[1, 8] t, float[L, 8] after) {
      a = MatMul (s, w) b = Add (a, x) t = Tanh (b) after = Concat <axis = 0> (before, t) d = Identity (c)
    }
  >
}
"""


# What grows from turn to turn, or stays empty.
@pytest.mark.parametrize("text", [GROWS, GROWS.replace("Concat <axis = 0> (before, t)", "Relu (before)")])
def test_what_a_loop_carries_may_begin_without_values(build, draw, run, text):
    model = build(text, four=FOUR, yes=YES, none=np.zeros((0, 8), np.float32), w=draw(8, 8))
    samples = [{"x": sample["x"]} for sample in draw_samples([True] * 16)]
    result, _ = quantize_fast(model, samples)
    assert {record.name for record in result.report.layers} == {"MatMul_h", "MatMul_a"}
    assert measure_db(run, result, model, samples) > 25


NORMED = """
g (float[1, 4, 48] x, bool flag) => (float[1, 4, 96] y)
{
  y = If (flag) <
    then_branch = yes () => (float[1, 4, 96] p) { a = LayerNormalization (x, s) p = MatMul (a, w) },
    else_branch = no () => (float[1, 4, 96] q)
      { h = Add (x, one) b = LayerNormalization (h, s)  c = MatMul (b, w)  q = Relu (c) }
  >
}
"""


def test_branches_with_a_weight_have_one_set_of_factors(build, draw, run):
    scale = np.ones(48, np.float32)
    scale[::12] = (20, 30, 40, 50)
    model = build(NORMED, w=draw(48, 96) / scale[:, None], s=scale, one=np.ones((1, 1, 48), np.float32))
    samples = draw_samples([False, True] * 32, shape=(1, 4, 48))
    result, notes = quantize_fast(model, samples, placement="all")
    told = [note for note in notes if "smoothing" in note]
    assert "exponent" in told[0] and "factors of 1 activations are those with which their weights are stored" in told[1]
    assert len([t for g in all_graphs(result.model.graph) for t in g.initializer if list(t.dims) == [48, 96]]) == 1
    assert measure_db(run, result, model, samples) > 36


BIASED = """
g (float[1, 4, 32] x, bool flag) => (float[1, 4, 16] y)
{
  y = If (flag) <
    then_branch = yes () => (float[1, 4, 16] p) { a = Add (x, one) c = MatMul (a, w) p = Add (c, v) },
    else_branch = no () => (float[1, 4, 16] q) { b = Add (x, other) d = MatMul (b, w) q = Add (d, v) }
  >
}
"""


def test_the_bias_of_each_reader_makes_up_for_the_mean_error_of_a_weight_that_is_shared(build, draw, run):
    model = build(BIASED, w=draw(32, 16), v=draw(16), one=2 * draw(32), other=2 * draw(32))
    samples = draw_samples([False, True] * 30, shape=(1, 4, 32))
    settings = {"weight_bits": 4, "activation_bits": 32, "statistics": False, "biases": False}
    result, _ = quantize_fast(model, samples, **settings)
    for of_branch in (samples[::2], samples[1::2]):
        errors = [run(result.model, *each.values())[0] - run(model, *each.values())[0] for each in of_branch]
        by_channel = np.concatenate(errors).reshape(-1, 16)
        assert np.square(by_channel.mean(axis=0)).sum() < 0.02 * np.square(by_channel).mean(axis=0).sum()
