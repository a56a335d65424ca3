"""How far a tensor is from its reference, and how many answers are right, accumulated batch by batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Values compared at once: so few that their float64 copies stay in the processor's cache. Sums are taken by einsum, as
# OpenBLAS starts threads for dot products of more than 10,000: they fight with onnxruntime's and take far longer.
CHUNK = 2**15
# Squared lengths so near one are one.
UNIT = 1e-3


class Comparison:
    """Running sums of a reference tensor, another one and their difference; float64 throughout.

    powers: sums over samples of a, e, a^2, e^2 and a e, with a and e the squared norms of one sample's reference and of
    its error; ``samples`` of them. What is not finite in the reference counts as equal, or as an infinite error.
    """

    def __init__(self) -> None:
        self.powers = np.zeros(5)
        self.samples = 0
        self.max_abs_error = 0.0
        self._other = self._product = 0.0
        self._rows = self.equal = 0
        self._scores = self._embeds = True

    def add(self, reference: np.ndarray, other: np.ndarray, samples: int = 1) -> None:
        """Take in one batch of both, of one shape; axis 0 is ``samples`` long, or the whole batch one sample."""
        stacked = reference.ndim > 0 and reference.shape[0] == samples
        rows, other_rows = (x.reshape(samples if stacked else 1, -1) for x in (reference, other))
        step = max(1, CHUNK // max(rows.shape[1], 1))
        powers = [self._add_rows(rows[i : i + step], other_rows[i : i + step]) for i in range(0, len(rows), step)]
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
        """Squared norms of reference and error, (2, rows)."""
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
        """``10 log10(sum a^2 / sum (a - b)^2)``; infinite where nothing differs."""
        reference, error = self.powers[:2]
        if error in (0, np.inf):
            return float("inf" if error == 0 else "-inf")
        return 10 * float(np.log10(max(reference, np.finfo(np.float64).tiny) / error))

    @property
    def relative_error(self) -> float:
        """``sum (a - b)^2 / sum a^2``; infinite where it is no number."""
        reference, error = self.powers[:2]
        if error == 0:
            return 0.0
        return float(error / reference) if reference > 0 and np.isfinite(error) else float("inf")

    @property
    def cosine(self) -> float:
        """Cosine of the angle between both, all batches taken as one vector; that of zero and zero is 1."""
        norm = np.sqrt(self.powers[0] * self._other)
        with np.errstate(invalid="ignore"):  # infinite by infinite is no number
            return float(self._product / norm) if norm else float(self.powers[1] == 0)

    @property
    def rows(self) -> int:
        """Rows of class scores, of which ``equal`` have the same arg max; 0 for what is something else."""
        return self._rows if self._scores and not self._embeds else 0

    @property
    def agreement(self) -> float | None:
        """Share of rows with equal arg max, of a tensor (samples, classes) that is no embedding; None elsewhere."""
        return self.equal / self.rows if self.rows else None


def mean_sqnr(errors: Sequence[float]) -> float:
    """SQNR in dB of several tensors, the mean of their relative errors being the error."""
    with np.errstate(divide="ignore"):
        return -10 * float(np.log10(np.mean(errors)))


class Accuracy:
    """How often the label is among the ``k`` best classes, in two models on the same samples.

    right, other_right: samples; lost: right in the first alone; gained: right in the other alone; of ``samples``.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.samples = self.right = self.other_right = self.lost = self.gained = 0

    def add(self, scores: np.ndarray, other: np.ndarray, labels: np.ndarray) -> None:
        """Take in one batch: both models' scores, (samples, classes) or with axes of one behind, labels (samples,)."""
        hit, other_hit = (_hits(x, labels, self.k) for x in (scores, other))
        self.samples += len(labels)
        self.right += int(hit.sum())
        self.other_right += int(other_hit.sum())
        self.lost += int((hit & ~other_hit).sum())
        self.gained += int((~hit & other_hit).sum())


def scores_classes(shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape is (samples, classes), axes of one behind them apart."""
    return len(shape) >= 2 and shape[1] > 1 and int(np.prod(shape)) == shape[0] * shape[1]


def _embeds(rows: np.ndarray) -> bool:
    """Whether all rows (samples, classes) have length one, and are not probabilities that are all but certain."""
    squares = np.square(rows, dtype=np.float64).reshape(rows.shape[:2]).sum(1)
    return bool(np.abs(squares - 1).max(initial=0) < UNIT and (rows < 0).any())


def top_class(scores: np.ndarray) -> np.ndarray:
    """Arg max of each row, (samples,); -1 where a row has NaN and so no best class."""
    scores = scores.reshape(scores.shape[:2])
    return np.where(np.isnan(scores).any(axis=1), -1, scores.argmax(axis=1))


def _hits(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    scores = scores.reshape(scores.shape[:2])
    if k == 1:
        return top_class(scores) == labels
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return (best == labels[:, None]).any(axis=1) & ~np.isnan(scores).any(axis=1)
