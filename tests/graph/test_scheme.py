"""What is planned for small graphs. Tensors c, d, e are made by convolutions that keep 4 channels and the size."""

import re

import numpy as np
import pytest

from onnxcalib.config import LayerConfig
from onnxcalib.errors import ConfigError, ModelError
from onnxcalib.graph.names import Selection
from onnxcalib.graph.passes.fold import fold_constants
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.spec import Requirements

CONV = "Conv <pads = [1, 1, 1, 1]>"
WEIGHTS = {f"{kind}{i}": shape for i in range(1, 6) for kind, shape in (("w", (4, 4, 3, 3)), ("b", (4,)))}


@pytest.fixture
def model_of(build, draw):
    """The model of a body in which ``conv(x, 1)`` stands for a convolution with weight w1 and bias b1."""

    def make(body, outputs="float[N, a, h, w] y", opset=17, **weights):
        body = re.sub(r"(\w+) = conv ?\((\w+), (\d)\)", rf"[conv\3] \1 = {CONV} (\2, w\3, b\3)", body)
        given = {k: v for k, v in WEIGHTS.items() if re.search(rf"\b{k}\b", body)}
        weights = {**{k: draw(*shape) for k, shape in given.items()}, **weights}
        return build(f"g (float[N, 4, 8, 8] x) => ({outputs}) {{ {body} }}", opset=opset, **weights)

    return make


def plan_bits(scheme):
    return {tensor: spec.bits for tensor, spec in scheme.activations.items()}


def test_one_grid_a_tensor_behind_the_relu(model_of):
    scheme = make_scheme(model_of("c = conv(x, 1) r = Relu (c) d = conv(r, 2) y = Relu (d)"))
    assert list(scheme.activations) == ["x", "r", "y"]
    assert scheme.nonnegative == {"r": float("inf"), "y": float("inf")}
    assert scheme.shared == () and scheme.requantized == {}


def test_a_relu_that_is_not_alone_leaves_the_grid_at_the_convolution(model_of):
    scheme = make_scheme(model_of("c = conv(x, 1) r = Relu (c) d = conv(r, 2) y = Add (c, d)"))
    assert list(scheme.activations) == ["x", "c", "r", "d"]
    assert scheme.nonnegative == {"r": float("inf")}


def test_a_clip_at_six_bounds_its_grid(model_of):
    body = "c = conv(x, 1) r = Clip (c, zero, six) y = conv(r, 2)"
    scheme = make_scheme(model_of(body, zero=np.float32(0), six=np.float32(6)))
    assert list(scheme.activations) == ["x", "r", "y"] and scheme.nonnegative == {"r": 6.0}


@pytest.mark.parametrize(
    "mover",
    [
        "MaxPool <kernel_shape = [2, 2]> (r)",
        "Reshape (r, s)",
        "Transpose <perm = [0, 1, 3, 2]> (r)",
        "Slice (r, one, four, one)",
        "Pad (r, p)",
        "Gather <axis = 1> (r, s)",
        "Resize (r, , two)",
        "Expand (r, s)",
    ],
)
def test_both_sides_of_a_mover_share_a_grid(model_of, mover):
    constants = {
        "s": np.int64([-1, 4, 4, 16]), "one": np.int64([1]), "four": np.int64([4]), "p": np.int64([0, 0, 1, 1] * 2),
        "two": np.float32([1, 1, 2, 2]),
    }  # fmt: skip
    used = {k: v for k, v in constants.items() if re.search(rf"\b{k}\b", mover)}
    scheme = make_scheme(model_of(f"c = conv(x, 1) r = Relu (c) m = {mover} y = conv(m, 2)", **used))
    assert list(scheme.activations) == ["x", "r", "m", "y"]
    assert scheme.shared == (("r", "m"),)


def test_all_outputs_of_a_split_share_a_grid(model_of):
    scheme = make_scheme(
        model_of("c = conv(x, 1) s, t = Split <axis = 2> (c) d = conv(s, 2) e = conv(t, 3) y = Add (d, e)")
    )
    assert scheme.shared == (("c", "s", "t"),)


def test_the_indices_of_a_max_pool_get_no_grid(model_of):
    scheme = make_scheme(model_of("c = conv(x, 1) m, i = MaxPool <kernel_shape = [2, 2]> (c) y = conv(m, 2)"))
    assert list(scheme.activations) == ["x", "c", "m", "y"]


def test_a_linear_resize_keeps_its_own_grids(model_of):
    body = 'c = conv(x, 1) m = Resize <mode = "linear"> (c, , two) y = conv(m, 2)'
    scheme = make_scheme(model_of(body, two=np.float32([1, 1, 2, 2])))
    assert scheme.shared == () and list(scheme.activations) == ["x", "c", "m", "y"]


