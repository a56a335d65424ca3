"""Residual streams and the values of attention's heads, rotated by matrices that the constants around take."""

from __future__ import annotations

import re

import numpy as np
import pytest
from onnx import checker

from onnxcalib.graph.channel_norms import find_channel_norms
from onnxcalib.graph.heads import find_heads
from onnxcalib.graph.index import Index, known_constant
from onnxcalib.graph.passes import rotate
from onnxcalib.graph.passes.normalise import normalise
from onnxcalib.graph.passes.rotate import BLOCK, find_rotatable, rotate_heads, rotate_input, rotate_stream
from onnxcalib.graph.residual_stream import find_streams
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.numeric.rotation import turn, turn_keeping_ones
from onnxcalib.quantization.tensor_shapes import measure_shapes
from onnxcalib.runtime.session import Session
from tests.small_prenorm import BLOCKS, END, HEADER, HEADS, HIDDEN, PRENORM, START, WIDTH, build_prenorm

IMAGE = f"""g (float[N, 3, 8, 8] x) => (float[N, 5, 2, 2] y) {{
    [patch] e = Conv <kernel_shape = [4, 4], strides = [4, 4]> (x, wc, bc)  [flat] f = Reshape (e, flat)
    [turned] t = Transpose <perm = [0, 2, 1]> (f)  [class] c = Concat <axis = 1> (first, t)  [place] s0 = Add (c, pos)
    {BLOCKS}
    [last] n = LayerNormalization (s2, gain_n, shift_n)  [cut] l = Slice (n, one, end, one)
    [back] b = Transpose <perm = [0, 2, 1]> (l)  [square] r = Reshape (b, square)
    [head] y = Conv <kernel_shape = [1, 1]> (r, wh) }}"""
IMAGE_CONSTANTS = {
    "flat": np.array([0, WIDTH, 4]), "square": np.array([0, WIDTH, 2, 2]), "one": np.array([1]), "end": np.array([9]),
    "first": np.linspace(-1, 1, WIDTH, dtype=np.float32).reshape(1, 1, WIDTH),
    "pos": np.sin(np.arange(5 * WIDTH, dtype=np.float32)).reshape(5, WIDTH),
    "wc": np.cos(np.arange(WIDTH * 48, dtype=np.float32)).reshape(WIDTH, 3, 4, 4),
    "bc": np.linspace(0, 1, WIDTH, dtype=np.float32),
    "wh": np.sin(np.arange(5 * WIDTH, dtype=np.float32)).reshape(5, WIDTH, 1, 1),
}  # fmt: skip
APART = "Split <axis = -1> (f{i}, sizes)"
FUSED = PRENORM
for i in range(2):
    FUSED = (
        FUSED.replace(f"[query{i}] q{i} = MatMul (h{i}, wq{i})", f"[fused{i}] f{i} = MatMul (h{i}, wf{i})")
        .replace(f"[bias_q{i}] qb{i} = Add (q{i}, bq{i})", f"[apart{i}] qb{i}, kb{i}, vb{i} = {APART.format(i=i)}")
        .replace(f"[key{i}] k{i} = MatMul (h{i}, wk{i})  [bias_k{i}] kb{i} = Add (k{i}, bk{i})", "")
        .replace(f"[value{i}] v{i} = MatMul (h{i}, wv{i})  [bias_v{i}] vb{i} = Add (bv{i}, v{i})", "")
    )  # fmt: skip
# Norms that go without the mean, written out as exporters do.
WRITTEN = re.sub(
    r"\[(\w+)\] (\w+) = LayerNormalization \((\w+), (\w+), \w+\)",
    r"\2_c = Cast <to = 1> (\3) \2_p = Pow (\2_c, two) \2_m = ReduceMean <axes = [-1]> (\2_p)"
    r" \2_e = Add (\2_m, tiny) \2_r = Sqrt (\2_e) \2_d = Div (\2_c, \2_r) [\1] \2 = Mul (\4, \2_d)",
    PRENORM,
)


def make(build, draw, text):
    others = {"two": np.float32(2), "tiny": np.float32(1e-6)} if text == WRITTEN else {}
    others |= {"sizes": np.array([WIDTH] * 3), "wf0": draw(WIDTH, 3 * WIDTH) / 4, "wf1": draw(WIDTH, 3 * WIDTH) / 4}
    model = build_prenorm(build, text, **others, **(IMAGE_CONSTANTS if text == IMAGE else {}))
    normalise(model)
    return model


def run_all(model, x):
    """All float activations by name, as no optimization merges them."""
    names = [t for node in model.graph.node for t in node.output]
    return Session(model, also=names, optimize=False).run({"x": x})


def draw_input(draw, text):
    return draw(1, 3, 8, 8) if text == IMAGE else draw(3, 6, 8)


