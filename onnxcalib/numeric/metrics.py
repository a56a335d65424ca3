"""How far a tensor is from its reference, and how often the right class comes first, accumulated batch by batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Values compared at once: few enough that their float64 copies stay in the processor's cache. Sums are taken by einsum:
# OpenBLAS starts threads for dot products of more than 10,000 values, which compete with onnxruntime's.
CHUNK = 2**15
TINY = np.finfo(np.float64).tiny  # stands for squares that are too small for float64
# How far from 1 the squared length of an embedding may lie.
UNIT_TOLERANCE = 1e-3
# How far from 1 a sum of probabilities may lie, and that of probabilities in float16.
SUM_TOLERANCE, HALF_TOLERANCE = 1e-3, 1e-2


class Comparison:
    """Running sums over a reference tensor, another tensor and their difference, in float64.

    powers (5,): sums over ``samples`` samples of a, e, a^2, e^2 and a e, with a the squared norm of a sample's
    reference and e that of its error. Values of the reference that are not finite are left out of every measure, and so
    are samples without any other; ``left_out`` counts these values, and ``values`` all others. A value of the other
    tensor that is not finite where the reference is finite is an infinite error; ``broken`` counts them.

    Classes are looked for on axis 1 of rows (samples, classes), and in tensors of more axes where the reference is
    probabilities, or their logarithms, along an axis: then each position has a top class. rows_are_scores: False looks
    for probabilities only. axis: that of the classes, where it is known. clusters (5,): sums over samples of e, n, e^2,
    n^2 and e n, with n the positions of a sample that have a top class, in e of which it stays; ``groups`` counts the
    samples that have any.
    """

    def __init__(self, *, rows_are_scores: bool = True, axis: int | None = None) -> None:
        self.powers = np.zeros(5)
        self.samples = self.values = self.left_out = self.broken = 0
        self._largest = 0.0
        self._other = self._product = 0.0
        self.clusters = np.zeros(5)
        self.groups = 0
        self._rows_are_scores, self._given = rows_are_scores, axis
        self._axis: int | None = None
        self._scores = self._embeds = True
        self._by_sample: list[np.ndarray] = []  # (2, samples) of each batch: a and e

    def add(self, reference: np.ndarray, other: np.ndarray, samples: int = 1) -> None:
        """Take in one batch of both tensors, of the same shape.

        Axis 0 counts samples where it is ``samples`` long; else the whole batch is one sample.
        """
        stacked = reference.ndim > 0 and reference.shape[0] == samples
        rows, other_rows = (x.reshape(samples if stacked else 1, -1) for x in (reference, other))
        size = max(1, CHUNK // max(rows.shape[1], 1))
        powers = [self._add_rows(rows[i : i + size], other_rows[i : i + size]) for i in range(0, len(rows), size)]
        signal, error, values = np.concatenate(powers, axis=1)
        with np.errstate(over="ignore", invalid="ignore"):  # doubles whose squares are infinite
            self.powers += [x.sum() for x in (signal, error, signal**2, error**2, signal * error)]
        self._by_sample.append(np.stack([signal, error])[:, values > 0])
        self.samples += int(np.count_nonzero(values))
        self.values += int(values.sum())
        self.left_out += reference.size - int(values.sum())
        self._add_classes(reference, other, samples)

    def _add_classes(self, reference: np.ndarray, other: np.ndarray, samples: int) -> None:
        rows = self._given is None and self._rows_are_scores and scores_classes(reference.shape)
        axis = (
            find_class_rows(reference, rows_are_scores=self._rows_are_scores, given=self._given)
            if self._scores
            else None
        )
        self._scores &= axis is not None and self._axis in (None, axis)
        self._embeds = self._embeds and rows and self._scores and _embeds(reference)
        if axis is None or not self._scores:
            return
        self._axis = axis
        if not rows:
            reference, other = lay_rows(reference, axis), lay_rows(other, axis)
        best = top_class(reference)
        same = (best >= 0) & (best == top_class(other, like=reference))
        # Positions of one sample are no independent draws.
        shape = (samples, -1) if len(best) % samples == 0 else (-1, 1)
        equal, count = (x.reshape(shape).sum(axis=1, dtype=np.float64) for x in (same, best >= 0))
        self.groups += int(np.count_nonzero(count))
        self.clusters += [x.sum() for x in (equal, count, equal**2, count**2, equal * count)]

    def _add_rows(self, reference: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Squared norms of the reference's and the error's rows, and how many values they have, (3, rows)."""
        powers = np.zeros((3, len(reference)))
        for start in range(0, reference.shape[1], CHUNK):
            a = reference[:, start : start + CHUNK].astype(np.float64)
            b = other[:, start : start + CHUNK].astype(np.float64)
            with np.errstate(over="ignore", invalid="ignore"):
                signal, other_power = np.einsum("ij,ij->i", a, a), np.einsum("ij,ij->", b, b)
                count: np.ndarray | int = a.shape[1]
                if not (np.isfinite(signal).all() and np.isfinite(other_power)):  # a value, or the square of one
                    finite, sound = np.isfinite(a), np.isfinite(b)
                    self.broken += int(np.count_nonzero(finite & ~sound))
                    a, b = np.where(finite, a, 0), np.where(finite, np.where(sound, b, np.inf), 0)
                    signal, other_power = np.einsum("ij,ij->i", a, a), np.einsum("ij,ij->", b, b)
                    count = finite.sum(axis=1)
                self._other += float(other_power)
                self._product += float(np.einsum("ij,ij->", a, b))
                a -= b
                powers += [signal, np.einsum("ij,ij->i", a, a), np.broadcast_to(count, len(a))]
            self._largest = max(self._largest, float(np.abs(a).max(initial=0)))
        return powers

    @property
    def max_abs_error(self) -> float:
        """The largest ``|a - b|``: inf where a value is broken, NaN where nothing was compared."""
        return self._largest if self.values else float("nan")

    @property
    def sqnr_db(self) -> float:
        """``10 log10(sum a^2 / sum (a - b)^2)`` in dB.

        inf where both tensors are equal, constants and zeros too; below -1000 where the reference is zero and the other
        is not; -inf where a value is broken or a square is infinite; NaN where nothing was compared.
        """
        reference, error = self.powers[:2]
        if not self.values:
            return float("nan")
        if self._largest == 0:
            return float("inf")
        if not np.isfinite(reference) or not np.isfinite(error):
            return float("-inf")
        return 10 * float(np.log10(max(reference, TINY)) - np.log10(max(error, TINY)))

    @property
    def by_sample(self) -> np.ndarray:
        """Squared norms of reference and error of each sample, (2, samples)."""
        return np.concatenate([np.zeros((2, 0)), *self._by_sample], axis=1)

    @property
    def median_db(self) -> float:
        """The median of the samples' own SQNR, which one sample of many cannot move; as ``sqnr_db`` at the ends."""
        if not self.values:
            return float("nan")
        reference, error = self.by_sample
        with np.errstate(divide="ignore", invalid="ignore"):
            each = 10 * (np.log10(np.maximum(reference, TINY)) - np.log10(np.maximum(error, TINY)))
        each[error == 0] = np.inf
        each[~np.isfinite(reference) | ~np.isfinite(error)] = -np.inf
        return float(np.sort(each)[(len(each) - 1) // 2])

    @property
    def largest_share(self) -> float:
        """The share of ``sum a^2`` that the sample with most of it has; NaN where there is none."""
        reference = self.by_sample[0] if self.values else np.zeros(1)
        total = reference.sum()
        return float(reference.max() / total) if 0 < total < np.inf else float("nan")

    @property
    def relative_error(self) -> float:
        """``sum (a - b)^2 / sum a^2``.

        0 where both tensors are equal; inf where a value is broken, a square is infinite, the reference is zero and the
        other is not, or nothing was compared.
        """
        reference, error = self.powers[:2]
        if self.values and self._largest == 0:
            return 0.0
        return float(error / reference) if reference > 0 and np.isfinite([reference, error]).all() else float("inf")

    @property
    def cosine(self) -> float:
        """Cosine of the angle between both tensors, all batches as one vector.

        1 where both are zero; 0 where one of them is, where a value is broken or where a square is infinite; NaN where
        nothing was compared.
        """
        if not self.values:
            return float("nan")
        if self.broken or not np.isfinite([self.powers[0], self._other]).all():
            return 0.0
        norm = np.sqrt(self.powers[0]) * np.sqrt(self._other)
        return float(np.clip(self._product / norm, -1, 1)) if norm else float(self._largest == 0)

    @property
    def rows(self) -> int:
        """Rows or positions that have a top class, in ``equal`` of which it stays; 0 for another kind of tensor."""
        return int(self.clusters[1]) if self._scores and not self._embeds else 0

    @property
    def equal(self) -> int:
        """Rows or positions whose top class stays."""
        return int(self.clusters[0])

    @property
    def agreement(self) -> float | None:
        """Share of ``rows`` whose top class stays.

        A row stays with the first of equal scores, so that constant rows agree. It does not where a value is broken.
        Rows without a top class in the reference are left out. None for a tensor that has no class scores, and where
        nothing was compared.
        """
        return self.equal / self.rows if self.rows else None


def mean_sqnr(errors: Sequence[float]) -> float:
    """SQNR in dB of the mean of several tensors' relative errors.

    inf where all are 0, -inf where one is inf, NaN where one is NaN or where there are none.
    """
    if not len(errors):
        return float("nan")
    with np.errstate(divide="ignore"):
        return -10 * float(np.log10(np.mean(errors)))


class Accuracy:
    """In how many of ``samples`` samples the label is among the ``k`` best classes, in two models.

    right, other_right: in each model; lost: in the first model alone; gained: in the other alone. A row that has no top
    class is never right, nor is one of the other model that is not finite where the first model's is. All counts are 0
    where nothing was added.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.samples = self.right = self.other_right = self.lost = self.gained = 0

    def add(self, scores: np.ndarray, other: np.ndarray, labels: np.ndarray) -> None:
        """Take in one batch: both models' scores (samples, classes, 1, ...) and labels (samples,)."""
        hit, other_hit = _hits(scores, labels, self.k), _hits(other, labels, self.k, like=scores)
        self.samples += len(labels)
        self.right += int(hit.sum())
        self.other_right += int(other_hit.sum())
        self.lost += int((hit & ~other_hit).sum())
        self.gained += int((~hit & other_hit).sum())


def scores_classes(shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape can be class scores: (samples, classes), maybe with axes of size 1 behind."""
    return len(shape) >= 2 and shape[1] > 1 and int(np.prod(shape)) == shape[0] * shape[1]


def find_class_rows(values: np.ndarray, *, rows_are_scores: bool = True, given: int | None = None) -> int | None:
    """The axis of classes: the given one, axis 1 of rows that can be class scores, that of probabilities; or None."""
    if given is not None:
        return given
    return 1 if rows_are_scores and scores_classes(values.shape) else find_class_axis(values)


def lay_rows(values: np.ndarray, axis: int) -> np.ndarray:
    """The values with this axis as the last of two, (rows, classes)."""
    return np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])


def find_class_axis(values: np.ndarray) -> int | None:
    """The axis behind axis 0 along which the values are probabilities of classes, or their logarithms; or None.

    They sum to 1 wherever they are finite. So Softmax and LogSoftmax are told from maps of other values, in which a
    largest value says nothing.
    """
    if values.ndim < 2 or not values.size:
        return None
    # The first few values of most tensors tell that they are no probabilities.
    if not _may_be_probabilities(values.reshape(-1)[:4096]) or not _may_be_probabilities(values):
        return None
    finite = np.isfinite(values)
    low = float(np.min(values, initial=0, where=finite))
    likely = np.where(finite, values, 0) if low == 0 else np.exp(np.where(finite, values, -np.inf))
    for axis in reversed(range(1, values.ndim)):
        whole = finite.all(axis=axis)
        if values.shape[axis] > 1 and whole.any():
            sums = likely.sum(axis=axis, dtype=np.float64)
            if np.abs(sums[whole] - 1).max() < (SUM_TOLERANCE if values.dtype.itemsize > 2 else HALF_TOLERANCE):
                return axis
    return None


def _may_be_probabilities(values: np.ndarray) -> bool:
    """Whether the finite values are all between 0 and 1, or none is above 0."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    return high <= 0 or (low >= 0 and high <= 1 + SUM_TOLERANCE)


def _embeds(rows: np.ndarray) -> bool:
    """Whether all rows (samples, classes) are unit vectors with a negative element somewhere: not probabilities.

    Rows with values that are not finite say nothing, but that minus infinity among others is a score's.
    """
    rows = rows.reshape(rows.shape[:2])
    finite = np.isfinite(rows)
    if (np.isneginf(rows).any(axis=1) & finite.any(axis=1)).any():
        return False
    rows = rows[finite.all(axis=1)]
    squares = np.square(rows, dtype=np.float64).sum(axis=1)
    return bool(np.abs(squares - 1).max(initial=0) < UNIT_TOLERANCE and ((rows < 0).any() or not len(rows)))


def top_class(scores: np.ndarray, *, like: np.ndarray | None = None) -> np.ndarray:
    """Arg max of each row of scores (samples, classes, 1, ...), as (samples,); the first of equal scores.

    -1 for a row without a top class: one that has NaN or +inf, or -inf alone. -inf, the logarithm of no probability, is
    the least score. ``like``: scores of the same shape; -1 also where they are finite and these are not.
    """
    scores = scores.reshape(scores.shape[:2])
    finite = np.isfinite(scores)
    ranked = (finite | np.isneginf(scores)).all(axis=1) & finite.any(axis=1)
    if like is not None:
        ranked &= (finite | ~np.isfinite(like.reshape(scores.shape))).all(axis=1)
    return np.where(ranked, scores.argmax(axis=1), -1)


def _hits(scores: np.ndarray, labels: np.ndarray, k: int, *, like: np.ndarray | None = None) -> np.ndarray:
    """Whether each label is among the k best classes of its row, (samples,); never in a row without a top class."""
    best = top_class(scores, like=like)
    if k == 1:
        hits: np.ndarray = best == labels
        return hits
    ordered = np.argsort(-scores.reshape(scores.shape[:2]), axis=1, kind="stable")[:, :k]
    hits = (ordered == labels[:, None]).any(axis=1) & (best >= 0)
    return hits