def test_a_concat_shares_its_grid_with_inputs_that_it_alone_reads(model_of):
    body = "c = conv(x, 1) d = conv(x, 2) e = conv(d, 3) k = Concat <axis = 1> (c, d, e) y = conv(k, 4)"
    scheme = make_scheme(model_of(body, w4=np.zeros((4, 12, 3, 3), np.float32)))
    assert scheme.shared == (("c", "e", "k"),)


def test_a_concat_of_rectified_and_signed_tensors_shares_nothing(model_of):
    body = "c = conv(x, 1) r = Relu (c) d = conv(x, 2) k = Concat <axis = 1> (r, d) y = conv(k, 3)"
    assert make_scheme(model_of(body, w3=np.zeros((4, 8, 3, 3), np.float32))).shared == ()


def test_a_pooled_rectified_tensor_keeps_its_zero_to_itself(model_of):
    body = """c = conv(x, 1) r = Relu (c) m = MaxPool <kernel_shape = [1, 1]> (r) d = conv(x, 2)
              k = Concat <axis = 1> (d, m) y = conv(k, 3)"""
    assert make_scheme(model_of(body, w3=np.zeros((4, 8, 3, 3), np.float32))).shared == (("r", "m"),)


def test_a_concat_of_different_bounds_shares_nothing(model_of):
    body = """c = conv(x, 1) r = Relu (c) d = conv(x, 2) q = Clip (d, zero, six)
              k = Concat <axis = 1> (r, q) y = conv(k, 3)"""
    constants = {"zero": np.float32(0), "six": np.float32(6), "w3": np.zeros((4, 8, 3, 3), np.float32)}
    assert make_scheme(model_of(body, **constants)).shared == ()


def test_a_rectified_concat_does_not_share_with_its_signed_inputs(model_of):
    body = "c = conv(x, 1) d = conv(x, 2) k = Concat <axis = 1> (c, d) r = Relu (k) y = conv(r, 3)"
    scheme = make_scheme(model_of(body, w3=np.zeros((4, 8, 3, 3), np.float32)))
    assert scheme.shared == () and list(scheme.activations) == ["x", "c", "d", "r", "y"]


def test_concats_of_rectified_tensors_share_as_one(model_of):
    body = """c = conv(x, 1) r = Relu (c) d = conv(x, 2) q = Relu (d) k = Concat <axis = 1> (r, q)
              m = MaxPool <kernel_shape = [2, 2]> (k) y = conv(m, 3)"""
    scheme = make_scheme(model_of(body, w3=np.zeros((4, 8, 3, 3), np.float32)))
    assert scheme.shared == (("r", "q", "k", "m"),)


@pytest.mark.parametrize(
    ("op", "tensors"),
    [
        ("Add (c, r)", ["c", "r", "z"]),
        ("Mul (c, r)", ["c", "r", "z"]),
        ("AveragePool <kernel_shape = [2, 2]> (r)", ["r", "z"]),
        ("Sigmoid (r)", ["r", "z"]),
        ("LeakyRelu (r)", ["r", "z"]),
    ],
)
def test_operators_between_layers_run_on_integers(model_of, op, tensors):
    scheme = make_scheme(model_of(f"c = conv(x, 1) d = conv(x, 2) r = Relu (d) z = {op} y = conv(z, 3)"))
    assert [t for t in scheme.activations if t in "crz"] == [t for t in ("c", "r", "z") if t in {*tensors, "c"}]
    assert scheme.activations.keys() >= set(tensors)


@pytest.mark.parametrize("op", ["HardSwish (c)", "Add (c, k)", "Mul (k, c)", "Tanh (c)", "LayerNormalization (c, k)"])
def test_operators_without_an_integer_kernel_stay_float_between_two_grids(model_of, op):
    constants = {"k": np.ones(8, np.float32)} if "k" in op else {}
    scheme = make_scheme(model_of(f"c = conv(x, 1) f = {op} g = Exp (f) y = conv(g, 2)", **constants))
    assert list(scheme.activations) == ["x", "c", "g", "y"] and scheme.shared == ()


def test_an_add_with_one_float_side_takes_it_onto_integers(model_of):
    body = "c = conv(x, 1) f = Tanh (c) d = conv(x, 2) s = Add (f, d) y = conv(s, 3)"
    assert list(make_scheme(model_of(body)).activations) == ["x", "c", "f", "d", "s", "y"]