@pytest.mark.parametrize("text", [PRENORM, IMAGE, FUSED, WRITTEN], ids=["tokens", "image", "fused", "written"])
def test_outputs_stay_without_another_operator_and_what_is_another_has_another_name(build, draw, run, text):
    model, x = make(build, draw, text), draw_input(draw, text)
    (before,), nodes = run(model, x), len(model.graph.node)
    known = run_all(model, x)
    index, shapes = Index(model.graph), measure_shapes(model, {"x": x})
    (stream,), refused = find_streams(index, shapes, find_channel_norms(model))
    heads = find_heads(index, shapes)
    assert not refused and (stream.width, len(stream.norms), len(heads)) == (WIDTH, 5, 2)
    for each in heads:
        assert each.columns.shape == (HEADS, WIDTH // HEADS)
        rotate_heads(model, each, turn(each.size, 1))
    rotate_stream(model, stream, turn_keeping_ones(WIDTH))
    checker.check_model(model, full_check=True)
    (after,) = run(model, x)
    assert np.abs(after - before).max() < 1e-5 * np.abs(before).max()
    assert len(model.graph.node) == nodes - 2  # the two Muls by channel
    index = Index(model.graph)
    scales = [index.nodes[norm.made.scale.node].input[norm.made.scale.number] for norm in stream.norms]
    assert all((known_constant(index, name) == 1).all() for name in scales)
    assert "s1" not in index and "s1_rotated" in index and "vb0_rotated" in index
    for name, value in run_all(model, x).items():
        assert name not in known or np.allclose(value, known[name], rtol=1e-4, atol=1e-4), name


def test_a_norm_keeps_its_shift_where_a_layer_has_no_bias(build, draw, run):
    """In other units: those of the norm's scale, which the layer has now."""
    model, x = make(build, draw, PRENORM), draw(3, 6, 8)
    (before,) = run(model, x)
    ((stream,), _) = find_streams(Index(model.graph), measure_shapes(model, {"x": x}), find_channel_norms(model))
    rotate_stream(model, stream, turn_keeping_ones(WIDTH))
    index = Index(model.graph)
    shifts = {name: known_constant(index, index.nodes[name].input[2]) for name in ("norm0", "last")}
    assert not shifts["norm0"].any() and shifts["last"].any()  # the head adds nothing
    assert np.abs(run(model, x)[0] - before).max() < 1e-5 * np.abs(before).max()


AHEAD = "e1 = Add (pos, e0) [ahead] s0 = LayerNormalization (e1, gain_n, shift_n)"


def replace_end(text: str) -> str:
    return f"{HEADER} {{ {START} {BLOCKS} {text} }}"


@pytest.mark.parametrize(
    ("text", "norm", "why"),
    [
        (PRENORM.replace("Add (p0, bo0)", "Add (p0, h0)"), "norm0", "Add bias_o0 reads norm norm0"),
        (PRENORM.replace("s0 = Add (pos, e0)", AHEAD), "norm0", "norm ahead writes into it"),
        (replace_end("[loud] r = Relu (s2) " + END.replace("s2", "r")), "norm0", "Relu loud reads it without a norm"),
        (replace_end("[two] r = Mul (s2, gain_n) " + END.replace("s2", "r")), "norm0", "Mul two reads it without"),
        (PRENORM.replace("(g1, wu1)", "(g1, wu0)"), "norm0", "up1 reads wu0 too"),
        (PRENORM.replace("float[N, 6, 5] y", "float[N, 6, 16] s1, float[N, 6, 5] y"), "norm0", "the model gives s1"),
    ],
)  # fmt: skip
def test_a_stream_that_is_not_wholly_understood_is_refused_with_the_reason(build, draw, text, norm, why):
    model = make(build, draw, text)
    streams, refused = find_streams(
        Index(model.graph), measure_shapes(model, {"x": draw(2, 6, 8)}), find_channel_norms(model)
    )
    assert not streams and why in refused[norm]


@pytest.mark.parametrize(("text", "bias"), [(PRENORM.replace("(mb1, wo1)", "(vb1, wo1)"), WIDTH), (PRENORM, 1)])
def test_heads_whose_values_others_read_stay_and_those_with_one_bias_for_all_channels(build, draw, text, bias):
    model = build_prenorm(build, text, bv1=draw(bias))
    normalise(model)
    heads = find_heads(Index(model.graph), measure_shapes(model, {"x": draw(2, 6, 8)}))
    assert [each.product for each in heads] == ["mix0"]


@pytest.mark.parametrize(("function", "muls"), [("Relu", 0), ("Tanh", 1)])
def test_a_matmul_mixes_blocks_of_what_an_activation_function_gives(build, draw, run, function, muls, monkeypatch):
    model, x = make(build, draw, PRENORM.replace("Relu", function)), draw(3, 6, 8)
    (before,) = run(model, x)
    assert not find_rotatable(model, make_scheme(model)), "the matrix would take most of the layer's bytes"
    monkeypatch.setattr(rotate, "LEAST_WEIGHTS", 0)
    first, second = find_rotatable(model, make_scheme(model))
    assert (first.tensor, second.tensor) == ("t0", "t1")
    nodes, factor = len(model.graph.node), np.exp(draw(HIDDEN))
    name = rotate_input(model, first, factor, turn(BLOCK), rank=3)
    checker.check_model(model, full_check=True)
    assert run(model, x[:0])[0].shape == (0, *before.shape[1:])
    index = Index(model.graph)
    assert index.nodes[name].op_type == "MatMul" and len(model.graph.node) == nodes + 3 + muls
    assert index.nodes["down0"].input[0].endswith("_rotated")
    assert np.abs(run(model, x)[0] - before).max() < 1e-5 * np.abs(before).max()


def test_what_layers_of_one_weight_read_is_not_mixed(build, draw, monkeypatch):
    monkeypatch.setattr(rotate, "LEAST_WEIGHTS", 0)
    model = make(build, draw, PRENORM.replace("(t1, wd1)", "(t1, wd0)"))
    assert not find_rotatable(model, make_scheme(model))
