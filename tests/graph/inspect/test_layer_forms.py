"""How layers are stored, in files of onnxruntime's own tool, of this one, and of tools with operators of their own."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantFormat, QuantType

from onnxcalib.graph.inspect.layer_forms import StoredGrid, find_forms

NET = """g (float[N, 4, 6, 6] x) => (float[N, 5] y) { [c] c = Conv (x, w1, b1)  [r] r = Relu (c)
    [p] p = GlobalAveragePool (r)  [f] f = Flatten (p)  [h] y = Gemm <transB = 1> (f, w3, b3) }"""
INT8 = StoredGrid("int8", 8, True, "tensor")


@pytest.fixture
def net(build, draw):
    return build(NET, w1=draw(4, 4, 3, 3), b1=draw(4), w3=draw(5, 4), b3=draw(5))


@pytest.mark.parametrize(
    ("form", "names", "stored"),
    [
        (QuantFormat.QDQ, ["Conv", "Gemm"], "QDQ"),
        (QuantFormat.QOperator, ["QLinearConv", "QGemm"], "QOperator"),
    ],
)
def test_layers_of_onnxruntimes_own_tool_are_read_in_both_of_its_forms(net, by_tool, draw, form, names, stored):
    found = find_forms(by_tool(net, form, data=draw(2, 4, 6, 6)))
    assert [each.op for each in found] == names and {each.form for each in found} == {stored}
    assert [each.values for each in found] == [144, 20] and {each.weight for each in found} == {INT8}
    assert {each.input.scales for each in found} == {"tensor"} and {each.input.type for each in found} == {"uint8"}


def test_types_and_symmetry_are_those_of_the_file(net, by_tool, draw):
    model = by_tool(net, QuantFormat.QDQ, QuantType.QUInt8, QuantType.QUInt8, data=draw(2, 4, 6, 6))
    (first, _) = find_forms(model)
    assert (first.weight.type, first.input.type) == ("uint8", "uint8") and not first.weight.symmetric


def test_dynamic_layers_find_their_input_s_scale_in_each_run(net, by_tool):
    found = find_forms(by_tool(net, "dynamic"))
    assert {each.op for each in found} == {"ConvInteger", "MatMulInteger"} == {each.form for each in found}
    assert {each.input for each in found} == {StoredGrid("uint8", 8, None, "run")}


@pytest.mark.parametrize(
    ("bits", "zeros", "symmetric"), [(4, None, True), (4, 0x88, True), (4, 0x87, False), (8, 128, True)]
)
def test_packed_matrices_tell_bits_blocks_and_whether_zero_is_the_middle(build, draw, bits, zeros, symmetric):
    model = build("g (float[N, 64] x) => (float[N, 8] y) { y = Identity (x) }", scales=draw(16))
    model.graph.initializer.append(
        helper.make_tensor("w", TensorProto.UINT8, [8, 2, 4 * bits], bytes(64 * bits), raw=True)
    )
    names = ["x", "w", "scales"]
    if zeros is not None:
        count = 16 * bits // 8
        model.graph.initializer.append(
            helper.make_tensor("z", TensorProto.UINT8, [count], bytes([zeros] * count), raw=True)
        )
        names.append("z")
    del model.graph.node[:]
    attributes = {"K": 64, "N": 8, "bits": bits, "block_size": 32}
    model.graph.node.append(helper.make_node("MatMulNBits", names, ["y"], domain="com.microsoft", **attributes))
    (found,) = find_forms(model)
    assert found.weight == StoredGrid(f"uint{bits}", bits, symmetric, "block of 32") and found.input is None
    assert found.values == 512


def test_operators_of_another_tool_s_domain_tell_what_their_inputs_say(build, draw):
    model = build(
        "g (float[N, 8] x) => (float[N, 4] y) { y = MatMul (a, b) }",
        w=draw(8, 4), s=np.float32(0.1), t=np.full(4, 0.1, np.float32), z=np.uint16(0), u=np.zeros(4, np.int8),
    )  # fmt: skip
    domain = "com.amd.quark"
    for name, given, made in (("a", "x", ("s", "z")), ("b", "w", ("t", "u"))):
        first = helper.make_node("ExtendedQuantizeLinear", [given, *made], [f"{name}q"], domain=domain)
        second = helper.make_node("ExtendedDequantizeLinear", [f"{name}q", *made], [name], domain=domain)
        model.graph.node.insert(0, second)
        model.graph.node.insert(0, first)
    (found,) = find_forms(model)
    kind = "com.amd.quark.ExtendedDequantizeLinear"
    assert (found.form, found.values) == (kind, 32)
    assert found.weight == StoredGrid(kind, 8, True, "channel") and found.input == StoredGrid(kind, 16, False, "tensor")


def test_this_tool_s_own_forms_are_read_with_the_bits_of_their_clips(rough, net, draw):
    model = rough(net, draw(8, 4, 6, 6), weight_bits=4, activation_bits=4, first_last_bits=4)
    found = find_forms(model)
    assert [each.weight for each in found] == [StoredGrid("int4", 4, True, "channel")] * 2
    assert [each.input.bits for each in found] == [4, 4] and found[0].behind


def test_a_float_model_has_none(net):
    assert find_forms(net) == ()