@pytest.mark.parametrize(
    ("body", "tensors"),
    [
        ("f = Tanh (c) m = MaxPool <kernel_shape = [1, 1]> (f) t = Transpose (m) y = conv(t, 2)", ["f", "m", "t"]),
        ("f = Tanh (c) m = MaxPool <kernel_shape = [1, 1]> (f) d = conv(m, 2) y = Mul (d, f)", ["m", "d"]),
    ],
)
def test_a_float_tensor_is_quantized_before_a_mover_that_alone_reads_it(model_of, body, tensors):
    assert list(make_scheme(model_of(f"c = conv(x, 1) {body}")).activations)[2:] in (tensors, [*tensors, "y"])


def test_what_no_layer_follows_stays_float(model_of):
    scheme = make_scheme(model_of("c = conv(x, 1) d = conv(c, 2) s = Add (c, d) y = GlobalAveragePool (s)"))
    assert list(scheme.activations) == ["x", "c", "d"]


def test_a_dense_layer_gives_float_where_nothing_needs_integers(model_of):
    body = "c = conv(x, 1) p = GlobalAveragePool (c) f = Flatten (p) y = Gemm <transB = 1> (f, v, b2)"
    scheme = make_scheme(model_of(body, v=np.zeros((4, 4), np.float32)))
    assert list(scheme.activations) == ["x", "c", "p", "f"] and scheme.shared == (("p", "f"),)


def test_weights_have_a_scale_an_output_channel(model_of):
    body = """c = conv(x, 1) t = ConvTranspose (c, v1) p = GlobalAveragePool (t) f = Flatten (p)
              a = Gemm <transB = 1> (f, v2) b = Gemm (a, v3, v4) y = MatMul (b, v5)"""
    weights = {"v1": (4, 6, 1, 1), "v2": (5, 6), "v3": (5, 7), "v4": (7,), "v5": (7, 3)}
    scheme = make_scheme(model_of(body, **{k: np.zeros(s, np.float32) for k, s in weights.items()}))
    assert [(k.op, k.weight_spec.axis, k.bias) for k in scheme.layers] == [
        ("Conv", 0, "b1"), ("ConvTranspose", 1, None), ("Gemm", 0, None), ("Gemm", 1, "v4"), ("MatMul", 1, None),
    ]  # fmt: skip
    assert all(k.weight_spec.signed and k.weight_spec.symmetric for k in scheme.layers)
    assert not any(k.activation_spec.signed or k.activation_spec.axis is not None for k in scheme.layers)


@pytest.mark.parametrize(
    ("kernel", "groups"), [((8, 4, 3), 1), ((8, 1, 3, 3), 4), ((8, 2, 3, 3), 2), ((8, 4, 1, 3, 3), 1)]
)
def test_convolutions_of_any_rank_and_grouping_are_layers(build, kernel, groups):
    dims = ", ".join(["N", "4", *"8" * (len(kernel) - 2)])
    model = build(
        f"g (float[{dims}] x) => (float[N, a, {dims[6:]}] y) {{ [c] y = Conv <group = {groups}> (x, w) }}",
        w=np.zeros(kernel, np.float32),
    )
    (layer,) = make_scheme(model).layers
    assert (layer.name, layer.groups, layer.weight_spec.axis, layer.input, layer.output) == ("c", groups, 0, "x", "y")


def test_a_shared_weight_makes_two_layers(model_of):
    scheme = make_scheme(model_of("c = conv(x, 1) r = Relu (c) y = Conv <pads = [1, 1, 1, 1]> (r, w1, b1)"))
    assert [k.weight for k in scheme.layers] == ["w1", "w1"]


@pytest.mark.parametrize(
    "node",
    [
        "y = MatMul (k, x)",
        "y = MatMul (x, cube)",
        "y = MatMul (x, x)",
        "y = Gemm <transA = 1> (x, k)",
        "y = Gemm <alpha = 0.5> (x, k)",
        "y = Gemm (x, k, x)",
        "y = Gemm (x, k, rows)",
        "y = MatMul (x, doubles)",
        "y = MatMul (x, empty)",
        "y = com.example.MatMul (x, k)",
        "y = Relu (x)",
    ],
)
def test_a_graph_without_a_plain_constant_layer_is_refused(build, node):
    constants = {
        "k": np.zeros((4, 4), np.float32), "cube": np.zeros((1, 4, 4), np.float32),
        "doubles": np.zeros((4, 4)), "rows": np.zeros((4, 4), np.float32),
        "empty": np.zeros((4, 0), np.float32),
    }  # fmt: skip
    used = {k: v for k, v in constants.items() if re.search(rf"\b{k}\b", node)}
    model = build(f"g (float[4, 4] x) => (float[4, 4] y) {{ {node} }}", **used)
    with pytest.raises(ModelError, match=r"graph: no quantizable layer found.*; a Conv, ConvTranspose, Gemm or MatMul"):
        make_scheme(model)


