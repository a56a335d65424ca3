import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper, parser
from torch import nn

from onnxcalib.runtime.blocks import (
    BlockError,
    compare,
    constant_of,
    layer_module,
    place,
    return_also,
    tie_constant,
    to_torch,
)
from onnxcalib.runtime.session import Session

TOLERANCE = 1e-5
HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'


def parse(text, **weights):
    """A block from ONNX text; each weight is a shape, filled with the same normal numbers every time."""
    model = parser.parse_model(HEADER + text)
    for name, shape in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(make_array(shape), name))
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    return model


def make_array(shape):
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)


def make_feeds(model):
    constants = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in constants]
    return {v.name: make_array([d.dim_value or 2 for d in v.type.tensor_type.shape.dim]) for v in values}


def measure_error(model, module=None):
    feeds = make_feeds(model)
    session = Session(model, optimize=False, threads=1)
    outputs = session.run(feeds)
    return compare(module or to_torch(model), model, feeds, [outputs[value.name] for value in model.graph.output])


def run_block(module, model):
    return [y.detach().numpy() for y in module(*(torch.from_numpy(x) for x in make_feeds(model).values()))]


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


class Negate(nn.Module):
    def forward(self, x):
        return -x


RESIDUAL = """
block (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y)
{
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    b = Conv <pads = [1, 1, 1, 1]> (r, w2)
    s = Add (b, x)
    y = Relu (s)
}
"""
RESIDUAL_WEIGHTS = {"w1": (4, 4, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3)}


def test_a_residual_block_agrees_and_is_in_eval_mode():
    model = parse(RESIDUAL, **RESIDUAL_WEIGHTS)
    module = to_torch(model)
    assert not any(m.training for m in module.modules())
    assert measure_error(model, module) < TOLERANCE


def test_the_model_is_not_changed():
    model = parse(RESIDUAL, **RESIDUAL_WEIGHTS)
    before = model.SerializeToString()
    module = to_torch(model)
    layer_module(module, "Conv_0").weight.data.zero_()
    assert model.SerializeToString() == before


def test_outputs_come_in_the_declared_order():
    model = parse("block (float[2, 3] x) => (float[2, 3] c, float[2, 3] a) { a = Relu (x) b = Neg (a) c = Exp (b) }")
    assert measure_error(model) < TOLERANCE


def test_one_of_a_nodes_outputs_is_that_tensor_alone():
    model = parse("block (float[2, 5] x, int64[2] n) => (float[2, k] b) { a, b = Split <axis = 1> (x, n) }")
    model.graph.input.pop()
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "n"))
    (only,) = run_block(to_torch(model), model)
    assert only.shape == (2, 3)
    assert measure_error(model) == 0


def test_an_input_may_pass_through():
    model = parse("block (float[2, 3] x, float[2, 3] z) => (float[2, 3] z, float[2, 3] y) { y = Add (x, z) }")
    module = to_torch(model)
    x, z = (torch.from_numpy(value) for value in make_feeds(model).values())
    passed, total = module(x, z)
    assert torch.equal(passed, z) and torch.equal(total, x + z)


def test_a_block_may_do_nothing_but_pass_its_input_through():
    model = parse("block (float[2, 3] x) => (float[2, 3] x) { unused = Relu (x) }")
    (passed,) = run_block(to_torch(model), model)
    np.testing.assert_array_equal(passed, make_array((2, 3)))


def test_an_output_that_is_declared_twice_is_returned_twice():
    model = parse("block (float[2, 3] x) => (float[2, 3] y, float[2, 3] y) { y = Relu (x) }")
    first, second = run_block(to_torch(model), model)
    np.testing.assert_array_equal(first, second)


def test_an_initializer_may_be_an_output_and_an_input_too():
    model = parse("block (float[2, 3] x, float[2, 3] c) => (float[2, 3] c, float[2, 3] y) { y = Add (x, c) }", c=(2, 3))
    assert measure_error(model) == 0
    assert len([n for n in to_torch(model).graph.nodes if n.op == "placeholder"]) == 1


def test_the_long_name_of_the_domain_is_understood():
    model = parse("block (float[2, 3] x) => (float[2, 3] y) { y = Relu (x) }")
    model.opset_import[0].domain = model.graph.node[0].domain = "ai.onnx"
    assert len(run_block(to_torch(model), model)) == 1


