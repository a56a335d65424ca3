"""Integers in the layout of onnxruntime's own operators, read by onnxruntime, and which layers have it."""

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from onnxcalib.graph.packed import (
    Packing,
    choose_block,
    choose_row_block,
    explain_unpacked,
    pack_grid,
    pack_rows,
    unpack_bits,
    with_float_activations,
)
from onnxcalib.spec import LayerScheme, QParams, QuantSpec

FLOAT = QuantSpec(32)


def layer(op="MatMul", activation=FLOAT, **spec):
    weight = QuantSpec(**{"bits": 4, "signed": True, "symmetric": True, "axis": 1, **spec})
    return LayerScheme("layer", op, "x", "w", None, "y", weight, activation)


def run(nodes, constants, feeds):
    made = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    ends = [[helper.make_tensor_value_info(name, kind, None) for name, kind in pairs] for pairs in (feeds, [("y", 1)])]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", *ends, made), opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("inputs", "block"), [(64, 32), (70, 32), (20, 64)])
@pytest.mark.parametrize("zeros", [False, True])
def test_onnxruntime_multiplies_by_the_integers_that_were_packed(draw, bits, inputs, block, zeros):
    rng, outputs = np.random.default_rng(0), 24
    packing = Packing(bits, inputs, outputs, block)
    spec = QuantSpec(bits, signed=True, symmetric=not zeros, axis=1, block=block)
    integers = rng.integers(spec.qmin, spec.qmax + 1, (inputs, outputs)).astype(np.int8)
    shape = (packing.blocks, outputs)
    zero_point = rng.integers(spec.qmin, spec.qmax + 1, shape) if zeros else np.zeros(shape, int)
    grid = QParams(rng.uniform(0.01, 0.02, shape).astype(np.float32), zero_point.astype(np.int32), spec)
    scales, points = pack_grid(grid, packing)
    assert (points is not None) == zeros
    packed = packing.pack(integers)
    names = ["x", "b", "s", *(["z"] if zeros else [])]
    attributes = {"K": inputs, "N": outputs, "bits": bits, "block_size": block, "accuracy_level": 0}
    node = helper.make_node("MatMulNBits", names, ["y"], domain="com.microsoft", **attributes)
    constants = {"b": packed, "s": scales} | ({"z": points} if zeros else {})
    session = run([node], constants, [("x", 1)])
    wide = [np.repeat(each, block, axis=0)[:inputs] for each in (grid.scale, zero_point)]
    x = draw(3, inputs)
    wanted = x @ ((integers.astype(int) - wide[1]) * wide[0]).astype(np.float32)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(packing.unpack(packed), integers.astype(int) + packing.middle)


@pytest.mark.parametrize(("bits", "width"), [(8, 40), (4, 40), (2, 40), (4, 7), (2, 5)])
def test_rows_are_packed_low_bits_first(bits, width):
    integers = np.random.default_rng(0).integers(-(1 << (bits - 1)), 1 << (bits - 1), (6, width)).astype(np.int8)
    packed = pack_rows(integers, bits)
    assert packed.shape == (6, -(-width * bits // 8)) and packed.dtype == np.uint8
    np.testing.assert_array_equal(unpack_bits(packed, bits)[:, :width], integers.astype(int) + (1 << (bits - 1)))
    assert pack_rows(np.array([[-7, -6]], np.int8), 4).tolist() == [[0x21]]


def test_three_bits_are_stored_in_four_with_the_zero_point_of_four():
    grid = QParams(np.ones(8, np.float32), np.zeros(8, np.int32), QuantSpec(3, signed=True, symmetric=True, axis=1))
    assert pack_grid(grid, Packing(4, 32, 8, 32))[1] is None


def test_a_scale_a_column_is_written_in_the_blocks_that_take_the_fewest_bytes():
    column = QuantSpec(4, signed=True, symmetric=True, axis=1)
    # 576 inputs are 9 whole blocks of 64; one of 256 would fill 768.
    assert [choose_block(column, inputs) for inputs in (576, 1536, 384, 20)] == [64, 256, 128, 32]
    assert choose_block(QuantSpec(2, signed=True, axis=1), 1536) == 128  # longer ones are slow
    grid = QParams(np.arange(1, 9, dtype=np.float32), np.zeros(8, np.int32), column)
    scales, _ = pack_grid(grid, Packing(4, 576, 8, 64))
    np.testing.assert_array_equal(scales, np.repeat(grid.scale[:, None], 9, axis=1))
    assert [choose_row_block(width) for width in (5, 64, 576)] == [16, 64, 1024]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (layer(block=32), None),
        (layer("Gemm", bits=8), None),
        (layer(bits=3, block=16), None),
        (layer(bits=2, block=64), None),
        (layer("Conv", axis=0), "MatMulNBits multiplies matrices, and this is a Conv"),
        (layer(activation=QuantSpec(8)), "it reads integers"),
        (layer(bits=2, block=16), "MatMulNBits has no fast kernel for blocks of 16 at 2 bits"),
        (layer(bits=2, block=256), "MatMulNBits has no fast kernel for blocks of 256 at 2 bits"),
        (layer(bits=2, block=32, symmetric=False), "MatMulNBits has no fast kernel for zero points at 2 bits"),
        (layer(bits=6), "MatMulNBits has no kernel for 6 bits"),
    ],
)
def test_what_has_no_fast_kernel_is_not_packed(found, why):
    assert explain_unpacked(found, 64) == why


def test_activations_stay_float_in_a_copy(build, draw):
    net = "g (float[N, 32] x) => (float[N, 8] y) { y = com.microsoft.MatMulNBits <K = 32, N = 8, LEVEL> (x, b, s) }"
    constants = {"b": draw(8, 1, 16), "s": draw(8, 1)}
    levels = {level: f"bits = 4, block_size = 32, accuracy_level = {level}" for level in (4, 0)}
    rounded, plain = (build(net.replace("LEVEL", text), **constants) for text in levels.values())
    assert with_float_activations(plain) is plain
    assert with_float_activations(rounded) == plain != rounded
