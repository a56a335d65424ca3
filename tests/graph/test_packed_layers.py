"""Files with MatMulNBits and GatherBlockQuantized: the numbers of Q/DQ files, and one copy of tied tables."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, checker, numpy_helper

from onnxcalib.config import LayerConfig
from onnxcalib.graph.embeddings import find_tied
from onnxcalib.graph.inspect.quantized_layers import find_quantized_layers
from onnxcalib.graph.names import Selection
from onnxcalib.graph.packed import list_unpacked, with_float_activations
from onnxcalib.graph.scheme import make_scheme
from onnxcalib.graph.weight_file import WeightFile, put_integers
from onnxcalib.runtime.session import Session

NET = """g (float[N, S, 96] x) => (float[N, S, 8] y) {
    [up] a0 = MatMul (x, w1)  [up_add] a = Add (a0, b1)  [tanh] t = Tanh (a)
    [flat] f = Reshape (t, rows)  [down] d = Gemm <transB = 1> (f, w2, b2)  [relu] r = Relu (d)
    [last] l = MatMul (r, w3)  [back] y = Reshape (l, shape)
}"""
TIED = """g (int64[N, S] ids) => (float[N, S, 512] y) {
    [look] e = Gather (table, ids)  [up] u = MatMul (e, w)  [tanh] t = Tanh (u)  [head] y = MatMul (t, turned)
}"""
SHARED = """g (int64[S] ids) => (float[S, 512] y) {
    [look] e = Gather (table, ids)  [up] u = MatMul (e, w)  [tanh] t = Tanh (u)  [head] y = Gemm <transB = 1> (t, table)
}"""
ENCODINGS = ("runtime", "standard", "matmulnbits")


@pytest.fixture
def net(build, weigh, draw):
    sizes = {"rows": np.array([-1, 70]), "shape": np.array([2, 3, 8])}
    return build(NET, opset=21, ir=10, w1=weigh(96, 70), w2=weigh(48, 70), w3=weigh(48, 8), b1=draw(70), b2=draw(48),
                 **sizes)  # fmt: skip


@pytest.fixture
def tied(build, weigh, draw):
    table = draw(512, 64) / np.float32(8)
    return build(TIED, opset=21, ir=10, table=table, turned=table.T.copy(), w=weigh(64, 64))


def run(model, x, level=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if level is not None:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(level))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def count(model, folder):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize("bits", [{"weight_bits": 4}, {"weight_bits": 8}, {"weight_bits": 8, "block_size": 32}])
def test_the_operator_computes_what_the_file_in_standard_operators_says(net, rough, draw, bits):
    x = draw(2, 3, 96)
    bits = {**bits, "first_last_bits": bits["weight_bits"], "activation_bits": 32}
    plain, packed = (rough(net, x, encoding=encoding, **bits) for encoding in ("standard", "matmulnbits"))
    checker.check_model(packed, full_check=True)
    assert [n.op_type for n in packed.graph.node if n.domain == "com.microsoft"] == ["MatMulNBits"] * 3
    assert "DequantizeLinear" not in {n.op_type for n in packed.graph.node}
    wanted = Session(plain, optimize=False).run({"x": x})["y"]
    np.testing.assert_allclose(Session(packed, optimize=False).run({"x": x})["y"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_it_is_the_same_as_onnxruntime_makes_of_the_file_at_the_same_level(net, rough, draw, bits):
    x = draw(2, 3, 96)
    settings = {"weight_bits": bits, "first_last_bits": bits, "activation_bits": 32, "block_size": 32}
    # onnxruntime makes none of a layer in front of a Relu, which reads two axes.
    net.graph.node[5].op_type = "Tanh"
    plain, packed = (rough(net, x, encoding=encoding, **settings) for encoding in ("standard", "matmulnbits"))
    np.testing.assert_allclose(run(packed, x), run(plain, x, level=4), rtol=1e-5, atol=1e-5)
    exact = with_float_activations(packed)
    np.testing.assert_allclose(run(exact, x), run(plain, x, level=0), rtol=1e-4, atol=1e-5)
    assert np.abs(run(exact, x) - run(packed, x)).max() > 1e-4


def test_layers_are_read_as_those_of_the_file_in_standard_operators(net, rough, draw):
    x, settings = draw(2, 3, 96), {"weight_bits": 4, "activation_bits": 32}
    plain, packed = (rough(net, x, encoding=encoding, **settings) for encoding in ("standard", "matmulnbits"))
    layers = zip(find_quantized_layers(plain), find_quantized_layers(packed), strict=True)
    for one, other in layers:
        assert (one.name, one.source, one.entries, one.output) == (
            other.name,
            other.source,
            other.entries,
            other.output,
        )
        assert (one.weight_bits, one.activation_bits, one.shape) == (
            other.weight_bits,
            other.activation_bits,
            other.shape,
        )
        np.testing.assert_array_equal(one.integers, other.integers)
        np.testing.assert_array_equal(*(np.broadcast_to(each.scale, each.shape) for each in (one, other)))


def test_what_the_operator_cannot_hold_stays_standard(build, rough, draw, weigh):
    text = "g (float[N, 3, 8, 8] x) => (float[N, 5] y) { [conv] c = Conv (x, w)  [mean] m = GlobalAveragePool (c)" \
           " [flat] f = Flatten (m)  [head] y = Gemm (f, v) }"  # fmt: skip
    model = build(text, opset=21, ir=10, w=weigh(16, 3, 3, 3), v=weigh(16, 5))
    packed = rough(model, draw(2, 3, 8, 8), encoding="matmulnbits", activation_bits=32)
    assert [n.op_type for n in packed.graph.node if n.op_type in ("DequantizeLinear", "Mul", "MatMulNBits")] == [
        "Mul",
        "MatMulNBits",
    ]
    layers = make_scheme(model, activation_bits=32).layers
    assert list_unpacked(model, layers) == {"conv": "MatMulNBits multiplies matrices, and this is a Conv"}


@pytest.mark.parametrize(("bits", "width"), [(8, 64), (4, 64), (4, 40)])
def test_a_table_is_looked_up_by_one_operator(build, draw, rough, weigh, bits, width):
    text = "g (int64[N, S] ids) => (float[N, S, 8] y) { [look] e = Gather (table, ids)  [layer] y = MatMul (e, w) }"
    model = build(text, opset=21, ir=10, table=draw(600, width), w=weigh(width, 8))
    ids = np.arange(12).reshape(3, 4)
    settings = {"embedding_bits": bits, "activation_bits": 32}
    plain, packed = (rough(model, ids, encoding=encoding, **settings) for encoding in ("standard", "matmulnbits"))
    assert [node.op_type for node in packed.graph.node] == ["GatherBlockQuantized", "MatMulNBits"]
    wanted, given = (Session(each, optimize=False).run({"ids": ids})["y"] for each in (plain, packed))
    np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-5)
    assert packed.ByteSize() < 1.02 * plain.ByteSize()
    assert run(packed, ids[:0]).shape == (0, 4, 8)


def test_tied_tables_are_found_by_their_values(tied, build, draw, weigh):
    assert find_tied(tied) == {"table": "head"}
    other = numpy_helper.to_array(tied.graph.initializer[1]).copy()
    other[0, 0] += 1
    tied.graph.initializer[1].CopyFrom(numpy_helper.from_array(other, "turned"))
    assert find_tied(tied) == {}
    shared = build(SHARED, opset=21, ir=10, table=draw(512, 64), w=weigh(64, 64))
    assert find_tied(shared) == {"table": "head"}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("bits", "form"),
    [(4, {}), (8, {}), (3, {}), (2, {}), (4, {"symmetric": False}), (8, {"symmetric": False, "block_size": 32})],
)
@pytest.mark.parametrize("text", [TIED, SHARED])
def test_tied_tables_are_stored_once(build, draw, weigh, rough, tmp_path, encoding, bits, form, text):
    table = draw(512, 64) / np.float32(8)
    opset, ir = (25, 13) if bits == 2 else (21, 10)
    model = build(text, opset=opset, ir=ir, table=table, turned=table.T.copy(), w=weigh(64, 64))
    if text is SHARED:
        del model.graph.initializer[1]
    ids = np.arange(12).reshape(3, 4) if text is TIED else np.arange(12)
    settings = {"weight_bits": bits, "first_last_bits": bits, "activation_bits": 32, "embedding_bits": bits, **form}
    quantized = rough(model, ids, encoding=encoding, tied=find_tied(model), **settings)
    checker.check_model(quantized, full_check=True)
    large = [t for t in quantized.graph.initializer if np.prod(t.dims) >= 512 * 64 * bits // 8 and t.data_type != 1]
    assert len(large) == 1, [t.name for t in large]
    scheme = make_scheme(model, tied=find_tied(model), **settings)
    assert scheme.embeddings[0].tied_to == "head" and scheme.embeddings[0].weight_spec.axis == 0
    found = count(quantized, tmp_path)
    assert found["MatMulNBits"] == 2 and "DequantizeLinear" not in found, found
    # Rows that are looked up are the columns of the head.
    (head,) = [each for each in find_quantized_layers(quantized) if each.name == "head"]
    weight = (head.integers * head.scale).astype(np.float32)
    quantized.graph.output.append(onnx.helper.make_empty_tensor_value_info("e"))
    looked_up = Session(quantized, optimize=False).run({"ids": ids}, ["e"])["e"]
    rows = weight if head.axis == 0 else weight.T
    np.testing.assert_allclose(looked_up, rows[ids], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("form", [{"symmetric": True}, {"symmetric": False}])
@pytest.mark.parametrize(("width", "block"), [(96, 64), (64, 128)])
def test_a_tied_table_has_the_heads_numbers_where_blocks_do_not_divide_its_rows(
    build, draw, weigh, rough, encoding, form, width, block
):
    table, ids = draw(512, width) / np.float32(8), np.arange(12).reshape(3, 4)
    model = build(TIED, opset=21, ir=10, table=table, turned=table.T.copy(), w=weigh(width, width))
    settings = {"weight_bits": 4, "first_last_bits": 4, "activation_bits": 32, "embedding_bits": 4, **form}
    quantized = rough(model, ids, encoding=encoding, tied=find_tied(model), block_size=block, **settings)
    checker.check_model(quantized, full_check=True)
    (head,) = [each for each in find_quantized_layers(quantized) if each.name == "head"]
    quantized.graph.output.append(onnx.helper.make_empty_tensor_value_info("e"))
    looked_up = Session(quantized, optimize=False).run({"ids": ids}, ["e"])["e"]
    np.testing.assert_allclose(looked_up, (head.integers * head.scale).astype(np.float32).T[ids], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("own", "tied_to"),
    [({"weight_bits": 8}, None), ({"block_size": 16}, None), ({"weight_bits": 4}, "head"), ({}, "head")],
)
def test_a_tied_table_whose_settings_ask_for_others_has_integers_of_its_own(tied, own, tied_to):
    bits = {"weight_bits": 4, "first_last_bits": 4, "embedding_bits": 4, "activation_bits": 32}
    selection = Selection(frozenset(), (("look", LayerConfig(**own)),))
    (table,) = make_scheme(tied, tied=find_tied(tied), selection=selection, **bits).embeddings
    assert table.tied_to == tied_to
    assert table.weight_spec.bits == own.get("weight_bits", 4)
    assert table.weight_spec.block == (None if table.weight_spec.bits == 8 else own.get("block_size", 32))


def test_integers_in_a_file_are_packed_once(draw):
    with (file := WeightFile()).taking():
        file.open()
        values = np.arange(2**21, dtype=np.int8).reshape(2**11, 2**10)
        stored = put_integers(values, 8)
        one, other = (stored.store_packed(name, "form", np.negative) for name in ("a", "b"))
        assert one.data_type == TensorProto.INT8 and (one.name, other.name) == ("a", "b")
        assert list(one.external_data) == list(other.external_data) and one.external_data
