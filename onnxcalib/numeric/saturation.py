"""Whether 8-bit products can overflow the 16-bit sums of processors without VNNI instructions."""

from __future__ import annotations

import numpy as np

INT16_MAX = 2**15 - 1


def pair_bound(rows: np.ndarray, highest: int) -> int:
    """The largest magnitude that a sum of two neighbouring products can have: ``highest * |w_2i + w_2i+1|``.

    vpmaddubsw multiplies unsigned by signed bytes and adds neighbours in int16, saturating above INT16_MAX; VNNI adds
    in int32 at once. A weight whose sign the other has not counts as 0, as its activation may be 0. rows: integers of
    the weight, (channels, inputs), in the order in which the kernel adds; highest: largest integer of the activation.
    """
    if rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    pairs = rows.reshape(len(rows), -1, 2).astype(np.int64)
    above, below = np.maximum(pairs, 0).sum(axis=2), -np.minimum(pairs, 0).sum(axis=2)
    return int(highest * max(above.max(initial=0), below.max(initial=0)))
