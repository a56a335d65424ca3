"""Orthogonal matrices that mix all channels, so that none reaches much further than the others.

All come of the discrete Hartley transform (Bracewell 1983), ``H_jk = (cos + sin)(2 pi j k / n) / sqrt(n)``, which is
symmetric and its own inverse, has no entry above ``sqrt(2 / n)``, and exists for each n, where a Hadamard matrix does
not. Random signs let outliers in several channels meet in no other one.
"""

from __future__ import annotations

import numpy as np


def turn(size: int, seed: int = 0) -> np.ndarray:
    """An orthogonal matrix ``S H`` of float64, (size, size), for random signs S."""
    found: np.ndarray = _draw_signs(size, seed)[:, None] * _hartley(size)
    return found


def turn_keeping_ones(size: int, seed: int = 0) -> np.ndarray:
    """An orthogonal matrix of float64, (size, size), whose rows and columns sum to 1, so that it keeps means.

    ``H S H`` for random signs S of which the first is +1: that of the vector of ones, which H takes to a multiple of
    its first unit vector and back.
    """
    transform, signs = _hartley(size), _draw_signs(size, seed)
    signs[0] = 1
    found: np.ndarray = transform @ (signs[:, None] * transform)
    return found


def _hartley(size: int) -> np.ndarray:
    places = np.arange(size, dtype=np.int64)
    angles = 2 * np.pi * (np.outer(places, places) % size) / size
    found: np.ndarray = (np.cos(angles) + np.sin(angles)) / np.sqrt(size)
    return found


def _draw_signs(size: int, seed: int) -> np.ndarray:
    found: np.ndarray = np.random.default_rng(seed).choice([-1.0, 1.0], size)
    return found
