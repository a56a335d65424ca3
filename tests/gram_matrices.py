"""Gram matrices and what is to be rounded on them, as tests of the solver draw them."""

import numpy as np
import torch

from onnxcalib.spec import QuantSpec


def draw_tiny(seed, bits):
    """A Gram matrix (1, K, K), an optimum (1, R, K) partly within the grid of scale 1, and the grid's spec."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 5))
    root = rng.normal(size=(size, size + 1))
    gram = torch.from_numpy(root @ root.T)[None] + 0.01 * torch.eye(size, dtype=torch.float64)
    optimum = torch.from_numpy(rng.normal(size=(1, 3, size))) * 2 ** (bits - 1)
    return gram, optimum, QuantSpec(bits, signed=True, symmetric=True, axis=0)


def draw_rows(seed, *, groups=1, channels=32, size=40):
    """The Gram matrix (groups, K, K) of correlated inputs, and float weights (groups, R, K)."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(groups, size, size)) @ rng.normal(size=(groups, size, 300))
    weight = torch.from_numpy(rng.normal(size=(groups, channels, size)))
    return torch.from_numpy(inputs @ inputs.swapaxes(1, 2) / 300), weight