def test_layers_of_several_groups_right_behind_a_first_one_read_its_bits(build, weigh):
    model = build(
        """g (float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y) { [first] a = Conv (x, w0)  [act] r = Relu (a)
        [dw] d = Conv <group = 4> (r, w1)  [then] e = Conv <group = 4> (d, w1)  [last] y = Conv (e, w2) }""",
        w0=weigh(4, 3, 1, 1), w1=weigh(4, 1, 1, 1), w2=weigh(5, 4, 1, 1),
    )  # fmt: skip

    def bits(first_last_bits):
        scheme = make_scheme(model, weight_bits=4, activation_bits=4, first_last_bits=first_last_bits)
        return [(layer.weight_spec.bits, layer.activation_spec.bits) for layer in scheme.layers]

    assert bits(8) == [(8, 8), (4, 8), (4, 4), (8, 8)]
    assert bits(4) == [(4, 4)] * 4


def test_ends_keep_their_bits(model_of):
    body = "c = conv(x, 1) d = conv(c, 2) e = conv(d, 3) y = conv(d, 4) z = Add (e, y)"
    model = model_of(body, outputs="float[N, a, h, w] z")

    def bits(**settings):
        scheme = make_scheme(model, **settings)
        return {k.name: (k.weight_spec.bits, k.activation_spec.bits) for k in scheme.layers}

    inner = {"conv2": (4, 4)}
    assert bits(weight_bits=4, activation_bits=4) == {k: (8, 8) for k in ("conv1", "conv3", "conv4")} | inner
    ends = {k: (4, 4) for k in ("conv1", "conv3", "conv4")}
    assert bits(weight_bits=4, activation_bits=4, first_last_bits=4) == ends | inner
    assert set(bits(weight_bits=4, activation_bits=8, first_last_bits=4).values()) == {(4, 8)}


def test_four_bit_inputs_of_layers_and_eight_bit_adds(model_of):
    body = """c = conv(x, 1) r = Relu (c) d = conv(r, 2) e = Relu (d) f = conv(e, 3) s = Add (f, r) t = Relu (s)
              y = conv(t, 4)"""
    scheme = make_scheme(model_of(body), weight_bits=4, activation_bits=4)
    assert plan_bits(scheme) == {"x": 8, "r": 8, "e": 4, "f": 8, "t": 8, "y": 8}
    assert {t: s.bits for t, s in scheme.requantized.items()} == {"r": 4}


def test_a_tensor_is_requantized_behind_its_mover(model_of):
    body = """a = conv(x, 1) c = Relu (a) m = MaxPool <kernel_shape = [1, 1]> (c) d = conv(m, 2) e = conv(m, 3)
              s = Add (c, d) u = Add (s, e) y = conv(u, 4)"""
    scheme = make_scheme(model_of(body), activation_bits=4)
    assert plan_bits(scheme)["c"] == plan_bits(scheme)["m"] == 8
    assert set(scheme.requantized) == {"m"}


def test_layers_of_different_bits_that_read_one_tensor(model_of):
    body = "c = conv(x, 1) d = conv(c, 2) e = conv(d, 3) y = conv(c, 4)"
    scheme = make_scheme(model_of(body, outputs="float[N, a, h, w] e, float[N, a, h, w] y"), activation_bits=4)
    assert plan_bits(scheme)["c"] == 8 and scheme.requantized["c"].bits == 4
    assert {k.name: k.activation_spec.bits for k in scheme.layers} == {"conv1": 8, "conv2": 4, "conv3": 8, "conv4": 8}


def test_a_layer_inside_a_sharing_set_still_asks_for_its_bits(model_of):
    body = """a = conv(x, 1) m = MaxPool <kernel_shape = [1, 1]> (a) d = conv(a, 2) k = Concat <axis = 1> (m, d)
              e = conv(k, 3) y = conv(e, 4)"""
    scheme = make_scheme(model_of(body, w3=np.zeros((4, 8, 3, 3), np.float32)), activation_bits=4)
    assert scheme.shared == (("a", "m", "d", "k"),)
    assert plan_bits(scheme) == {"x": 8, "a": 4, "m": 4, "d": 4, "k": 4, "e": 8, "y": 8}


def test_a_graph_output_keeps_eight_bits_and_is_requantized_for_the_layers_inside(model_of):
    body = "c = conv(x, 1) r = Relu (c) d = conv(r, 2) y = conv(d, 3)"
    scheme = make_scheme(model_of(body, outputs="float[N, a, h, w] r, float[N, a, h, w] y"), activation_bits=4)
    assert plan_bits(scheme)["r"] == 8 and scheme.requantized["r"].bits == 4


