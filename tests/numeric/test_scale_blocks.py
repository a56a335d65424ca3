"""Scale blocks: from block to input and back, and all scales of a row fitted together."""

import torch

from onnxcalib.numeric.integer_search import excess_loss
from onnxcalib.numeric.scale_blocks import ScaleBlocks

BLOCKS = ScaleBlocks(torch.tensor([[0, 1, 0, 1, 1]]))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_values_of_blocks_are_repeated_for_their_inputs_and_summed_again():
    values = torch.tensor([[[2.0, 3.0], [5.0, 7.0]]])
    expanded = BLOCKS.expand(values)
    assert expanded.tolist() == [[[2, 3, 2, 3, 3], [5, 7, 5, 7, 7]]]
    assert BLOCKS.sum(expanded).tolist() == [[[4, 9], [10, 21]]]


def test_the_ends_of_a_block_are_on_both_sides_of_zero():
    low, high = BLOCKS.ends(torch.tensor([[[0.5, 1.0, 0.0, -3.0, 2.0]]]))
    assert low.tolist() == [[[0, -3]]] and high.tolist() == [[[0.5, 2]]]


def test_fitted_scales_are_those_of_least_loss():
    root, optimum = draw(1, 5, 9), draw(1, 4, 5, seed=1)
    gram, integers = root @ root.mT, (3 * draw(1, 4, 5, seed=2)).round()
    before = torch.full((1, 4, 2), 0.3, dtype=torch.float64)
    fitted = BLOCKS.refit(gram, optimum, integers, before)
    wanted = torch.stack(
        [
            torch.stack([torch.where(BLOCKS.numbers[0] == block, row, 0.0) for block in range(2)], 1)
            for row in integers[0]
        ]
    )
    for row in range(4):
        design = torch.linalg.cholesky(gram[0]).mT @ wanted[row]
        exact = torch.linalg.lstsq(design, torch.linalg.cholesky(gram[0]).mT @ optimum[0, row]).solution
        kept = fitted[0, row] == before[0, row]
        assert ((fitted[0, row] - exact).abs() < 1e-4)[~kept].all() and (exact[kept] <= 1e-9).all()
    positive = (fitted != before).all(2)
    assert (
        excess_loss(gram, optimum, integers, BLOCKS.expand(fitted))[positive]
        <= excess_loss(gram, optimum, integers, BLOCKS.expand(before))[positive]
    ).all()


def test_a_block_of_zeros_keeps_its_scale():
    integers = torch.tensor([[[0.0, 1.0, 0.0, 2.0, 1.0]]], dtype=torch.float64)
    before = torch.full((1, 1, 2), 0.25, dtype=torch.float64)
    fitted = BLOCKS.refit(torch.eye(5, dtype=torch.float64)[None], integers, integers, before)
    torch.testing.assert_close(fitted[0, 0], torch.tensor([0.25, 1.0], dtype=torch.float64), rtol=1e-4, atol=0)
