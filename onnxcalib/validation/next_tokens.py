"""How likely language models find the text: the loss at every token that follows another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..data import CalibrationSet
from ..data.padding import TOKEN_IDS
from ..numeric.intervals import mean_interval
from ..quantization.class_axes import LOGITS
from ..quantization.padding_mask import find_real
from ..runtime.session import Session, is_float
from ..verdict import ScoreRecord

CHUNK = 64  # tokens whose distributions are in memory as float64, which vocabularies of 250,000 make 128 MB
# How far scores in front of a token may move with it, as a share of the largest, where kernels round in another order.
ROUNDING = 1e-3
NAMES = ("log-likelihood, nats a token", "the same if tokens came from the float model")


def reads_tokens(samples: CalibrationSet) -> bool:
    """Whether the model has an input of tokens (samples, tokens)."""
    return any(spec.name == TOKEN_IDS for spec in samples.inputs)


def predicts_next(model: Session, samples: CalibrationSet) -> bool:
    """Whether a model gives scores of all tokens that come next: logits (samples, tokens, vocabulary).

    Scores in front of a token must not depend on it, which tells decoders from encoders: the last token of a sample
    that is no padding is exchanged for another of the sample.
    """
    if not reads_tokens(samples) or not samples.batched:
        return False
    feeds = samples.read([0] * (samples.fixed_batch or 1))
    ids = feeds[TOKEN_IDS]
    before = model.run(feeds).get(LOGITS)
    if before is None or not is_float(before) or before.ndim != 3:
        return False
    if before.shape[:2] != ids.shape or before.shape[2] <= ids.max():
        return False
    *rest, last = np.flatnonzero(_mark_real(feeds)[0])
    others = [token for token in ids[0, rest] if token != ids[0, last]]
    if not others:
        return False
    changed = ids.copy()
    changed[:, last] = others[0]
    after = model.run({**feeds, TOKEN_IDS: changed})[LOGITS]
    moved = np.abs(after[:, rest] - before[:, rest]).max()
    return bool(moved <= ROUNDING * np.abs(before[:, rest]).max())


def _mark_real(feeds: Mapping[str, Any]) -> np.ndarray:
    """Which tokens are no padding, (samples, tokens)."""
    ids, real = feeds[TOKEN_IDS], find_real(feeds)
    return np.ones(ids.shape, bool) if real is None or real.shape != ids.shape else real


class NextTokenTally:
    """Sums of the log-likelihood of each token given those before it, by both models, over all that are no padding.

    Beside it the float model's own mean of its log-likelihoods, and of the other's: their difference is the divergence
    KL(float || quantized) of the next token.
    """

    def __init__(self) -> None:
        self._sums: list[np.ndarray] = []  # a sample: (2 scores, 2 models)
        self._counts: list[int] = []

    def add(self, feeds: Mapping[str, Any], wanted: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """Take in a batch of samples."""
        ids, real = feeds[TOKEN_IDS], _mark_real(feeds)
        for row, tokens in enumerate(ids):
            at = np.flatnonzero(real[row, 1:] & real[row, :-1])
            sums = np.zeros((2, 2))
            for chunk in np.split(at, range(CHUNK, len(at), CHUNK)):
                sums += _score(wanted[LOGITS][row, chunk], given[LOGITS][row, chunk], tokens[chunk + 1])
            self._sums.append(sums)
            self._counts.append(len(at))

    def records(self) -> list[ScoreRecord]:
        """Both scores, in nats a token; with an interval where all samples have as many tokens."""
        counts = np.array(self._counts)
        if not counts.sum():
            return []
        means = np.sum(self._sums, axis=0) / counts.sum()
        records = []
        for number, (name, (wanted, given)) in enumerate(zip(NAMES, means, strict=True)):
            lost = [(sums[number, 0] - sums[number, 1]) / count for sums, count in zip(self._sums, counts, strict=True)]
            interval = mean_interval(np.array(lost)) if (counts == counts[0]).all() else None
            records.append(ScoreRecord(name, float(wanted), float(given), float(wanted - given), interval, LOGITS))
        return records


def _score(wanted: np.ndarray, given: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Sums over tokens (2 scores, 2 models): of the tokens that came, and of those that the float model expects.

    wanted, given: logits (tokens, vocabulary).
    """
    logs = [_log_softmax(scores) for scores in (wanted, given)]
    expected = np.exp(logs[0])
    came = [log[np.arange(len(tokens)), tokens].sum() for log in logs]
    return np.array([came, [np.einsum("tv,tv->", expected, log) for log in logs]])


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
