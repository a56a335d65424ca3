import numpy as np
import pytest
from onnx import ModelProto

from onnxcalib.config import QuantizeConfig
from onnxcalib.errors import ModelError
from onnxcalib.graph.index import attribute_of
from onnxcalib.graph.passes.opset import opset_of
from onnxcalib.quantization import rewrite as rewriting
from onnxcalib.quantization.rewrite import rewrite
from onnxcalib.quantization.unchanged import TOLERANCE, check_unchanged
from onnxcalib.runtime.session import Session
from onnxcalib.targets import load_target

BODY = """{
    c = Conv (x, w)  n = BatchNormalization (c, g, b, m, v)  r = Relu (n)  i = Identity (r)
    p = ReduceMean <axes = [2, 3], keepdims = 0> (i)  h = MatMul (p, u)  y = Add (h, k)
}"""


@pytest.fixture
def model(build, draw):
    return build(
        f"g (float[N, 3, 6, 6] x) => (float[N, 5] y) {BODY}", w=draw(4, 3, 1, 1), g=draw(4), b=draw(4), m=draw(4),
        v=np.abs(draw(4)) + np.float32(0.5), u=draw(4, 5), k=draw(5),
    )  # fmt: skip


def change(original, prepared, feeds, **options):
    return check_unchanged(original, prepared, Session(original).run(feeds), feeds, **options).largest


def copy(model):
    return ModelProto.FromString(model.SerializeToString())


def test_norms_and_dense_layers_are_folded_and_every_pass_counted(model, draw):
    prepared = rewrite(copy(model), QuantizeConfig())
    ops = [node.op_type for node in prepared.model.graph.node]
    assert ops == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    assert {name: count for name, count in prepared.passes.items() if count} == {
        "drop_identities": 1, "name_nodes": 6, "fold_batchnorm": 1, "normalise_gemm": 1, "globalise_pools": 1,
        "spell_attributes": 1,
    }  # fmt: skip
    assert prepared.passes["raise_opset"] == 0
    assert change(model, prepared.model, {"x": draw(4, 3, 6, 6)}) < 1e-5


def test_pads_and_attributes_are_written_into_convolutions_and_pools(build, draw):
    model = build(
        """g (float[N, 3, 8, 8] x) => (float[a, b, c, d] y) {
            p = Pad (x, pads)  c = Conv <strides = [2, 2]> (p, w)  s = HardSwish (c)  r = Relu (s)  t = Relu (s)
            u = Add (r, t)  m = AveragePool <kernel_shape = [2, 2], auto_pad = "SAME_UPPER"> (u)  y = Conv (m, v) }""",
        w=draw(4, 3, 3, 3), v=draw(4, 4, 1, 1), pads=np.int64([0, 0, 0, 1, 0, 0, 1, 1]),
    )  # fmt: skip
    prepared = rewrite(copy(model), QuantizeConfig())
    ops = [node.op_type for node in prepared.model.graph.node]
    assert ops == ["Conv", "HardSigmoid", "Mul", "Relu", "Add", "AveragePool", "Conv"]
    pads = [attribute_of(node, "pads", None) for node in prepared.model.graph.node if "kernel_shape" in str(node)]
    assert pads == [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]
    assert change(model, prepared.model, {"x": draw(4, 3, 8, 8)}) < 1e-5


@pytest.mark.parametrize(
    ("settings", "opset"),
    [
        ({}, 17),
        ({"weight_bits": 4}, 21),
        ({"activation_bits": 4}, 21),
        ({"first_last_bits": 4}, 21),
    ],
)
def test_four_bits_raise_the_opset_and_eight_leave_it(model, draw, settings, opset):
    prepared = rewrite(copy(model), QuantizeConfig(**settings)).model
    assert opset_of(prepared) == opset and (prepared.ir_version >= 10) is (opset == 21)
    assert change(model, prepared, {"x": draw(4, 3, 6, 6)}) < 1e-5