def test_nodes_without_a_name_go_by_their_first_output():
    model = parse(RESIDUAL, **RESIDUAL_WEIGHTS)
    for node in model.graph.node:
        node.name = ""
    assert isinstance(layer_module(to_torch(model), "a"), nn.Conv2d)


def test_names_that_python_cannot_use_are_kept():
    model = parse(RESIDUAL, **RESIDUAL_WEIGHTS)
    model.graph.node[0].name = "stage.1/conv:0"
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "stage.1/conv:0_out"
    module = to_torch(model)
    place(module, "stage.1/conv:0_out", Double())
    assert isinstance(layer_module(module, "stage.1/conv:0"), nn.Conv2d)


def test_an_operator_without_converter_is_refused_with_its_name_and_version():
    model = parse("block (float[3, 3] x) => (float y) { y = Det (x) }")
    with pytest.raises(BlockError, match=r"^Det_0: Det-11 cannot be converted to torch$"):
        to_torch(model)


def test_an_operator_of_another_domain_is_refused_with_its_domain():
    model = parse("block (float[3, 3] x) => (float[3, 3] y) { y = Relu (x) }")
    model.graph.node[0].op_type, model.graph.node[0].domain = "FusedRelu", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(BlockError, match=r"com\.microsoft::FusedRelu-1 cannot be converted to torch"):
        to_torch(model)


def test_what_onnx2torch_raises_becomes_one_line():
    model = parse('block (float[2, 3] x) => (float[2, 3] y) { y = Einsum <equation = "ij->ij"> (missing) }')
    with pytest.raises(BlockError, match=r"^block: it cannot be converted to torch \(.+\)$") as caught:
        to_torch(model)
    assert "\n" not in str(caught.value)