def test_who_reads_the_dimensions_alone_does_not_ask_for_bits(model_of):
    body = "c = conv(x, 1) n = Shape (c) m = Reshape (c, n) d = conv(m, 2) y = conv(d, 3)"
    scheme = make_scheme(model_of(body), activation_bits=4)
    assert plan_bits(scheme) == {"x": 8, "c": 4, "m": 4, "d": 8, "y": 8} and scheme.requantized == {}


def test_a_subgraph_that_reads_a_tensor_keeps_it_at_eight_bits(model_of):
    body = """c = conv(x, 1) d = conv(c, 2) y = conv(d, 3)
              z = If (flag) <then_branch = g1 () => (float[N, 4, 8, 8] u) { u = Tanh (c) },
                             else_branch = g2 () => (float[N, 4, 8, 8] v) { v = Exp (c) }>"""
    outputs = "float[N, a, h, w] y, float[N, a, h, w] z"
    scheme = make_scheme(model_of(body, outputs=outputs, flag=np.array(True)), activation_bits=4)
    assert plan_bits(scheme)["c"] == 8 and scheme.requantized["c"].bits == 4


def test_the_dimensions_of_a_fixed_graph_are_no_readers_at_all(build, draw):
    model = build(
        "g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) { [a] c = Conv (x, w) n = Shape (x) y = Reshape (c, n) }",
        w=draw(4, 4, 1, 1),
    )
    fold_constants(model)
    assert list(make_scheme(model).activations) == ["x", "c"]


CHAIN = "c = conv(x, 1) r = Relu (c) d = conv(r, 2) e = conv(d, 3) y = conv(e, 4)"


def select(*excluded, **layers):
    return Selection(frozenset(excluded), tuple((name, LayerConfig(**bits)) for name, bits in layers.items()))


def test_an_excluded_layer_has_no_plan_and_its_output_no_grid_of_its_own(model_of):
    model = model_of(CHAIN)
    scheme = make_scheme(model, selection=select("conv2"))
    assert [layer.name for layer in scheme.layers] == ["conv1", "conv3", "conv4"]
    assert list(scheme.activations) == ["x", "r", "d", "e", "y"]  # d is read by conv3
    assert list(make_scheme(model, selection=select("conv3", "conv4")).activations) == ["x", "r", "d"]


def test_an_excluded_operator_is_given_no_grid_for_its_own_sake(model_of):
    model = model_of("c = conv(x, 1) f = Tanh (c) d = conv(x, 2) [add] s = Add (f, d) [exp] g = Exp (s) y = conv(g, 3)")
    body = "c = conv(x, 1) f = Tanh (c) d = conv(x, 2) [add] s = Add (f, d) [again] u = Sigmoid (s) y = conv(u, 3)"
    assert list(make_scheme(model, selection=select("add")).activations) == ["x", "c", "d", "g", "y"]
    model = model_of(body)
    assert {"f", "s"} <= set(make_scheme(model).activations)
    assert list(make_scheme(model, selection=select("add")).activations) == ["x", "c", "d", "u", "y"]


@pytest.mark.parametrize(
    "body",
    [
        "c = conv(x, 1) [out] m = MaxPool <kernel_shape = [1, 1]> (c) y = conv(m, 2)",
        "c = conv(x, 1) m = conv(x, 2) [out] k = Concat <axis = 2> (c, m) y = conv(k, 3)",
    ],
)
def test_an_excluded_node_ties_no_grids_together(model_of, body):
    model = model_of(body)
    assert len(make_scheme(model).shared) == 1
    scheme = make_scheme(model, selection=select("out"))
    assert scheme.shared == () and {"c", "m"} <= set(scheme.activations)


def test_bits_of_a_layer_stand_above_those_of_the_rest_and_of_the_ends(model_of):
    layers = {"conv1": {"weight_bits": 4}, "conv2": {"weight_bits": 8, "activation_bits": 8}}
    scheme = make_scheme(model_of(CHAIN), weight_bits=4, activation_bits=4, selection=select(**layers))
    assert {k.name: (k.weight_spec.bits, k.activation_spec.bits) for k in scheme.layers} == {
        "conv1": (4, 8), "conv2": (8, 8), "conv3": (4, 4), "conv4": (8, 8),
    }  # fmt: skip
    assert plan_bits(scheme) == {"x": 8, "r": 8, "d": 4, "e": 8, "y": 8} and scheme.requantized == {}
    assert all(k.weight_spec.signed and k.weight_spec.axis == 0 for k in scheme.layers)


def test_the_ends_are_those_of_the_whole_graph_whatever_is_excluded(model_of):
    scheme = make_scheme(model_of(CHAIN), weight_bits=4, selection=select("conv1", "conv4"))
    assert {k.name: k.weight_spec.bits for k in scheme.layers} == {"conv2": 4, "conv3": 4}


