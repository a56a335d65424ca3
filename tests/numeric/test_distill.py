"""Losses by sample, in torch as in NumPy."""

import numpy as np
import pytest
import torch

from onnxcalib.numeric.distill import divergence_sums, sample_losses
from onnxcalib.numeric.divergence import Divergence


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1, 1), (6, 5, 3, 2), (6, 1)])
def test_they_sum_to_the_divergence(shape):
    rng = np.random.default_rng(0)
    target, output = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    divergence = Divergence()
    divergence.add(target, output)
    losses = sample_losses([torch.from_numpy(output)], [torch.from_numpy(target)])
    assert losses.shape == (1, 6, 2)
    loss, weight = divergence_sums([torch.from_numpy(output)], [torch.from_numpy(target)])[0].tolist()
    assert loss / weight == pytest.approx(divergence.value, rel=1e-4)


def test_outputs_of_integers_do_not_count():
    found = sample_losses([torch.ones(2, 3), torch.ones(2)], [torch.ones(2, 3), torch.ones(2, dtype=torch.int64)])
    assert found.shape[0] == 1 and not found[..., 0].any()


def test_probabilities_are_taken_for_what_they_are():
    rng = np.random.default_rng(0)
    target, output = (torch.softmax(torch.from_numpy(rng.normal(size=(6, 5))), 1) for _ in range(2))
    divergence = Divergence()
    divergence.add(target.numpy(), output.numpy())
    loss, weight = divergence_sums([output], [target])[0].tolist()
    assert loss / weight == pytest.approx(divergence.value, rel=1e-6)


def test_where_one_output_counts_no_samples_a_batch_is_one():
    found = sample_losses([torch.zeros(4, 3), torch.zeros(())], [torch.ones(4, 3), torch.ones(())])
    assert found.shape == (2, 1, 2)