LAYERS = {
    "grouped": ("Conv <group = 2>", (1, 4, 6, 6), (6, 2, 3, 3), nn.Conv2d),
    "depthwise": ("Conv <group = 4, strides = [2, 2]>", (1, 4, 6, 6), (4, 1, 3, 3), nn.Conv2d),
    "asymmetric": ("Conv <pads = [0, 0, 1, 1]>", (1, 4, 6, 6), (4, 4, 3, 3), nn.Conv2d),
    "one axis": ("Conv", (1, 4, 6), (4, 4, 3), nn.Conv1d),
    "three axes": ("Conv", (1, 4, 3, 3, 3), (4, 4, 2, 2, 2), nn.Conv3d),
    "transposed": ("ConvTranspose <strides = [2, 2]>", (1, 4, 3, 3), (4, 2, 2, 2), nn.ConvTranspose2d),
    "cropped": ("ConvTranspose <pads = [0, 0, 1, 1]>", (1, 4, 3, 3), (4, 2, 2, 2), nn.ConvTranspose2d),
    "gemm": ("Gemm", (5, 4), (4, 3), nn.Linear),
    "gemm of a transposed weight": ("Gemm <transB = 1>", (5, 4), (3, 4), nn.Linear),
    "matmul of three axes": ("MatMul", (2, 5, 4), (4, 3), nn.Linear),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_each_layer_has_a_weight_and_a_bias_that_train(kind):
    operator, shape, weight, expected = LAYERS[kind]
    sizes = ", ".join(map(str, shape))
    axes = ", ".join(f"k{axis}" for axis in range(len(shape)))
    model = parse(f"block (float[{sizes}] x) => (float[{axes}] y) {{ y = {operator} (x, w) }}", w=weight)
    module = to_torch(model)
    layer = layer_module(module, model.graph.node[0].name)
    assert type(layer) is expected
    assert isinstance(layer.weight, nn.Parameter) and isinstance(layer.bias, nn.Parameter)
    assert not layer.bias.any()
    assert {p.data_ptr() for p in module.parameters()} == {layer.weight.data_ptr(), layer.bias.data_ptr()}
    assert measure_error(model, module) < TOLERANCE
    sum(y.square().sum() for y in module(torch.from_numpy(make_array(shape)))).backward()
    assert layer.weight.grad.any() and layer.bias.grad.any()


def test_two_layers_of_one_weight_train_apart():
    model = parse("block (float[2, 3] x) => (float[2, 3] y) { a = MatMul (x, w) y = MatMul (a, w) }", w=(3, 3))
    module = to_torch(model)
    first, second = (layer_module(module, node.name) for node in model.graph.node)
    assert first.weight.data_ptr() != second.weight.data_ptr()


def test_the_table_of_a_gather_is_changed_in_place():
    text = "g (int64[n] i, float[n, 2] x) => (float[n, 2] y) { [look] r = Gather (t, i)  [sum] y = Add (x, r) }"
    module = to_torch(parse(text, t=(3, 2)))
    constant_of(module, "look").copy_(torch.arange(6.0).reshape(3, 2))
    assert torch.equal(module(torch.tensor([2, 0]), torch.zeros(2, 2))[0], torch.tensor([[4.0, 5.0], [0.0, 1.0]]))
    with pytest.raises(BlockError, match=r"^sum: reads no constant in torch"):
        constant_of(module, "sum")


def test_a_table_that_is_tied_to_a_layer_follows_its_weight():
    text = "g (int64[n] i) => (float[n, 3] y, float[n, 2] r) { [look] r = Gather (t, i)  [head] y = MatMul (r, w) }"
    module = to_torch(parse(text, t=(3, 2), w=(2, 3)))
    tie_constant(module, "look", "head")
    layer_module(module, "head").get_parameter("weight").data = torch.arange(6.0).reshape(3, 2)
    products, rows = module(torch.tensor([2, 0]))
    assert torch.equal(rows, torch.tensor([[4.0, 5.0], [0.0, 1.0]]))
    assert torch.equal(products, torch.tensor([[5.0, 23.0, 41.0], [1.0, 3.0, 5.0]]))
    with pytest.raises(BlockError, match=r"^head: reads no constant in torch"):
        tie_constant(module, "head", "head")


def test_what_is_no_layer_is_refused_with_the_layers_there_are():
    module = to_torch(parse(RESIDUAL, **RESIDUAL_WEIGHTS))
    with pytest.raises(BlockError, match=r"Relu_1: not a layer of the block; its layers are \['Conv_0', 'Conv_2'\]"):
        layer_module(module, "Relu_1")


FORK = """
block (float[2, 3] x) => (float[2, 3] p, float[2, 3] q, float[2, 3] t)
{
    t = Abs (x)
    p = Neg (t)
    q = Mul (t, t)
}
"""


def test_all_readers_of_a_tensor_read_the_quantizer_and_outputs_stay_raw():
    model = parse(FORK)
    module = to_torch(model)
    place(module, "t", Double())
    raw = np.abs(make_array((2, 3)))
    for ours, theirs in zip(run_block(module, model), (-2 * raw, 4 * raw * raw, raw), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_two_quantizers_may_share_a_tensor_between_its_readers():
    model = parse(FORK)
    module = to_torch(model)
    place(module, "t", Double(), only=["Neg_1"])
    place(module, "t", Negate(), only=["Mul_2"])
    place(module, "x", Double())
    raw = np.abs(make_array((2, 3)) * 2)
    for ours, theirs in zip(run_block(module, model), (-2 * raw, raw * raw, raw), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_the_rest_of_the_readers_may_get_a_second_quantizer():
    model = parse(FORK)
    module = to_torch(model)
    place(module, "t", Double(), only=["Neg_1"])
    place(module, "t", Negate())
    raw = np.abs(make_array((2, 3)))
    np.testing.assert_allclose(run_block(module, model)[0], -2 * raw, rtol=1e-6)


def test_a_quantizer_reads_one_of_a_nodes_outputs():
    text = """
    block (float[2, 4] x) => (float[2, 2] y, float[2, 2] a)
    {
        a, b = Split <axis = 1> (x)
        c = Add (a, b)
        y = Sub (c, b)
    }
    """
    model = parse(text)
    module = to_torch(model)
    place(module, "b", Double(), only=["Sub_2"])
    first, second = np.split(make_array((2, 4)), 2, axis=1)
    for ours, theirs in zip(run_block(module, model), (first + second - 2 * second, first), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_inner_tensors_may_be_returned_as_their_readers_read_them():
    model = parse("g (float[2, 3] x) => (float[2, 3] y) { a = Sin (x)  b = Cos (a)  y = Exp (b) }")
    module = to_torch(model)
    return_also(module, ["a", "b"])
    x = torch.randn(2, 3, requires_grad=True)
    y, a, b = module(x)
    torch.testing.assert_close(a, x.sin())
    torch.testing.assert_close(torch.autograd.grad(y.sum(), [a, b]), (-a.sin() * y, y))


def test_a_copied_block_takes_quantizers_of_its_own():
    model = parse(FORK)
    module = to_torch(model)
    place(module, "t", Double(), only=["Neg_1"])
    copied = copy.deepcopy(module)
    place(copied, "t", Double(), only=["Mul_2"])
    raw = np.abs(make_array((2, 3)))
    np.testing.assert_allclose(run_block(copied, model)[1], 4 * raw * raw, rtol=1e-6)
    np.testing.assert_allclose(run_block(module, model)[1], raw * raw, rtol=1e-6)
    place(module, "x", Double())


def test_the_parameters_of_a_quantizer_are_the_blocks():
    module = to_torch(parse(FORK))
    quantizer = nn.PReLU()
    place(module, "t", quantizer)
    assert [p is quantizer.weight for p in module.parameters()] == [True]


def test_a_quantizer_of_what_is_no_activation_is_refused():
    module = to_torch(parse(RESIDUAL, **RESIDUAL_WEIGHTS))
    for tensor in ("w1", "elsewhere"):
        with pytest.raises(BlockError, match=f"{tensor}: not an activation of the block"):
            place(module, tensor, Double())


def test_a_quantizer_for_a_node_that_does_not_read_the_tensor_is_refused():
    module = to_torch(parse(FORK))
    with pytest.raises(BlockError, match=r"t: not read by \['Abs_0'\]; its readers are \['Mul_2', 'Neg_1'\]"):
        place(module, "t", Double(), only=["Abs_0", "Neg_1"])


def test_a_quantizer_that_nobody_would_read_is_refused():
    module = to_torch(parse(FORK))
    with pytest.raises(BlockError, match=r"p: not read by any node; its readers are \[\]"):
        place(module, "p", Double())


def test_a_wrong_answer_is_told_from_a_right_one():
    model = parse(RESIDUAL, **RESIDUAL_WEIGHTS)
    module = to_torch(model)
    layer_module(module, "Conv_2").weight.data[0, 0, 0, 0] += 1
    assert measure_error(model, module) > 0.01


@pytest.mark.parametrize(
    ("outputs", "error"),
    [
        ([[[1.0, -2.0]]], 0.0),
        ([[[1.0, -1.5]]], 0.5 / 1.5),
        ([[[1.0, -2.0, 0.0]]], np.inf),
        ([[1.0, -2.0]], np.inf),
        ([[[1.0, np.nan]]], np.inf),
        ([[[0.0, 0.0]]], np.inf),
    ],
)
def test_the_error_is_relative_to_the_largest_output(outputs, error):
    model = parse("block (float[1, 2] x) => (float[1, 2] y) { y = Neg (x) }")
    feeds = {"x": np.array([[-1.0, 2.0]], np.float32)}
    measured = compare(to_torch(model), model, feeds, [np.array(y, np.float32) for y in outputs])
    assert measured == pytest.approx(error)


def test_the_worst_of_the_outputs_counts():
    model = parse("block (float[1, 2] x) => (float[1, 2] y, float[1, 2] z) { y = Neg (x) z = Exp (x) }")
    feeds = {"x": np.zeros((1, 2), np.float32)}
    right, wrong = np.zeros((1, 2), np.float32), np.full((1, 2), 2, np.float32)
    assert compare(to_torch(model), model, feeds, [right, wrong]) == pytest.approx(0.5)


def test_an_input_without_axes_stays_without():
    model = parse("g (float s) => (float y) { y = Identity (s) }")
    assert compare(to_torch(model), model, {"s": np.array(3, np.float32)}, [np.array(3, np.float32)]) == 0


def test_a_block_that_torch_cannot_run_is_refused_in_one_line():
    model = parse("block (float[2, 3] x, float[3, 2] z) => (float[2, 2] y) { y = MatMul (x, z) }")
    feeds = {"x": np.zeros((2, 3), np.float32), "z": np.zeros((2, 3), np.float32)}
    with pytest.raises(BlockError, match=r"^block: torch cannot run it \(.*shapes cannot be multiplied.*\)$"):
        compare(to_torch(model), model, feeds, [])


def test_the_newest_opset_of_torchs_own_export_converts():
    model = parse(RESIDUAL, **RESIDUAL_WEIGHTS)
    model.opset_import[0].version, model.ir_version = 22, 10
    onnx.checker.check_model(model)
    assert measure_error(model) < TOLERANCE