def test_a_tensor_whose_readers_differ_in_bits_is_requantized_for_some(model_of):
    body = "c = conv(x, 1) d = conv(c, 2) e = conv(c, 3) s = Add (d, e) y = conv(s, 4)"
    scheme = make_scheme(model_of(body), activation_bits=4, selection=select(conv3={"activation_bits": 8}))
    assert plan_bits(scheme)["c"] == 8 and scheme.requantized["c"].bits == 4


def test_bits_of_a_layer_that_stays_float_are_refused(model_of):
    body = "c = conv(x, 1) [cube] d = MatMul (c, k) y = conv(d, 2)"
    model = model_of(body, k=np.zeros((1, 8, 8), np.float32))
    text = "layers: 'cube': the node stays in float; a Conv, ConvTranspose, Gemm or MatMul with a constant float weight"
    with pytest.raises(ConfigError, match=text):
        make_scheme(model, selection=select(cube={"weight_bits": 4}))
    assert len(make_scheme(model, selection=select("cube", cube={"exclude": True})).layers) == 2


def test_nothing_left_to_quantize_is_refused(model_of):
    with pytest.raises(ConfigError, match="exclude: no layer is left to quantize; exclude fewer nodes"):
        make_scheme(model_of("y = conv(x, 1)"), selection=select("conv1"))


def test_both_operands_of_a_product_of_activations_get_a_grid_and_its_surroundings_stay_in_float(attention):
    scheme = make_scheme(attention, activation_bits=4)
    assert [k.name for k in scheme.layers] == ["query", "key", "value", "dense"]
    assert set(scheme.activations) == {"h", "q", "k", "kt", "p", "v", "o"}
    assert all(scheme.activations[t].bits == 8 for t in ("q", "k", "kt", "p", "v"))


def test_a_product_of_integers_has_no_grid(build, draw):
    text = """g (float[N, 4] x, int32[N, 4, 4] a) => (float[N, 4] y, int32[N, 4, 4] z) {
        y = MatMul (x, w)  [product] z = MatMul (a, a)
    }"""
    assert set(make_scheme(build(text, w=draw(4, 4))).activations) == {"x"}


def test_an_excluded_product_stays_in_float(attention):
    scheme = make_scheme(attention, selection=Selection(frozenset({"scores"})))
    assert "q" not in scheme.activations and "p" in scheme.activations


def test_the_add_behind_a_matmul_is_the_layers_bias(attention):
    layers = {layer.name: layer for layer in make_scheme(attention).layers}
    assert (layers["query"].bias_add, layers["query"].bias, layers["query"].output) == ("query_add", "bq", "q")
    assert (layers["dense"].bias_add, layers["dense"].bias, layers["dense"].output) == ("dense_add", "bd", "d")
    assert (layers["key"].bias_add, layers["key"].bias, layers["key"].output) == (None, None, "k")
    assert layers["query"].takes_bias and not layers["key"].takes_bias


def test_a_bias_that_is_spread_over_the_axes_of_the_product_is_one_too(build, draw):
    text = "g (float[2, 5, 6] x) => (float[2, 5, 4] y) { [mul] t = MatMul (x, w)  [add] y = Add (t, b) }"
    (layer,) = make_scheme(build(text, w=draw(6, 4), b=draw(1, 1, 4))).layers
    assert (layer.bias_add, layer.bias, layer.output) == ("add", "b", "y")


@pytest.mark.parametrize(
    ("body", "bias"),
    [
        ("[a] t = MatMul (x, w)  [b] y = Add (t, c)  [d] z = Relu (t)", (4,)),  # read by others too
        ("[a] z = MatMul (x, w)  [b] y = Add (z, c)", (4,)),  # given as an output
        ("[a] t = MatMul (x, w)  [b] y = Add (t, c)  [d] z = Relu (y)", (2, 4)),  # not one number a column
        ("[a] t = MatMul (x, w)  [b] y = Add (t, x)  [d] z = Add (y, c)", (4,)),  # no constant
        ("[a] t = MatMul (x, w)  [b] u = Add (t, c)  [d] y = Squeeze (u)  [e] z = Relu (y)", (1, 1, 4)),  # adds an axis
    ],
)
def test_an_add_that_is_no_bias_is_none(build, draw, body, bias):
    model = build(f"g (float[2, 4] x) => (float[2, 4] y, float[2, 4] z) {{ {body} }}", w=draw(4, 4), c=draw(*bias))
    assert make_scheme(model).layers[0].bias_add is None


def test_float_operators_read_what_a_float_operator_makes_unquantized(attention):
    assert make_scheme(attention).float_reads == {"h": frozenset({"join"})}