MASKED = """g (float[1, 2, 4, 4] x, int64[1, 4] mask) => (float[1, 2, 4, 4] y) <
    float zero = {0.0}, float least = {-3.4028234663852886e38}, int64[4] row = {1, 1, 1, 4}, int64[1] last = {3}
> {
    s = MatMul (x, w) b = Cast <to = 9> (mask) u = Reshape (b, row) m = Where (u, zero, least) a = Add (s, m)
    p = Softmax <axis = -1> (a) n = ReduceL2 <axes = [3]> (p) y = Div (p, n)
}"""


def test_a_target_gets_the_form_that_it_needs(build, draw):
    model = build(MASKED, w=draw(4, 4))
    plain = rewrite(copy(model), QuantizeConfig(), target=load_target("onnxruntime"))
    assert opset_of(plain.model) == 17 and "Where" in {node.op_type for node in plain.model.graph.node}
    prepared = rewrite(copy(model), QuantizeConfig(), target=load_target("qnn"))
    assert opset_of(prepared.model) == 21
    assert (prepared.passes["write_masks"], prepared.passes["write_l2_norms"]) == (1, 1)
    assert not {"Where", "ReduceL2", "Div"} & {node.op_type for node in prepared.model.graph.node}
    assert change(model, prepared.model, {"x": draw(1, 2, 4, 4), "mask": np.array([[1, 1, 0, 1]])}) < 1e-5


def test_products_of_three_axes_are_gemms_where_the_target_wants_them_flat(build, draw):
    net = build(
        "g (float[1, 5, 4] x) => (float[1, 5, 4] y) { m = MatMul (x, w) y = Add (m, b) }", w=draw(4, 4), b=draw(4)
    )
    for target, wanted in (("qnn", ["Reshape", "Gemm", "Reshape"]), ("openvino", ["MatMul", "Add"])):
        prepared = rewrite(copy(net), QuantizeConfig(), target=load_target(target)).model
        assert [node.op_type for node in prepared.graph.node] == wanted
        assert change(net, prepared, {"x": draw(1, 5, 4)}) < 1e-5


def test_an_old_opset_is_raised_to_scales_by_channel(build, draw):
    model = build("g (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y) { y = Conv (x, w) }", opset=9, w=draw(4, 3, 1, 1))
    assert opset_of(rewrite(model, QuantizeConfig()).model) == 13


def test_a_model_without_layers_is_refused(build):
    model = build("g (float[N] x) => (float[N] y) { y = Relu (x) }")
    with pytest.raises(ModelError, match="no quantizable layer"):
        rewrite(model, QuantizeConfig())


def test_a_model_that_multiplies_no_constant_is_refused_before_passes_that_look_at_all_of_it(build, monkeypatch):
    model = build("g (float[2, 4] x, float[4, 3] w) => (float[2, 3] y) { y = MatMul (x, w) }")
    for later in ("fix_target_shapes", "write_patterns", "merge_duplicates", "globalise_pools"):
        monkeypatch.setattr(rewriting, later, None)
    with pytest.raises(ModelError, match="graph g: no quantizable layer found; a Conv"):
        rewrite(model, QuantizeConfig())


def test_a_float16_model_computes_in_float32_within_a_tolerance_of_its_own(build, draw):
    weight = (draw(4, 8) / 4).astype(np.float16)
    model = build("g (float16[N, 4] x) => (float16[N, 8] y) { y = MatMul (x, w) }", w=weight)
    prepared = rewrite(copy(model), QuantizeConfig())
    feeds = {"x": draw(3, 4).astype(np.float16)}
    assert prepared.passes["widen_float16"] == 1 and prepared.tolerance > TOLERANCE
    assert change(model, prepared.model, feeds, tolerance=prepared.tolerance) < 1e-2


def test_an_operator_without_a_newer_form_keeps_the_opset_that_a_target_only_prefers(model, monkeypatch):
    def refuse(graph, least):
        if least > 17:
            raise ModelError("graph g: opset 17 cannot be raised to 21")
        return False

    monkeypatch.setattr(rewriting, "raise_opset", refuse)
    assert opset_of(rewrite(copy(model), QuantizeConfig(), target=load_target("openvino")).model) == 17
    with pytest.raises(ModelError, match="cannot be raised to 21"):
        rewrite(copy(model), QuantizeConfig(weight_bits=4), target=load_target("openvino"))
