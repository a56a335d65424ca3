import numpy as np
import pytest
from onnx import helper, numpy_helper

from onnxcalib.runtime.blocks import BlockError, layer_module, to_torch
from onnxcalib.runtime.converters.linear import rewrite_linear
from tests.runtime.converters.parity import make_block, make_input, node_error

TOLERANCE = 1e-6
X = make_input(5, 4)


@pytest.mark.parametrize("version", [7, 9, 11, 13])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [(3,), (1, 3), (1,), (), (1, 1)])
def test_a_gemm_agrees_for_both_orders_of_its_weight_and_any_bias_of_one_row(version, trans_b, bias):
    weight = make_input(3, 4) if trans_b else make_input(4, 3)
    assert node_error("Gemm", version, X, [weight, make_input(*bias)], transB=trans_b) < TOLERANCE


@pytest.mark.parametrize("version", [11, 13])
def test_a_gemm_without_bias_agrees(version):
    assert node_error("Gemm", version, X, [make_input(4, 3)]) < TOLERANCE


@pytest.mark.parametrize("version", [1, 9, 13])
@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 5, 4), (2, 3, 5, 4)])
def test_a_matmul_of_any_rank_agrees(version, shape):
    assert node_error("MatMul", version, make_input(*shape), [make_input(4, 3)]) < TOLERANCE


@pytest.mark.parametrize("trans_b", [0, 1])
def test_the_weight_of_a_linear_is_out_by_in(trans_b):
    weight = make_input(3, 4) if trans_b else make_input(4, 3)
    layer = layer_module(to_torch(make_block("Gemm", 13, {"x": X}, [weight], transB=trans_b)), "Gemm")
    np.testing.assert_array_equal(layer.weight.detach().numpy(), weight if trans_b else weight.T)
    assert layer.weight.is_contiguous() and layer.weight.requires_grad


@pytest.mark.parametrize(
    ("constants", "attributes"),
    [
        ([make_input(4, 3)], {"alpha": 0.5}),
        ([make_input(4, 3), make_input(3)], {"beta": 0.5}),
        ([make_input(5, 3)], {"transA": 1}),
        ([make_input(4, 3), make_input(5, 3)], {}),
        ([make_input(4, 5), make_input(5, 1)], {}),
    ],
)
def test_a_gemm_that_is_more_than_a_linear_agrees_and_is_no_layer(constants, attributes):
    assert node_error("Gemm", 13, X, constants, **attributes) < TOLERANCE
    module = to_torch(make_block("Gemm", 13, {"x": X}, constants, **attributes))
    with pytest.raises(BlockError, match=r"Gemm: not a layer of the block; its layers are \[\]"):
        layer_module(module, "Gemm")


@pytest.mark.parametrize(
    ("inputs", "domain"), [(["w", "x"], ""), (["x", "y"], ""), (["x", "batched"], ""), (["x", "w"], "other")]
)
def test_a_matmul_that_is_no_linear_stays_as_it_is(inputs, domain):
    node = helper.make_node("MatMul", inputs, ["z"], domain=domain)
    before = node.SerializeToString()
    constants = {"w": numpy_helper.from_array(X), "batched": numpy_helper.from_array(make_input(2, 4, 3))}
    assert not rewrite_linear(node, constants)
    assert node.SerializeToString() == before
