"""How far a tensor is from its reference, and how often the right class comes first, accumulated batch by batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Values compared at once: few enough that their float64 copies stay in the processor's cache. Sums are taken by einsum:
# OpenBLAS starts threads for dot products of more than 10,000 values, which compete with onnxruntime's.
CHUNK = 2**15
# How far from 1 the squared length of an embedding may lie.
UNIT_TOLERANCE = 1e-3


class Comparison:
    """Running sums over a reference tensor, another tensor and their difference, in float64.

    powers (5,): sums over ``samples`` samples of a, e, a^2, e^2 and a e, with a the squared norm of a sample's
    reference and e that of its error. A value of the reference that is not finite has no error if the other is equal to
    it, and else an infinite one.
    """

    def __init__(self) -> None:
        self.powers = np.zeros(5)
        self.samples = 0
        self.max_abs_error = 0.0
        self._other = self._product = 0.0
        self._rows = self.equal = 0
        self._scores = self._embeds = True

    def add(self, reference: np.ndarray, other: np.ndarray, samples: int = 1) -> None:
        """Take in one batch of both tensors, of the same shape.

        Axis 0 counts samples where it is ``samples`` long; else the whole batch is one sample.
        """
        stacked = reference.ndim > 0 and reference.shape[0] == samples
        rows, other_rows = (x.reshape(samples if stacked else 1, -1) for x in (reference, other))
        size = max(1, CHUNK // max(rows.shape[1], 1))
        powers = [self._add_rows(rows[i : i + size], other_rows[i : i + size]) for i in range(0, len(rows), size)]
        signal, error = np.concatenate(powers, axis=1)
        self.powers += [x.sum() for x in (signal, error, signal**2, error**2, signal * error)]
        self.samples += len(signal)
        shape = reference.shape
        self._scores &= scores_classes(shape)
        self._embeds = self._embeds and self._scores and _embeds(reference)
        if self._scores:
            self._rows += shape[0]
            self.equal += int((top_class(reference) == top_class(other)).sum())

    def _add_rows(self, reference: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Squared norms of the reference's and the error's rows, (2, rows)."""
        powers = np.zeros((2, len(reference)))
        for start in range(0, reference.shape[1], CHUNK):
            a = reference[:, start : start + CHUNK].astype(np.float64)
            b = other[:, start : start + CHUNK].astype(np.float64)
            if not np.isfinite(a).all():
                finite, same = np.isfinite(a), (a == b) | (np.isnan(a) & np.isnan(b))
                a, b = np.where(finite, a, 0), np.where(finite, b, np.where(same, 0, np.inf))
            self._other += float(np.einsum("ij,ij->", b, b))
            self._product += float(np.einsum("ij,ij->", a, b))
            powers[0] += np.einsum("ij,ij->i", a, a)
            a -= b
            powers[1] += np.einsum("ij,ij->i", a, a)
            # Unlike Python's max, NumPy's lets NaN through.
            self.max_abs_error = float(np.maximum(self.max_abs_error, np.abs(a).max(initial=0)))
        return powers

    @property
    def sqnr_db(self) -> float:
        """``10 log10(sum a^2 / sum (a - b)^2)`` in dB: inf without an error, -inf with an infinite one."""
        reference, error = self.powers[:2]
        if error in (0, np.inf):
            return float("inf" if error == 0 else "-inf")
        return 10 * float(np.log10(max(reference, np.finfo(np.float64).tiny) / error))

    @property
    def relative_error(self) -> float:
        """``sum (a - b)^2 / sum a^2``: 0 without an error, inf where it is not a number."""
        reference, error = self.powers[:2]
        if error == 0:
            return 0.0
        return float(error / reference) if reference > 0 and np.isfinite(error) else float("inf")

    @property
    def cosine(self) -> float:
        """Cosine of the angle between both tensors, all batches as one vector; 1 where both are zero."""
        norm = np.sqrt(self.powers[0] * self._other)
        with np.errstate(invalid="ignore"):  # infinity over infinity is not a number
            return float(self._product / norm) if norm else float(self.powers[1] == 0)

    @property
    def rows(self) -> int:
        """Rows of class scores, of which ``equal`` have the same arg max; 0 for a tensor of another kind."""
        return self._rows if self._scores and not self._embeds else 0

    @property
    def agreement(self) -> float | None:
        """Share of ``rows`` with equal arg max; None for a tensor that has no class scores."""
        return self.equal / self.rows if self.rows else None


def mean_sqnr(errors: Sequence[float]) -> float:
    """SQNR in dB of the mean of several tensors' relative errors."""
    with np.errstate(divide="ignore"):
        return -10 * float(np.log10(np.mean(errors)))


class Accuracy:
    """In how many of ``samples`` samples the label is among the ``k`` best classes, in two models.

    right, other_right: in each model; lost: in the first model alone; gained: in the other alone.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.samples = self.right = self.other_right = self.lost = self.gained = 0

    def add(self, scores: np.ndarray, other: np.ndarray, labels: np.ndarray) -> None:
        """Take in one batch: both models' scores (samples, classes, 1, ...) and labels (samples,)."""
        hit, other_hit = (_hits(x, labels, self.k) for x in (scores, other))
        self.samples += len(labels)
        self.right += int(hit.sum())
        self.other_right += int(other_hit.sum())
        self.lost += int((hit & ~other_hit).sum())
        self.gained += int((~hit & other_hit).sum())


def scores_classes(shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape can be class scores: (samples, classes), maybe with axes of size 1 behind."""
    return len(shape) >= 2 and shape[1] > 1 and int(np.prod(shape)) == shape[0] * shape[1]


def _embeds(rows: np.ndarray) -> bool:
    """Whether all rows (samples, classes) are unit vectors with a negative element somewhere: not probabilities."""
    squares = np.square(rows, dtype=np.float64).reshape(rows.shape[:2]).sum(1)
    return bool(np.abs(squares - 1).max(initial=0) < UNIT_TOLERANCE and (rows < 0).any())


def top_class(scores: np.ndarray) -> np.ndarray:
    """Arg max of each row of scores (samples, classes, 1, ...), as (samples,); -1 for a row that has NaN."""
    scores = scores.reshape(scores.shape[:2])
    return np.where(np.isnan(scores).any(axis=1), -1, scores.argmax(axis=1))


def _hits(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Whether each label is among the k best classes of its row, (samples,); never in a row that has NaN."""
    scores = scores.reshape(scores.shape[:2])
    if k == 1:
        hits: np.ndarray = top_class(scores) == labels
        return hits
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    hits = (best == labels[:, None]).any(axis=1) & ~np.isnan(scores).any(axis=1)
    return hits
