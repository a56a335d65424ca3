"""Matrices that mix channels so that the rounding of all of them costs what reads them least.

A grid of one step rounds every channel of x alike. With a matrix A in front of it and its inverse behind, the error of
rounding reaches the reader's outputs ``W x`` as ``W A^-1 e``. On a grid of few levels that reaches as far as the
channels do, the errors e are independent, each of a variance in proportion to that of its channel ``(A x)_i``. So A is
to minimise

    sum_i  (A C A^T)_ii  (A^-T M A^-1)_ii

with C the covariance of x and ``M = W^T W``. With ``C^1/2 M C^1/2 = V S^2 V^T`` the least is ``tr(S)^2 / K``, by

    A = Q S^1/2 V^T C^-1/2

for each orthogonal Q with which all channels vary alike: every one of the two factors of each term is then the same.
(It is the transform that sends a signal over channels of the same noise, Lee and Petersen 1976.)

Shapes: K channels, P columns.
"""

from __future__ import annotations

import numpy as np

from .rotation import turn

# What is added to the diagonals of both matrices, as a share: few samples tell little of what hardly varies. Entries
# count as LEAST of their mean at the least, as channels that never vary or that nothing reads have none.
RIDGE, LEAST = 0.003, 1e-3
# Entries are multiples of it, so that another order of sums hardly ever gives another matrix.
STEP = 2.0**-14
# Shares of the largest magnitude that a grid is tried to reach.
REACHES = np.linspace(0.3, 1, 15)


def find_mixing(covariance: np.ndarray, metric: np.ndarray) -> np.ndarray:
    """A (K, K), of a mean square of 1 / K; covariance C and metric M (K, K), symmetric, float64."""
    size = len(covariance)
    covariance, metric = (_add_ridge(each) for each in (covariance, metric))
    powers, axes = np.linalg.eigh(covariance)
    root, inverse = ((axes * powers**exponent) @ axes.T for exponent in (0.5, -0.5))
    squares, directions = np.linalg.eigh(root @ metric @ root)
    singular = np.sqrt(np.maximum(squares, 0))
    even = _turn_even(np.diag(singular))
    found = even @ (np.sqrt(singular)[:, None] * directions.T) @ inverse
    found *= np.sqrt(size) / np.linalg.norm(found)
    rounded: np.ndarray = np.round(found / STEP) * STEP
    return rounded


def _add_ridge(matrix: np.ndarray) -> np.ndarray:
    diagonal = np.diag(matrix)
    found: np.ndarray = matrix + RIDGE * np.diag(np.maximum(diagonal, LEAST * diagonal.mean()))
    return found


def _turn_even(matrix: np.ndarray) -> np.ndarray:
    """An orthogonal Q with which the diagonal of ``Q D Q^T`` is constant, for a symmetric D (K, K).

    Behind a transform that mixes all, each rotation of two axes gives one entry the mean (Schur 1923, Horn 1954).
    """
    size = len(matrix)
    found = turn(size)
    current, mean = found @ matrix @ found.T, np.trace(matrix) / size
    for _ in range(size - 1):
        diagonal = np.diag(current)
        low, high = int(diagonal.argmin()), int(diagonal.argmax())
        below, above, beside = diagonal[low] - mean, diagonal[high] - mean, current[low, high]
        if not above * size > 1e-9 * abs(mean):
            break
        # The tangent t of the angle with which ``above t^2 + 2 beside t + below`` is 0.
        tangent = (np.sqrt(beside**2 - above * below) - beside) / above
        cosine = 1 / np.hypot(1, tangent)
        pair = cosine * np.array([[1, tangent], [-tangent, 1]])
        both = [low, high]
        current[both] = pair @ current[both]
        current[:, both] = current[:, both] @ pair.T
        found[both] = pair @ found[both]
    return found


def rounding_ratio(columns: np.ndarray, metric: np.ndarray, levels: int) -> float:
    """The error of rounding by the metric M, over the power; columns (K, P) about their means, on a grid of so many
    levels and of the step with which it is least.
    """
    peak, power = float(np.abs(columns).max()), _weigh(columns, metric)
    if not power > 0:
        return 0.0
    half = levels // 2
    errors = []
    for reach in REACHES:
        step = peak * reach / half
        errors.append(_weigh(np.clip(np.rint(columns / step), -half, half - 1) * step - columns, metric))
    return min(errors) / power


def _weigh(columns: np.ndarray, metric: np.ndarray) -> float:
    centred = columns - columns.mean(axis=1, keepdims=True)
    return float(((metric @ centred) * centred).sum())
