"""Padding of token sequences: trimmed off each sample where the model runs any length, reported where it stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..errors import DataError
from ..spec import InputSpec
from .arrays import Texts
from .checked import CheckedSamples

# Inputs (samples, tokens, ...) of transformers, by the names that exporters give them. In the mask, 1 is a token that
# counts and 0 is padding.
MASK, POSITIONS = "attention_mask", "position_ids"
TOKEN_IDS = "input_ids"
IDS = (TOKEN_IDS, "inputs_embeds")  # the tokens themselves
TOKENS = (*IDS, MASK, "token_type_ids", POSITIONS)
MASK_ROWS = 4096  # read at once, so that a mask of 8-byte integers takes a byte a token in memory

Trimmed = tuple[CheckedSamples, str | None]


def trim_padding(checked: CheckedSamples, inputs: Sequence[InputSpec]) -> Trimmed:
    """The samples without padding, and the reason why padding stays, or None where none is left.

    Padding stays in all samples where the model fixes the number of tokens or of samples, and where the mask has
    another length than the tokens. It stays in the samples whose mask has zeros between ones. It stays too in those
    whose mask starts with zeros, unless the model is fed positions: others count from the first token, padding or not.
    Raises DataError for a sample in which no token counts.
    """
    named = {spec.name: spec for spec in inputs}
    texts = checked.part.texts
    return _trim_by_mask(checked, named) if texts is None else _trim_by_lengths(checked, named, texts)


def count_tokens(mask: np.ndarray) -> np.ndarray:
    """Whether each token counts, bool of the mask's shape.

    A token counts where the mask is not zero. A mask of floats without a positive value is added to scores: there a
    token counts where the mask is zero.
    """
    added = mask.dtype.kind == "f" and not (mask > 0).any()
    return np.asarray(mask >= 0 if added else mask != 0)


def _trim_by_lengths(checked: CheckedSamples, named: Mapping[str, InputSpec], texts: Texts) -> Trimmed:
    length = next(iter(checked.shapes.values()))[0]
    if (texts.lengths == length).all():
        return checked, None
    trimmed = _find_token_inputs(checked, named, length)
    reason = _find_obstacle(checked, named, trimmed, length)
    if reason is not None:
        return checked, reason
    ends = np.full(checked.rows, length) if texts.left else texts.lengths
    spans = np.stack([ends - texts.lengths, ends], axis=1)
    return replace(checked, spans=spans, trimmed=trimmed), None


def _trim_by_mask(checked: CheckedSamples, named: Mapping[str, InputSpec]) -> Trimmed:
    mask = _read_mask(checked, named)
    if mask is None or mask.all():
        return checked, None
    length = mask.shape[1]
    trimmed = _find_token_inputs(checked, named, length)
    reason = _find_obstacle(checked, named, trimmed, length)
    if reason is not None:
        return checked, reason
    left = POSITIONS in trimmed
    spans, odd = _find_spans(mask, left=left)
    if odd:
        reason = f"{odd} of {checked.rows} samples have a mask that is no run of ones{'' if left else ' first'}"
    return replace(checked, spans=spans, trimmed=trimmed), reason


def _read_mask(checked: CheckedSamples, named: Mapping[str, InputSpec]) -> np.ndarray | None:
    """Whether each token counts, bool (rows, tokens); None where the model has no mask of that shape."""
    if MASK not in named or len(checked.shapes[MASK]) != 1:
        return None
    starts, dtype = range(0, checked.rows, MASK_ROWS), np.dtype(named[MASK].dtype)
    chunks = (checked.take(MASK, range(start, min(start + MASK_ROWS, checked.rows)), dtype) for start in starts)
    mask = np.concatenate([count_tokens(chunk) for chunk in chunks])
    empty = np.flatnonzero(~mask.any(axis=1))
    if len(empty):
        raise DataError(
            f"{checked.part.where}: {MASK}: all is 0 in {len(empty)} of {checked.rows} samples, the first being sample"
            f" {empty[0]}; a sample needs a token that counts; leave these out"
        )
    return mask


def _find_token_inputs(checked: CheckedSamples, named: Mapping[str, InputSpec], length: int) -> frozenset[str]:
    """The inputs whose first axis behind that of the samples counts these tokens."""
    return frozenset(name for name in named if name in TOKENS and checked.shapes[name][:1] == (length,))


def _find_obstacle(
    checked: CheckedSamples, named: Mapping[str, InputSpec], trimmed: frozenset[str], length: int
) -> str | None:
    """Why no sample can be trimmed."""
    if not trimmed.intersection(IDS):
        return f"no {' or '.join(IDS)} has the {length} tokens of the mask, which may count those of the past too"
    for name, spec in named.items():
        found = checked.shapes[name]
        shape = (None,) * (len(found) + 1) if spec.shape is None else spec.shape
        if shape[0] not in (None, 1):
            return f"the model takes {shape[0]} samples in a run"
        sides = shape[len(shape) - len(found) :]
        if name in trimmed and sides[0] is not None:
            return f"the model takes {length} tokens"
        open_sides = [have for side, have in zip(sides, found, strict=True) if side is None]
        if name not in trimmed and length in open_sides:
            return f"input {name!r} may count tokens too"
    return None


def _find_spans(mask: np.ndarray, *, left: bool) -> tuple[np.ndarray, int]:
    """The first token of each row and the one behind its last, (rows, 2), and how many rows stay whole.

    left: whether rows that start with padding can be trimmed.
    """
    count = mask.sum(axis=1)
    first = mask.argmax(axis=1)
    end = mask.shape[1] - mask[:, ::-1].argmax(axis=1)
    whole = (count != end - first) | (count == 0) | ((first > 0) & (not left))
    spans = np.stack([np.where(whole, 0, first), np.where(whole, mask.shape[1], end)], axis=1)
    return spans, int(whole.sum())
