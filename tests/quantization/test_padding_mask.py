"""Padding of models that fix the number of tokens: out of ranges and moments, by the mask."""

from __future__ import annotations

import numpy as np
import onnx.parser
import torch
from onnx import numpy_helper

from onnxcalib.data import open_calibration
from onnxcalib.graph.load import inputs_of
from onnxcalib.quantization.calibrate import collect_statistics
from onnxcalib.quantization.columns import ColumnReader
from onnxcalib.quantization.padding_mask import PaddingMask, find_real, select
from onnxcalib.quantization.solve import solve_block
from onnxcalib.quantization.statistics import tune_statistics
from onnxcalib.quantization.unpadded import Unpadded

TOKENS = """g (int64[N, {tokens}] input_ids, int64[N, {tokens}] attention_mask) => (float[N, {tokens}, 4] y) {{
    [embed] e = Gather (table, input_ids)  [one] h = MatMul (e, w1)  [act] r = Relu (h)  [two] y = MatMul (r, w2)
}}"""
LENGTHS = np.random.default_rng(1).integers(1, 7, 24)
MASK = (np.arange(6) < LENGTHS[:, None]).astype(np.int64)
# Padding is a token of its own, far from all others.
IDS = np.random.default_rng(2).integers(1, 12, (24, 6)) * MASK
DATA = {"input_ids": IDS, "attention_mask": MASK}


def make_models(build, weigh):
    """The same model for 6 tokens and for any number."""
    table = weigh(12, 4)
    table[0] = 100
    weights = {"table": table, "w1": weigh(4, 5), "w2": weigh(5, 4)}
    return [build(TOKENS.format(tokens=tokens), **weights) for tokens in (6, "S")]


def test_a_mask_of_ones_or_of_other_rank_masks_nothing():
    assert find_real({"x": IDS}) is None and find_real({"attention_mask": np.ones((2, 3), np.int64)}) is None
    assert find_real({"attention_mask": np.zeros((2, 1, 3), np.int64)}) is None


REAL = np.array([[True, False], [True, True]])
VALUES = np.arange(8).reshape(2, 2, 2)


def pad(**axes):
    padding = PaddingMask(None)
    padding.axes = {name: each if isinstance(each[0], tuple) else (each, 0) for name, each in axes.items()}
    return padding


def test_padding_is_dropped_along_every_axis_of_tokens_and_no_other():
    padding = pad(x=(1,), last=(2,), both=(1, 2), rows=((0,), None))
    assert padding.select_real("x", VALUES, REAL).tolist() == [[0, 1], [4, 5], [6, 7]]
    assert padding.select_real("last", VALUES, REAL).tolist() == [0, 2, 4, 5, 6, 7]
    assert padding.select_real("both", VALUES, REAL).tolist() == [0, 4, 5, 6, 7]
    assert padding.select_real("rows", VALUES.reshape(4, 2), REAL).tolist() == [[0, 1], [4, 5], [6, 7]]
    first = pad(x=((0,), 1)).select_real("x", VALUES.transpose(1, 0, 2), REAL)
    assert first.tolist() == [[0, 1], [4, 5], [6, 7]]  # token by token
    assert padding.select_real("pooled", VALUES, REAL) is VALUES and padding.select_real("x", VALUES, None) is VALUES


def test_a_tensor_of_other_lengths_than_the_mask_is_left_whole():
    padding = pad(x=(1,), rows=((0,), None), scalar=(3,))
    for name, shape in (("x", (2, 3, 2)), ("x", (4, 2)), ("rows", (3, 2)), ("scalar", (2, 2))):
        assert padding.mask_of(name, shape, REAL) is None


def test_features_stay_together_even_if_there_is_but_one():
    padding = pad(x=(1,), heads=(2,))
    assert padding.select_real("x", VALUES[:, :, :1], REAL).shape == (3, 1)
    assert padding.mask_of("heads", (2, 2, 2), REAL, last=False) is None
    kept = padding.mask_of("heads", (2, 5, 2, 4), REAL, last=False)
    assert select(np.zeros((2, 5, 2, 4)), kept).shape == (15, 4)


def test_padding_is_made_alike_in_arrays_and_tensors_and_is_no_top_class():
    padding, scores = pad(x=(1,)), -np.ones((2, 2), np.float32)
    for values in (scores, torch.from_numpy(scores)):
        assert padding.fill_padding("x", values, REAL if values is scores else torch.from_numpy(REAL)).tolist() == [
            [-1, 0],
            [-1, -1],
        ]
    hidden = padding.mask_outputs({"x": scores, "other": scores, "list": [1]}, REAL)
    assert hidden["x"].tolist() == [[-1, -np.inf], [-1, -1]] and hidden["other"] is scores and hidden["list"] == [1]
    assert padding.mask_outputs({"x": np.ones((2, 2), int)}, REAL)["x"].tolist() == [[1, 0], [1, 1]]


def test_a_block_without_padding_moves_nothing_at_padding():
    block = Unpadded(torch.nn.ModuleList([torch.nn.Linear(2, 2)])[0], ["x"], pad(x=(1,)))
    block.module.forward = lambda x: [torch.nn.functional.linear(x, block.module.weight)]
    x = torch.ones(2, 2, 2, requires_grad=True)
    (y,) = block(x, torch.from_numpy(REAL))
    y.sum().backward()
    assert not y[0, 1].any() and not x.grad[0, 1].any() and x.grad[1].all()


def test_padding_is_in_no_range(build, weigh):
    found = []
    for model in make_models(build, weigh):
        histograms = collect_statistics(
            model, ["e", "r"], open_calibration(DATA, inputs_of(model)), PaddingMask(model)
        ).histograms
        found.append([(h.minimum, h.maximum, int(h.counts.sum())) for h in histograms.values()])
    assert found[0][0] == found[1][0] and found[0][0][1] < 100
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


def test_padding_is_in_no_moments_and_in_no_statistics(build, weigh, state_of):
    found = []
    for model in make_models(build, weigh):
        state = state_of(model, DATA, weight_bits=4, first_last_bits=4)
        from onnxcalib.graph.blocks import find_blocks

        block = find_blocks(state.problem.model, state.problem.scheme)[0]
        reader = ColumnReader(state, block, state.problem.scheme.layers[:1], (4, 5))
        parts = [part for n in range(len(state.stored.sizes)) for part in reader._read_columns(n, 0)]
        found.append(sum(inputs.shape[-1] for _, inputs, _ in parts))
        assert solve_block(state, block) == {}
    assert found[0] == found[1] == LENGTHS.sum()


def test_statistics_of_padding_are_not_tuned(build, weigh, state_of):
    from onnxcalib.quantization.solve import round_layers

    scales = []
    for model in make_models(build, weigh):
        state = state_of(model, DATA, weight_bits=4, first_last_bits=4)
        round_layers(state)
        tune_statistics(state)
        scales.append([state.layers[layer.name].grid.scale for layer in state.problem.scheme.layers])
    for fixed, free in zip(*scales, strict=True):
        np.testing.assert_allclose(fixed, free, rtol=1e-4)


def test_padding_is_found_behind_the_functions_of_a_model_as_it_is_given(weigh):
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 17, "own" : 1]>
        g (int64[N, 6] input_ids, int64[N, 6] attention_mask) => (float[N, 6, 4] y) <float[12, 4] table> {
            y = own.look (table, input_ids)
        }
        <domain: "own", opset_import: ["" : 17]>
        look (rows, ids) => (found) { found = Gather (rows, ids) }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(weigh(12, 4), "table"))
    assert PaddingMask(model).axes["y"] == ((1,), 0)
    assert model.functions
