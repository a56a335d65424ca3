import numpy as np
import pytest
from onnx import TensorProto, defs, helper

from onnxcalib.runtime.converters.retyped import RETYPED
from tests.runtime.converters.parity import make_block, make_input, measure_error, node_error

TOLERANCE = 1e-6
X = make_input(2, 3, 4)
# Attributes that later versions add, for the 8-bit float types that no block has.
FLOAT8_ATTRIBUTES = {"Cast": {"saturate", "round_mode"}}
VERSIONS = [(op, known, later) for op, (known, all_later) in RETYPED.items() for later in all_later]
UNARY = {
    "Acos": {}, "Asin": {}, "Atan": {}, "Cos": {}, "Elu": {"alpha": 0.7}, "HardSigmoid": {"alpha": 0.3, "beta": 0.4},
    "HardSwish": {}, "Identity": {}, "Round": {}, "Selu": {}, "Sin": {}, "Softplus": {}, "Softsign": {}, "Tan": {},
    "Transpose": {"perm": [2, 0, 1]}, "EyeLike": {"k": 1}, "Cast": {"to": TensorProto.INT32}, "IsNaN": {},
}  # fmt: skip


def describe(op, version):
    """What a converter reads of a schema: attributes with type and default, inputs, outputs."""
    schema = defs.get_schema(op, version)
    assert schema.since_version == version
    attributes = {
        name: (attribute.type, attribute.required, str(attribute.default_value))
        for name, attribute in schema.attributes.items()
        if name not in FLOAT8_ATTRIBUTES.get(op, ())
    }
    return attributes, *([(v.name, v.option) for v in values] for values in (schema.inputs, schema.outputs))


@pytest.mark.parametrize(("op", "known", "later"), VERSIONS)
def test_a_retyped_version_differs_in_types_alone(op, known, later):
    assert describe(op, later) == describe(op, known)


@pytest.mark.parametrize(("op", "version"), [(op, v) for op in UNARY for v in RETYPED[op][1]])
def test_a_retyped_operator_of_one_input_agrees(op, version):
    x = np.clip(X, -0.9, 0.9) * (0.5 if op == "Tan" else 1)
    x = x[0] if op == "EyeLike" else x
    assert node_error(op, version, x, **UNARY[op]) < TOLERANCE


@pytest.mark.parametrize(("op", "version"), [("Equal", 19), ("GreaterOrEqual", 16), ("LessOrEqual", 16)])
def test_a_retyped_comparison_agrees(op, version):
    assert node_error(op, version, X, [np.where(X > 0, X, 0.1).astype(np.float32)]) == 0


@pytest.mark.parametrize("version", RETYPED["ConstantOfShape"][1])
def test_a_constant_of_a_computed_shape_agrees(version):
    block = make_block("Shape", version, {"x": X})
    value = helper.make_tensor("v", TensorProto.FLOAT, [1], [2.5])
    block.graph.node.append(helper.make_node("ConstantOfShape", ["y0"], ["z"], value=value))
    block.graph.output[0].name = "z"
    assert measure_error(block, {"x": X}) == 0


@pytest.mark.parametrize("version", RETYPED["Constant"][1])
def test_a_constant_node_agrees(version):
    block = make_block("Add", version, {"x": X})
    block.graph.node[0].input.append("c")
    constant = helper.make_node("Constant", [], ["c"], value_floats=[1.0, 2.0, 3.0, 4.0])
    block.graph.node.insert(0, constant)
    assert measure_error(block, {"x": X}) == 0
