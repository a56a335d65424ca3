import numpy as np
import pytest
from onnx import ModelProto, checker

from onnxcalib.graph.index import Index
from onnxcalib.graph.passes.normalise import name_nodes
from onnxcalib.graph.passes.rescale import can_rescale, can_scale, fold_integer_pads, rescale_input, scale_input
from onnxcalib.graph.scheme import make_scheme

FACTOR, SHIFT = np.array([4.0, 0.5, 30.0]), np.array([-3.0, 7.0, 100.0])


def copy(model):
    return ModelProto.FromString(model.SerializeToString())


@pytest.mark.parametrize(
    ("node", "ops"),
    [
        ("[c] y = Conv <pads = [1, 1, 1, 1]> (x, w, b)", ["Pad", "Mul", "Add", "Conv"]),
        ("[c] y = Conv <pads = [0, 2, 1, 0], strides = [2, 2]> (x, w)", ["Pad", "Mul", "Add", "Conv"]),
        ("[c] y = Conv (x, w, b)", ["Mul", "Add", "Conv"]),
        ('[c] y = Conv <auto_pad = "VALID"> (x, w, b)', ["Mul", "Add", "Conv"]),
    ],
)
def test_the_outputs_stay_as_they_are(build, run, draw, node, ops):
    model = build(
        f"g (float[N, 3, 8, 8] x) => (float[N, 4, h, v] y) {{ {node} }}",
        w=draw(4, 3, 3, 3), b=draw(4),
    )  # fmt: skip
    if "w, b" not in node:
        del model.graph.initializer[1]
    x = draw(2, 3, 8, 8)
    (before,) = run(model, x)
    layer = make_scheme(model).layers[0]
    assert can_rescale(model, layer)
    tensor = rescale_input(model, layer, FACTOR, SHIFT)
    checker.check_model(model, full_check=True)
    assert [n.op_type for n in model.graph.node] == ops
    assert make_scheme(model).layers[0].input == tensor
    np.testing.assert_allclose(run(model, x)[0], before, rtol=1e-3, atol=1e-3)


