"""Moments of several readers of one weight: those of all columns, each about its own reader's mean."""

import numpy as np
import pytest
import torch

from onnxcalib.numeric.gram import MomentSum
from onnxcalib.numeric.reader_sums import ReaderSums, pool_readers


def draw(seed, offset):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 3, 50)) + offset).float()


@pytest.mark.parametrize("centred", [True, False])
def test_they_are_those_of_columns_about_the_mean_of_each_reader(centred):
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 2, 3)))
    own, parts, sums = draw(1, 0), {"a": [draw(2, 5), draw(3, 5)], "b": [draw(4, -9)]}, ReaderSums()
    for name, inputs in parts.items():
        for each in inputs:
            sums.add(name, each)
    sums.add("c", own[:, :, :0])
    mine = MomentSum()
    mine.add(own, (weight @ own.double()).float())
    moments = mine.centre() if centred else mine.centre().about_zero()
    readers = [own, *(torch.cat(inputs, 2) for inputs in parts.values())]
    means = [x.mean(2, keepdim=True) if centred else 0 for x in readers]
    columns = torch.cat([x - mean for x, mean in zip(readers, means, strict=True)], 2).double()
    pooled = pool_readers(moments, sums, weight, centred=centred)
    wanted = columns @ columns.mT / columns.shape[2]
    assert pooled.columns == columns.shape[2] == 200 and sums.columns == 150
    torch.testing.assert_close(pooled.gram, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pooled.cross, weight @ wanted, rtol=1e-5, atol=1e-5)
    assert (
        pooled.input_mean is moments.input_mean
        and pool_readers(moments, ReaderSums(), weight, centred=centred) is moments
    )