def test_a_narrow_grid_is_the_only_one_where_all_others_read_in_float(attention):
    scheme = make_scheme(attention, activation_bits=4, first_last_bits=4)
    assert scheme.activations["h"].bits == 4 and "h" not in scheme.requantized


def test_what_a_float_operator_gives_the_user_stays_in_float(build, draw):
    text = "g (float[N, 4] x) => (float[N, 4] h, float[N, 4] y) { [tanh] h = Tanh (x)  [layer] y = MatMul (h, w) }"
    assert make_scheme(build(text, w=draw(4, 4))).float_reads == {"h": frozenset()}


@pytest.mark.parametrize(
    ("body", "grids", "reads"),
    [
        ("[layer] c = MatMul (x, w)  [sub] y = Sub (x, c)", ["x"], {"x": {"sub"}}),
        ("[layer] y = MatMul (x, w)  [copy] z = Identity (x)", ["x"], {"x": {"copy"}}),
        ("[layer] y = MatMul (x, w)  [two] z = MatMul (x, w)", ["x"], {}),
        # Through operators that move its values, two of them
        ("[turn] t = Transpose (x) [fold] f = Flatten (t) [layer] c = MatMul (f, w)  [sub] y = Sub (f, c)",
         ["f"], {"f": {"sub"}}),
        ("[turn] z = Transpose (x)  [layer] y = MatMul (z, w)", ["z"], {"z": set()}),
        ("[turn] t = Transpose (x)  [layer] y = MatMul (t, w)", ["x", "t"], {}),
    ],
)  # fmt: skip
def test_float_operators_read_a_graph_input_unquantized(build, draw, body, grids, reads):
    outputs = "float[4, 4] y" + ", float[4, 4] z" * ("z =" in body)
    scheme = make_scheme(build(f"g (float[4, 4] x) => ({outputs}) {{ {body} }}", w=draw(4, 4)))
    assert (list(scheme.activations), scheme.float_reads) == (grids, reads)
    assert all(set(members) <= set(grids) for members in scheme.shared)


def test_what_a_layer_makes_is_read_on_its_grid_by_all(build, draw):
    text = """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y, float[N, 4, 8, 8] z) {
        [one] t = Conv (x, w1)  [two] y = Conv (t, w2)  [tanh] z = Tanh (t)
    }"""
    assert make_scheme(build(text, w1=draw(4, 3, 1, 1), w2=draw(4, 4, 1, 1))).float_reads == {}


MIXED = """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
    [conv] a = Conv (x, w1)  [flat] f = Flatten (a)  [mid] m = Gemm (f, w2)  [last] y = Gemm (m, w3)
}"""


@pytest.fixture
def mixed(build, draw):
    return build(MIXED, w1=draw(4, 3, 8, 8), w2=draw(4, 6), w3=draw(6, 5))


@pytest.mark.parametrize(
    ("bits", "blocks"),
    [
        ({"weight_bits": 4}, [None, 32, None]),
        ({"weight_bits": 4, "first_last_bits": 4}, [None, 32, 32]),
        ({"weight_bits": 4, "block_size": 128}, [None, 128, 128]),
        ({"weight_bits": 8}, [None, None, None]),
        ({"weight_bits": 8, "block_size": 32}, [None, 32, 32]),
        ({"weight_bits": 3}, [None, 32, None]),
        ({"weight_bits": 4, "block_size": "column"}, [None, None, None]),
    ],
)
def test_layers_that_read_float_have_no_grids_and_matrices_blocks(mixed, bits, blocks):
    scheme = make_scheme(mixed, activation_bits=32, **bits)
    assert scheme.activations == scheme.requantized == {}
    assert [layer.weight_spec.block for layer in scheme.layers] == blocks
    assert all(layer.reads_float for layer in scheme.layers)


