"""Rules are read off nodes in the place of the functions that hold them, with one name of ONNX's own domain."""

from __future__ import annotations

import pytest
from onnx import parser

from onnxcalib.errors import ModelError
from onnxcalib.lint import check_target

FUNCTION = """<ir_version: 8, opset_import: ["": 17, "own": 1]> g (float[1, 6] x) => (float[1, 6] y) {
    s = Constant<value = float {0.1}>() z = Constant<value = int8 {0}>()
    q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) [inner] y = own.part(d)
}
<domain: "own", opset_import: ["": OPSET]> part (x) => (y) { BODY }"""
INNER = """t = Constant<value = float {0.1}>() z = Constant<value = uint8 {7}>()
    [low] q = QuantizeLinear(x, t, z) [up] y = DequantizeLinear(q, t, z)"""


def make_function(body, opset=17):
    return parser.parse_model(FUNCTION.replace("BODY", body).replace("OPSET", str(opset)))


def test_nodes_inside_functions_are_held_to_the_rules_in_the_place_of_the_call():
    (found,) = (e for e in check_target(make_function(INNER), "symmetric").violations if e.rule == "activation_types")
    assert found.where.startswith("low") and found.found == "uint8"


def test_a_layer_inside_a_function_is_judged_with_the_grids_of_its_caller():
    text = FUNCTION.replace("OPSET", "17").replace("[inner] y = own.part(d)", "[inner] y = own.part(d, w)")
    text = text.replace("part (x)", "part (x, v)").replace("BODY", "[layer] y = MatMul (x, v)")
    text = text.replace(
        "q = Quant", "i = Constant<value = uint8[6, 1] {1, 2, 3, 4, 5, 6}>() w = DequantizeLinear(i, s) q = Quant"
    )
    (found,) = (e for e in check_target(parser.parse_model(text), "symmetric").violations if e.rule == "weight_types")
    assert found.where.startswith("layer") and found.found == "a weight of uint8"


def test_a_function_of_another_opset_is_refused():
    with pytest.raises(ModelError, match="g: found the function part, which is written for another opset than the mod"):
        check_target(make_function("y = Relu(x)", opset=13), "qnn")


def test_onnx_s_own_domain_may_be_spelled_out(sound):
    draft = sound("tensorrt")
    node = draft.node("conv1")
    node.attribute.remove(next(each for each in node.attribute if each.name == "group"))
    node.domain = "ai.onnx"
    (found,) = check_target(draft.model, "tensorrt").violations
    assert (found.where, found.rule) == ("conv1 (Conv)", "attributes")
    assert node.domain == "ai.onnx"
