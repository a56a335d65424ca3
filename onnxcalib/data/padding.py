"""Parts that have been checked: their samples by number, those of token sequences cut to their own lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import DataError
from ..spec import InputSpec
from . import arrays
from .arrays import Part, check_array

# Inputs (samples, tokens, ...) of transformers, by the names that exporters give them; 1 in the mask is a token that
# counts, 0 is padding.
MASK, POSITIONS = "attention_mask", "position_ids"
ROWS = 4096  # of a mask that are read at once, so that it takes a byte a token in memory
IDS = ("input_ids", "inputs_embeds")  # the tokens themselves
TOKENS = (*IDS, MASK, "token_type_ids", POSITIONS)


@dataclass(frozen=True)
class CheckedSamples:
    """A part that has been checked: ``rows`` samples of these shapes; stacked arrays have the samples on axis 0.

    spans: the first token of each sample and the one behind its last, (rows, 2), where ``cut`` inputs are cut to them.
    """

    part: Part
    rows: int
    shapes: dict[str, tuple[int, ...]]
    stacked: dict[str, bool]
    spans: np.ndarray | None = None
    cut: frozenset[str] = frozenset()

    def take(self, name: str, rows: Sequence[int], dtype: np.dtype, *, whole: bool = False) -> np.ndarray:
        """(len(rows), *sample shape), of rows of one length; whole: with their padding, of any."""
        array = self.part.arrays[name]
        values = array[list(rows)] if self.stacked[name] else array[...][None]
        if name in self.cut and not whole:
            spans = self.spans[list(rows)]
            values = np.stack([value[first:end] for value, (first, end) in zip(values, spans, strict=True)])
        return np.asarray(values).astype(dtype, copy=False)

    def lengths(self) -> np.ndarray:
        """Tokens of each sample, (rows,); 0 where samples are not cut, so that all have the slab's shapes."""
        return np.zeros(self.rows, np.int64) if self.spans is None else self.spans[:, 1] - self.spans[:, 0]

    @property
    def labelled(self) -> bool:
        return self.part.label is not None or self.part.labels is not None

    def read_labels(self) -> np.ndarray:
        """int64 (rows,)"""
        if self.part.labels is None:
            return np.full(self.rows, self.part.label, np.int64)
        return arrays.check_labels(self.part.where, self.part.labels(), self.rows)


def check_part(part: Part, inputs: Sequence[InputSpec]) -> CheckedSamples:
    """Types, ranks and shapes of one part, from headers alone."""
    batched = share_batch(inputs)
    shapes, stacked, counts = {}, {}, {}
    for spec in inputs:
        array = part.arrays[spec.name]
        stacked[spec.name] = check_array(f"{part.where}: input {spec.name!r}", array, spec, batched=batched)
        shapes[spec.name] = tuple(array.shape[1:] if stacked[spec.name] else array.shape)
        counts[spec.name] = array.shape[0] if stacked[spec.name] else 1
    (first, rows), *others = counts.items()
    for name, count in others:
        if count != rows:
            raise DataError(
                f"{part.where}: found {rows} samples of {first!r}, {count} of {name!r}; give as many of each"
            )
    return CheckedSamples(part, rows, shapes, stacked)


def share_batch(inputs: Sequence[InputSpec]) -> bool:
    """Whether all inputs have a leading axis of one and the same length, fixed or open."""
    ranked = [spec.shape for spec in inputs if spec.shape is not None]
    return all(shape for shape in ranked) and len({shape[0] for shape in ranked if shape}) <= 1


def cut_padding(part: CheckedSamples, inputs: Sequence[InputSpec]) -> tuple[CheckedSamples, str | None]:
    """The slab with its samples cut to the tokens that the mask counts, so that padding is never run.

    Also what to know of padding that stays, if any: where the model fixes the number of tokens or of samples, where the
    mask counts other tokens than those that are fed, is no run of ones, or starts with zeros in a model that counts
    positions from the first token, padded or not.
    """
    named = {spec.name: spec for spec in inputs}
    texts = part.part.texts
    if texts is not None:
        length = next(iter(part.shapes.values()))[0]
        ends = np.full(part.rows, length) if texts.left else texts.lengths
        spans, odd = np.stack([ends - texts.lengths, ends], axis=1), 0
        padded = bool((texts.lengths < length).any())
    else:
        mask = _find_mask(part, named)
        padded = mask is not None and not mask.all()
        length = mask.shape[1] if padded else 0
    if not padded:
        return part, None
    cut = frozenset(name for name in named if name in TOKENS and part.shapes[name][:1] == (length,))
    reason = _find_obstacle(part, named, cut, length)
    if reason is not None:
        return part, reason
    if texts is None:
        spans, odd = _find_spans(mask, left=POSITIONS in cut)
    if odd:
        reason = (
            f"{odd} of {part.rows} samples have a mask that is no run of ones{'' if POSITIONS in cut else ' first'}"
        )
    return replace(part, spans=spans, cut=cut), reason


def count_tokens(mask: np.ndarray) -> np.ndarray:
    """Whether a token counts, by a mask's value: not zero; where floats are none above zero, which are added, zero."""
    return mask >= 0 if mask.dtype.kind == "f" and not (mask > 0).any() else mask != 0


def _find_mask(part: CheckedSamples, named: dict[str, InputSpec]) -> np.ndarray | None:
    """Whether a token counts, bool (rows, tokens); DataError where none of a sample does."""
    if MASK not in named or len(part.shapes[MASK]) != 1:
        return None
    starts, dtype = range(0, part.rows, ROWS), np.dtype(named[MASK].dtype)
    parts = (part.take(MASK, range(start, min(start + ROWS, part.rows)), dtype) for start in starts)
    mask = np.concatenate([count_tokens(part) for part in parts])
    empty = np.flatnonzero(~mask.any(axis=1))
    if len(empty):
        raise DataError(
            f"{part.part.where}: {MASK}: all is 0 in {len(empty)} of {part.rows} samples, the first being sample"
            f" {empty[0]}; a sample needs a token that counts; leave these out"
        )
    return mask


def _find_obstacle(part: CheckedSamples, named: dict[str, InputSpec], cut: frozenset[str], length: int) -> str | None:
    """Why the samples cannot be cut."""
    if not cut.intersection(IDS):
        return f"no {' or '.join(IDS)} has the {length} tokens of the mask, which may count those of the past too"
    for name, spec in named.items():
        shape = (None,) * (len(part.shapes[name]) + 1) if spec.shape is None else spec.shape
        if shape[0] not in (None, 1):
            return f"the model takes {shape[0]} samples in a run"
        sides = shape[len(shape) - len(part.shapes[name]) :]
        if name in cut and sides[0] is not None:
            return f"the model takes {length} tokens"
        if name not in cut and any(
            side is None and found == length for side, found in zip(sides, part.shapes[name], strict=True)
        ):
            return f"input {name!r} may count tokens too"
    return None


def _find_spans(mask: np.ndarray, *, left: bool) -> tuple[np.ndarray, int]:
    """First token and the one behind the last of each row, and the number of rows that are left whole.

    left: rows may start with padding.
    """
    count = mask.sum(axis=1)
    first = mask.argmax(axis=1)
    end = mask.shape[1] - mask[:, ::-1].argmax(axis=1)
    whole = (count != end - first) | (count == 0) | ((first > 0) & (not left))
    spans = np.stack([np.where(whole, 0, first), np.where(whole, mask.shape[1], end)], axis=1)
    return spans, int(whole.sum())
