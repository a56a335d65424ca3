import numpy as np
import pytest
import torch
from onnx import helper

from onnxcalib.runtime.blocks import BlockError, to_torch
from tests.runtime.converters.parity import make_block, make_input, measure_error, node_error

TOLERANCE = 1e-5
SHAPES = [(2, 4, 6), (2, 4, 5, 6), (2, 4, 3, 4, 5)]
STATISTICS = [make_input(4), make_input(4) * 2, make_input(4) / 2, np.abs(make_input(4)) + 0.1]


@pytest.mark.parametrize("version", [7, 9, 14, 15])
@pytest.mark.parametrize("shape", [(5, 4), *SHAPES])
def test_batch_normalization_uses_the_stored_statistics(version, shape):
    assert node_error("BatchNormalization", version, make_input(*shape), STATISTICS, epsilon=1e-3) < TOLERANCE


def test_batch_normalization_keeps_the_stored_statistics_in_train_mode():
    x = make_input(2, 4, 5)
    module = to_torch(make_block("BatchNormalization", 15, {"x": x}, STATISTICS))
    calm = module(torch.from_numpy(x))[0]
    assert torch.equal(module.train()(torch.from_numpy(x))[0], calm)


@pytest.mark.parametrize("version", [6, 22])
@pytest.mark.parametrize("shape", SHAPES)
def test_instance_normalization(version, shape):
    assert node_error("InstanceNormalization", version, make_input(*shape), STATISTICS[:2]) < TOLERANCE


@pytest.mark.parametrize("axis", [-1, 1, 2, -2])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_normalization_over_the_last_axes(axis, bias):
    x = make_input(2, 4, 5, 6)
    scale = make_input(*x.shape[axis:])
    constants = [scale, scale / 2] if bias else [scale]
    assert node_error("LayerNormalization", 17, x, constants, axis=axis, epsilon=1e-3) < TOLERANCE


@pytest.mark.parametrize(("version", "size"), [(18, 2), (21, 4)])
@pytest.mark.parametrize("shape", SHAPES)
def test_group_normalization_scales_groups_at_first_and_channels_since_21(version, size, shape):
    constants = [make_input(size), make_input(size) / 2]
    assert node_error("GroupNormalization", version, make_input(*shape), constants, num_groups=2) < TOLERANCE


@pytest.mark.parametrize(("version", "constants"), [(7, []), (10, []), (12, [np.float32(0.3)]), (13, [])])
def test_dropout_is_nothing_even_where_it_declares_a_mask(version, constants):
    x = make_input(2, 3)
    assert node_error("Dropout", version, x, constants) == 0
    block = make_block("Dropout", version, {"x": x}, constants, outputs=2)
    del block.graph.output[1]
    assert measure_error(block, {"x": x}) == 0


@pytest.mark.parametrize(
    ("op", "constants", "outputs", "attributes", "text"),
    [
        ("Dropout", [], 2, {}, "Dropout: its mask is used"),
        ("Dropout", [None, np.bool_(True)], 1, {}, "Dropout: training_mode is given"),
        ("BatchNormalization", STATISTICS, 1, {"training_mode": 1}, "BatchNormalization: training_mode 1"),
        ("BatchNormalization", STATISTICS, 3, {}, "BatchNormalization: more than one output is used"),
        ("LayerNormalization", [make_input(5)], 2, {}, "LayerNormalization: more than one output is used"),
    ],
)
def test_what_is_not_inference_is_refused(op, constants, outputs, attributes, text):
    block = make_block(op, 17, {"x": make_input(2, 4, 5)}, constants, outputs, **attributes)
    with pytest.raises(BlockError, match=text):
        to_torch(block)


def test_batch_normalization_of_each_activation_by_itself_is_refused():
    block = make_block("BatchNormalization", 7, {"x": make_input(2, 4, 5)}, STATISTICS, spatial=0)
    with pytest.raises(BlockError, match="BatchNormalization: spatial 0"):
        to_torch(block)


def test_one_output_of_several_is_not_taken_for_the_first_sample():
    block = make_block("Dropout", 13, {"x": make_input(3, 4)}, outputs=2)
    del block.graph.output[1]
    block.graph.node.append(helper.make_node("Relu", ["y0"], ["z"]))
    block.graph.output[0].name = "z"
    assert measure_error(block, {"x": make_input(3, 4)}) == 0


@pytest.mark.parametrize("axis", [-1, 1, -3])
def test_a_norm_by_the_root_of_the_mean_square_agrees(axis):
    x = make_input(2, 3, 4)
    scale = make_input(*x.shape[axis:])
    assert node_error("RMSNormalization", 23, x, [scale], axis=axis, epsilon=1e-3) < TOLERANCE


@pytest.mark.parametrize("version", [1, 22])
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("axis", [-1, 1])
def test_a_norm_by_a_length_agrees_and_gives_zeros_for_zeros(version, p, axis):
    x = make_input(2, 3, 4)
    x[0, 1], x[1, :, 2] = 0, 0
    assert node_error("LpNormalization", version, x, p=p, axis=axis) < TOLERANCE


@pytest.mark.parametrize("version", [9, 13])
@pytest.mark.parametrize("attributes", [{}, {"axes": [1, 2]}])
def test_a_norm_by_mean_and_deviation_agrees(version, attributes):
    assert node_error("MeanVarianceNormalization", version, make_input(2, 3, 4, 5), **attributes) < TOLERANCE