def test_matrices_that_read_float_may_have_zero_points(mixed):
    scheme = make_scheme(mixed, weight_bits=4, activation_bits=32, symmetric=False)
    assert [layer.weight_spec.symmetric for layer in scheme.layers] == [True, False, False]
    with pytest.raises(ConfigError, match=r"^weight_symmetry: found asymmetric, and no layer to use it"):
        make_scheme(mixed, symmetric=False)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"block_size": 16}, r"^block_size: found 16 beside 2-bit weights of layer mid; .* give 32, 64, 128 or column"),
        ({"block_size": 256}, r"^block_size: found 256 beside 2-bit weights of layer mid"),
        (
            {"symmetric": False},
            r"^weight_symmetry: found asymmetric beside 2-bit weights of layer mid; .* or 3",
        ),
    ],
)
def test_two_bits_without_a_fast_kernel_are_refused(mixed, settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        make_scheme(mixed, weight_bits=2, activation_bits=32, **settings)


def test_one_layer_alone_may_read_float(mixed):
    selection = Selection(layers=(("mid", LayerConfig(activation_bits=32, weight_bits=4)),))
    scheme = make_scheme(mixed, selection=selection)
    assert set(scheme.activations) == {"x", "a", "m"}
    assert [layer.weight_spec.block for layer in scheme.layers] == [None, 32, None]


def test_blocks_of_matrices_are_those_of_the_target(mixed):
    def list_blocks(**needs):
        scheme = make_scheme(mixed, weight_bits=4, activation_bits=32, requirements=Requirements(**needs))
        return [layer.weight_spec.block for layer in scheme.layers if layer.weight_spec.bits == 4]

    assert list_blocks() == [32] and list_blocks(blocks=(64, 128)) == [64] and list_blocks(in_blocks=False) == [None]


@pytest.mark.parametrize("selection", [Selection(), Selection(layers=(("conv", LayerConfig(activation_bits=32)),))])
def test_blocks_without_a_layer_to_use_them_are_refused(mixed, selection):
    with pytest.raises(ConfigError, match=r"^block_size: found 32, and no layer to use it; .* activation_bits 32 .*"):
        make_scheme(mixed, block_size=32, selection=selection)


def test_blocks_of_single_layers_of_which_none_can_use_them_are_refused(mixed):
    def choose(*names, **settings):
        entry = LayerConfig(**settings)
        return Selection(layers=tuple((name, entry) for name in names))

    with pytest.raises(ConfigError, match=r"^layers: 'mid': block_size: found 64, and no layer to use it; a MatMul or"):
        make_scheme(mixed, selection=choose("mid", block_size=64))
    with pytest.raises(ConfigError, match=r"^layers: 'conv': block_size: found 64"):
        make_scheme(mixed, selection=choose("conv", activation_bits=32, block_size=64))
    scheme = make_scheme(mixed, selection=choose("conv", "mid", activation_bits=32, block_size=64))
    assert [layer.weight_spec.block for layer in scheme.layers] == [None, 64, None]
    make_scheme(mixed, selection=choose("mid", block_size="column"))


LIMITED_NET = """g (float[N, 8, 8, 8] x) => (float[N, 5] y) {
    [dense] a = Conv (x, w1) r = Relu (a) [depthwise] b = Conv <group = 8> (r, w2)
    [multiplied] c = Conv <group = 8> (b, w3) [grouped] d = Conv <group = 2> (c, w4)
    [up] e = ConvTranspose (d, w5) m = GlobalAveragePool (e) f = Flatten (m)
    [inner] h = MatMul (f, w6) [last] y = Gemm <transB = 1> (h, w7) }"""
LIMITED_SHAPES = {"w1": (8, 8, 1, 1), "w2": (8, 1, 3, 3), "w3": (16, 1, 1, 1), "w4": (8, 8, 1, 1), "w5": (8, 8, 2, 2)}
LIMITED_SHAPES |= {"w6": (8, 8), "w7": (5, 8)}


def find_limits(build, draw, **settings):
    model = build(LIMITED_NET, opset=21, ir=10, **{name: draw(*shape) for name, shape in LIMITED_SHAPES.items()})
    return {layer.name: layer.weight_spec.pair_limit for layer in make_scheme(model, **settings).layers}


def test_pairs_are_limited_in_layers_whose_kernels_add_in_pairs(build, draw):
    limited = dict.fromkeys(("dense", "multiplied", "grouped", "inner", "last"), 128)
    assert find_limits(build, draw) == {**limited, "depthwise": None, "up": None}


def test_pairs_are_not_limited_where_they_cannot_reach_so_far_or_may(build, draw):
    """4 bits of the weight or of the activation are too few, float activations have no such kernel."""
    none = dict.fromkeys(("dense", "depthwise", "multiplied", "grouped", "up", "inner", "last"))
    assert find_limits(build, draw, pair_limits=False) == none
    assert find_limits(build, draw, weight_bits=4, first_last_bits=4) == none
    assert find_limits(build, draw, activation_bits=4) == none | {"dense": 128, "last": 128}
    assert find_limits(build, draw, activation_bits=32)["inner"] is None


def test_a_tensor_that_is_requantized_may_stand_at_the_top_of_its_type(model_of):
    model = model_of("c = conv(x, 1) r = Relu (c) d = conv(r, 2) e = Add (d, r) y = conv(e, 3)", opset=21)
    scheme = make_scheme(model, activation_bits=4, first_last_bits=8)
    limits = {layer.input: layer.weight_spec.pair_limit for layer in scheme.layers}
    assert "r" in scheme.requantized and limits["r"] == 128
