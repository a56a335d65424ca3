"""Random scores: the mean square of their gradient along a change is the loss that the change causes."""

import numpy as np
import pytest
import torch

from onnxcalib.numeric.divergence import Divergence
from onnxcalib.numeric.fisher import draw_score, share_of_solved


@pytest.mark.parametrize(
    ("shape", "axis"), [((1, 6, 9), 2), ((1, 9, 6), 1), ((1, 9), None), ((1, 4, 5), None)],
    ids=["tokens", "tokens, classes first", "class scores", "squared error"],
)  # fmt: skip
def test_the_mean_square_of_gradients_is_the_divergence_of_a_small_change(shape, axis):
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(shape, generator=generator, requires_grad=True)
    change = 0.02 * torch.randn(shape, generator=generator)
    scores = []
    for _ in range(800):
        (gradient,) = torch.autograd.grad(draw_score(output, axis, generator), output)
        scores.append(float((gradient * change).sum()) ** 2)
    divergence = Divergence(axis)
    divergence.add(output.detach().numpy(), (output.detach() + change).numpy())
    assert np.mean(scores) == pytest.approx(divergence.value, rel=0.15)


def test_positions_of_padding_have_no_share_in_the_loss_of_tokens():
    output = torch.randn((2, 4, 7), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([output, torch.zeros_like(output)], 1)
    scores = [draw_score(each, 2, torch.Generator().manual_seed(1)) for each in (output, padded)]
    assert torch.equal(*scores)
    plain, masked = Divergence(2), Divergence(2)
    plain.add(output.numpy(), output.numpy() * 1.1)
    masked.add(padded.numpy(), padded.numpy() * 1.1)
    assert plain.value == pytest.approx(masked.value, rel=1e-6) and plain.value > 0


def test_what_solving_leaves_of_the_error_is_less_the_more_inputs_go_together():
    draw = torch.Generator().manual_seed(0)
    apart = torch.randn(4096, 8, generator=draw)
    together = apart + 3 * torch.randn(4096, 1, generator=draw)
    shares = [share_of_solved(x.T @ x) for x in (apart, together)]
    assert shares[0] == pytest.approx(1, abs=0.05) and shares[1] < 0.4
    # By the errors themselves, of one weight after the other.
    moments = (together.T @ together).double() + 0.01 * (together.T @ together).diagonal().mean() * torch.eye(8)
    order = moments.diagonal().argsort(descending=True)
    moments = moments[order][:, order]
    left = sum(1 / torch.linalg.inv(moments[k:, k:])[0, 0] for k in range(8)) / moments.trace()
    assert shares[1] == pytest.approx(float(left), rel=1e-5)
    assert share_of_solved(torch.zeros(8, 8)) == 1