def test_the_conv_reads_its_input_in_the_new_units(build, run, draw):
    model = build("g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) { [c] y = Conv (x, w) }", w=draw(4, 3, 1, 1))
    tensor = rescale_input(model, make_scheme(model).layers[0], FACTOR, SHIFT)
    model.graph.output[0].name = tensor
    x = draw(2, 3, 8, 8)
    given = run(model, x)[0]
    np.testing.assert_allclose(given, x * FACTOR[:, None, None] + SHIFT[:, None, None], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
def test_there_may_be_other_numbers_of_axes_in_space(build, run, draw, rank):
    space = ", ".join(["7"] * rank)
    model = build(
        f"g (float[N, 3, {space}] x) => (float[N, 4, {space}] y) {{ [c] y = Conv <pads = {[1] * 2 * rank}> (x, w) }}",
        w=draw(4, 3, *[3] * rank),
    )
    x = draw(2, 3, *[7] * rank)
    before = run(model, x)[0]
    rescale_input(model, make_scheme(model).layers[0], FACTOR, SHIFT)
    np.testing.assert_allclose(run(model, x)[0], before, rtol=1e-3, atol=1e-3)


def test_a_weight_that_another_layer_reads_stays_as_it_is(build, run, draw):
    model = build(
        """g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] z)
        { [a] y = Conv <pads = [1, 1, 1, 1]> (x, w)  [b] z = Conv <pads = [1, 1, 1, 1]> (y, w) }""",
        w=draw(3, 3, 3, 3),
    )
    x = draw(2, 3, 8, 8)
    before = run(model, x)[0]
    rescale_input(model, make_scheme(model).layers[0], FACTOR, SHIFT)
    assert list(Index(model.graph).producer["z"].input) == ["y", "w"]
    np.testing.assert_allclose(run(model, x)[0], before, rtol=1e-3, atol=1e-2)


def test_names_inside_bodies_are_not_taken_again(build, run, draw):
    model = build(
        """g (float[N, 3, 8, 8] x, bool yes) => (float[N, 3, 8, 8] z) { [c] y = Conv (x, w)
        z = If (yes) <then_branch = t () => (float[N, 3, 8, 8] c_Mul_output) { c_Mul_output = Relu (y) },
                      else_branch = e () => (float[N, 3, 8, 8] c_Add) { c_Add = Abs (y) }> }""",
        w=draw(3, 3, 1, 1),
    )
    x = draw(2, 3, 8, 8)
    before = run(model, x, np.array(True))[0]
    rescale_input(model, make_scheme(model).layers[0], FACTOR, SHIFT)
    checker.check_model(model, full_check=True)
    np.testing.assert_allclose(run(model, x, np.array(True))[0], before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("other", "taken"), [("z = Shape (x)", True), ("z = Relu (x)", False), ("z = Conv (x, u)", False)]
)
def test_a_conv_whose_input_others_read_is_not_taken_but_for_its_shape(build, draw, other, taken):
    model = build(
        f"g (float[N, 3, 8, 8] x) => (float[N, 3, h, v] y) {{ [c] y = Conv (x, w)  {other} }}",
        w=draw(3, 3, 3, 3), u=draw(3, 3, 3, 3),
    )  # fmt: skip
    assert can_rescale(model, make_scheme(model).layers[0]) is taken


@pytest.mark.parametrize(
    ("other", "taken"), [("", True), ("z = Conv (x, u)", False), ("z = Concat <axis = 1> (y, x)", False)]
)
def test_a_conv_behind_a_tensor_that_others_read_is_not_taken(build, draw, other, taken):
    model = build(
        f"""g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) {{
        p = MaxPool <kernel_shape = [1, 1]> (x)  [c] y = Conv (p, w)  {other} }}""",
        w=draw(3, 3, 1, 1), u=draw(3, 3, 3, 3),
    )  # fmt: skip
    name_nodes(model)
    assert can_rescale(model, make_scheme(model).layers[0]) is taken


@pytest.mark.parametrize(
    "node",
    ["Conv <group = 3> (x, w)", 'Conv <auto_pad = "SAME_UPPER"> (x, v)', "ConvTranspose (x, v)"],
)
def test_other_layers_are_not_taken(build, draw, node):
    model = build(
        f"g (float[N, 3, 8, 8] x) => (float[N, 3, h, v] y) {{ [c] y = {node} }}",
        w=draw(3, 1, 3, 3), v=draw(3, 3, 3, 3),
    )  # fmt: skip
    assert not can_rescale(model, make_scheme(model).layers[0])


@pytest.mark.parametrize(("shift", "sizes"), [(SHIFT, [3, 1, 1]), (np.full(3, 0.5), [])])
def test_there_is_no_product_where_all_factors_are_one(build, run, draw, shift, sizes):
    model = build("g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) { [c] y = Conv (x, w) }", w=draw(4, 3, 1, 1))
    x = draw(2, 3, 8, 8)
    (before,) = run(model, x)
    rescale_input(model, make_scheme(model).layers[0], np.ones(3), shift)
    assert [n.op_type for n in model.graph.node] == ["Add", "Conv"]
    added = next(t for t in model.graph.initializer if t.name == model.graph.node[0].input[1])
    assert list(added.dims) == sizes
    np.testing.assert_allclose(run(model, x)[0], before, rtol=1e-3, atol=1e-3)


PADDED = """g (float[N, 3, 6, 6] x) => (float[N, 4, h, v] y) {{
    p = Pad (x, pads) {between} q = QuantizeLinear (s, step, z) d = DequantizeLinear (q, step, z)
    y = Conv <pads = [0, 1, 0, 0]> (d, w) }}"""
ADD, BOTH = "s = Add (p, shift)", "m = Mul (p, factor) s = Add (m, shift)"
PADS = np.array([0, 0, 1, 1, 0, 0, 0, 2])


@pytest.mark.parametrize(
    ("between", "shift", "gone"),
    [
        (ADD, [0.024, -0.024, 0.0], True),
        (BOTH, [0.024, -0.024, 0.0], True),
        (ADD, [0.024, -0.03, 0.0], False),  # read one step off the zero point
        ("s = Add (p, half)", [0, 0, 0], True),
        ("s = Identity (p)", [0, 0, 0], False),
        ("s = Sub (p, shift)", [0.0, 0.0, 0.0], False),
    ],
)
def test_a_pad_goes_where_the_zero_point_stands_for_its_zeros(build, run, draw, between, shift, gone):
    constants = {"shift": np.float32(shift).reshape(3, 1, 1), "factor": np.float32([2, 3, 1]).reshape(3, 1, 1)}
    constants |= {
        "half": np.float32(0.024),
        "step": np.float32(0.05),
        "z": np.uint8(120),
        "pads": PADS,
        "w": draw(4, 3, 3, 3),
    }
    model = build(PADDED.format(between=between), **constants)
    name_nodes(model)
    x = draw(2, 3, 6, 6)
    (before,) = run(model, x)
    assert fold_integer_pads(model) == gone
    assert ("Pad" in [n.op_type for n in model.graph.node]) is not gone
    checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(run(model, x)[0], before)


@pytest.mark.parametrize("change", ["value", "batch", "other", "weight", "grid"])
def test_a_pad_that_is_not_the_convs_alone_stays(build, draw, change):
    text, pads, more = PADDED.format(between=ADD), PADS, {}
    if change == "value":
        text, more = text.replace("Pad (x, pads)", "Pad (x, pads, one)"), {"one": np.float32(1)}
    elif change == "batch":
        pads = np.array([0, 1, 0, 0, 0, 0, 0, 0])
    elif change == "weight":
        text = text.replace("(d, w)", "(w, d)")
    elif change == "grid":
        text, more = text.replace("(q, step, z)", "(q, step, other)"), {"other": np.uint8(7)}
    else:
        text = text.replace("y) {", "y, float[N, 3, a, b] also) { also = Relu (p) ")
    model = build(text, shift=np.zeros((3, 1, 1), np.float32), step=np.float32(0.05), z=np.uint8(120), pads=pads,
                  w=draw(4, 3, 3, 3), **more)  # fmt: skip
    name_nodes(model)
    assert fold_integer_pads(model) == 0


SCALED = [
    ("[c] y = Conv <pads = [1, 1]> (x, w)", (4, 6, 3), 1),
    ("[c] y = Conv <pads = [1, 1], group = 3> (x, w)", (9, 2, 3), 3),
    ("[c] y = Conv <group = 6> (x, w)", (6, 1, 3), 6),
    ("[c] y = MatMul (x, w)", (6, 5), 1),
]


@pytest.mark.parametrize(("node", "shape", "groups"), SCALED)
def test_channels_are_scaled_without_an_error(build, run, draw, node, shape, groups):
    text = f"g (float[N, 6, 6] x) => (float[N, a, b] y) {{ {node} }}"
    model, factor = build(text, w=draw(*shape)), 2.0 ** np.arange(-3, 3)
    x = draw(2, 6, 6)
    (before,) = run(model, x)
    (layer,) = make_scheme(model).layers
    assert can_scale(Index(model.graph), layer) and layer.groups == groups
    tensor = scale_input(model, layer, factor)
    checker.check_model(model, full_check=True)
    np.testing.assert_allclose(run(model, x)[0], before, rtol=1e-6, atol=1e-6)
    assert make_scheme(model).layers[0].input == tensor


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_is_scaled_along_its_rows(build, run, draw, transposed):
    text = f"g (float[N, 6] x) => (float[N, 6] y) {{ [c] y = Gemm <transB = {transposed}> (x, w, b) }}"
    model, x = build(text, w=draw(6, 6), b=draw(6)), draw(5, 6)
    (before,) = run(model, x)
    scale_input(model, make_scheme(model).layers[0], 2.0 ** np.arange(-3, 3))
    np.testing.assert_allclose(run(model, x)[0], before, rtol=1e-6, atol=1e-6)
