"""Padding of models that fix the number of tokens: out of ranges and moments, by the mask."""

from __future__ import annotations

import numpy as np

from onnxcalib.data import open_calibration
from onnxcalib.graph.load import inputs_of
from onnxcalib.steps.calibrate import collect_histograms
from onnxcalib.steps.mask import drop_padding, find_real
from onnxcalib.steps.solve import _Stream, solve_block
from onnxcalib.steps.statistics import tune_statistics

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


def test_tokens_that_do_not_count_are_dropped_where_their_axis_is_seen():
    real = np.array([[True, False], [True, True]])
    values = np.arange(8).reshape(2, 2, 2)
    assert drop_padding(values, real).tolist() == [[0, 1], [4, 5], [6, 7]]
    assert drop_padding(values.reshape(4, 2), real).shape == (4, 2) and drop_padding(values, None) is values


def test_padding_is_in_no_range(build, weigh):
    found = []
    for model in make_models(build, weigh):
        histograms = collect_histograms(model, ["e", "r"], open_calibration(DATA, inputs_of(model)))
        found.append([(h.minimum, h.maximum, int(h.counts.sum())) for h in histograms.values()])
    assert found[0][0] == found[1][0] and found[0][0][1] < 100
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


def test_padding_is_in_no_moments_and_in_no_statistics(build, weigh, walk_of):
    found = []
    for model in make_models(build, weigh):
        walk = walk_of(model, DATA, weight_bits=4, first_last_bits=4)
        from onnxcalib.graph.blocks import find_blocks

        block = find_blocks(walk.model, walk.plan)[0]
        stream = _Stream(walk, block, walk.plan.layers[0], (4, 5))
        found.append(sum(part[0].shape[-1] for n, s in enumerate(walk.sizes) for part, _ in stream._parts(n, 0, s)))
        assert solve_block(walk, block) == {}
    assert found[0] == found[1] == LENGTHS.sum()


def test_statistics_of_padding_are_not_tuned(build, weigh, walk_of):
    from onnxcalib.steps.solve import round_layers

    scales = []
    for model in make_models(build, weigh):
        walk = walk_of(model, DATA, weight_bits=4, first_last_bits=4)
        round_layers(walk)
        tune_statistics(walk)
        scales.append([walk.layers[layer.name].grid.scale for layer in walk.plan.layers])
    for fixed, free in zip(*scales, strict=True):
        np.testing.assert_allclose(fixed, free, rtol=1e-4)
