"""Compare all outputs of two models batch by batch: by their values, and by the share of equal answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ModelError
from ..graph.parts import Part
from ..numeric.fill import find_fill
from ..numeric.intervals import UNKNOWN, agreement_interval, position_interval, sqnr_interval
from ..numeric.margins import Margins
from ..numeric.metrics import Comparison
from ..numeric.unseen import estimate_sqnr
from ..report import ExpectedRecord, OutputRecord
from .output_parts import Parts, list_parts
from .padding_mask import PaddingMask

# Where one of so many samples has more than this share of the energy, SQNR is that of one sample.
SOME_SAMPLES, MOST_OF_IT = 8, 0.5
EMPTY = "it has no value in any sample"


def lack_of_values(output: str) -> ModelError:
    """The error of an output whose values are finite for no sample."""
    return ModelError(
        f"output {output}: found no finite value in what the float model gives for the samples; nothing can be compared"
        " with it; check the model, or the preprocessing of the samples"
    )


class OutputTally:
    """Running comparison of every output of two models; values that belong to padding are not compared.

    Each tensor of a sequence is an output of its own, NAME[0] and so on. Floats are compared by ``Comparison``, values
    of other types by their equality. parts: see ``find_parts``; they are compared beside the outputs that have them, if
    every batch has them. class_axes: see ``find_class_axes``. estimates: whether the records have estimates of the
    agreement on other samples.
    """

    def __init__(
        self,
        padding: PaddingMask | None = None,
        parts: Parts | None = None,
        *,
        class_axes: Mapping[str, int] | None = None,
        estimates: bool = False,
    ) -> None:
        self._padding, self._parts, self._axes = padding, dict(parts or {}), class_axes or {}
        self._by_part: dict[str, dict[Part, Comparison]] = {}
        self._unlike: dict[str, str] = {}
        self._empty: dict[str, None] = {}
        self._floats: dict[str, Comparison] = {}
        self._padded: dict[str, int] = {}
        self._others: dict[str, list[int]] = {}
        self._estimates = estimates
        self._margins: dict[str, Margins] = {}  # of outputs, and of parts by their full names
        self._seen: OutputTally | None = None

    def add(
        self,
        wanted: Mapping[str, Any],
        given: Mapping[str, Any],
        samples: int = 1,
        real: np.ndarray | None = None,
    ) -> None:
        """Add both models' outputs for one batch of ``samples``; real: mask of its tokens (see ``PaddingMask``)."""
        for name, value, other in self._leave_out(wanted, given, real):
            self._add(name, value, other, samples)

    def _leave_out(
        self, wanted: Mapping[str, Any], given: Mapping[str, Any], real: np.ndarray | None
    ) -> Iterator[tuple[str, Any, Any]]:
        """Each output by name in both models, without what is not compared: padding and fill values."""
        if self._padding is not None and real is not None:
            for name, value in wanted.items():
                mask = self._padding.mask_of(name, value.shape, real) if isinstance(value, np.ndarray) else None
                if mask is not None:
                    padded = value.size - int(np.count_nonzero(np.broadcast_to(mask, value.shape)))
                    self._padded[name] = self._padded.get(name, 0) + padded
            wanted, given = (self._padding.mask_outputs(each, real) for each in (wanted, given))
        for name, value in wanted.items():
            fill = _find_fill(value, given[name])
            if fill is not None:
                self._padded[name] = self._padded.get(name, 0) + int(np.count_nonzero(fill))
                value = np.where(fill, -np.inf, value).astype(value.dtype)
            yield name, value, given[name]

    def add_seen(
        self,
        wanted: Mapping[str, Any],
        given: Mapping[str, Any],
        samples: int = 1,
        real: np.ndarray | None = None,
    ) -> None:
        """Add a batch of samples that the model was made from, of which estimates alone take note.

        Only outputs that were compared before are taken in.
        """
        if self._seen is None:
            self._seen = OutputTally(self._padding, self._parts, class_axes=self._axes)
        for name, value, other in self._seen._leave_out(wanted, given, real):
            self._seen._add(name, value, other, samples)
            if name in self._margins and isinstance(value, np.ndarray) and value.size:
                self._margins[name].add(value, None, samples)
                for part in list_parts(self._parts, name, value.shape):
                    self._margins[f"{name}{part.label}"].add(value[part.place], None, samples)

    def _add(self, name: str, value: Any, other: Any, samples: int) -> None:
        if isinstance(value, list) and isinstance(other, list):
            if len(value) != len(other):
                self._unlike[name] = f"the float model gives {len(value)} tensors, the quantized one {len(other)}"
                return
            if not all(isinstance(each, dict) for each in (*value, *other)):
                for index, pair in enumerate(zip(value, other, strict=True)):
                    self._add(f"{name}[{index}]", *pair, samples)
                return
            if any(each.keys() != value[0].keys() for each in (*value, *other)):
                self._unlike[name] = "the two models give other classes"
                return
            # probabilities by class, of each sample
            value, other = (np.array([[d[k] for k in value[0]] for d in each]) for each in (value, other))
        if not isinstance(value, np.ndarray) or not isinstance(other, np.ndarray):
            self._unlike[name] = "it is no tensor"
        elif value.shape != other.shape:
            self._unlike[name] = f"the float model gives shape {value.shape}, the quantized one {other.shape}"
        elif value.dtype.kind == "f" and other.dtype.kind not in "fiub":
            self._unlike[name] = f"the float model gives {value.dtype}, the quantized one {other.dtype}"
        elif not value.size:
            self._empty[name] = None
        elif value.dtype.kind == "f":
            axis = self._axes.get(name)
            self._floats.setdefault(name, Comparison(axis=axis)).add(value, other, samples)
            if self._estimates:
                self._margins.setdefault(name, Margins(axis=axis)).add(value, other, samples)
            self._add_parts(name, value, other, samples)
        else:
            rows = (x.reshape(samples if value.ndim and len(value) == samples else 1, -1) for x in (value, other))
            same = np.all(np.equal(*rows), axis=1)
            sums = self._others.setdefault(name, [0, 0])
            sums[0] += int(same.sum())
            sums[1] += len(same)

    def _add_parts(self, name: str, value: np.ndarray, other: np.ndarray, samples: int) -> None:
        parts = list_parts(self._parts, name, value.shape)
        if not parts:
            self._parts.pop(name, None)
            self._by_part.pop(name, None)
        for part in parts:
            whole = f"{name}{part.label}"
            axis = self._axes.get(whole)
            found = self._by_part.setdefault(name, {}).setdefault(part, Comparison(rows_are_scores=False, axis=axis))
            found.add(value[part.place], other[part.place], samples)
            if self._estimates:
                margins = self._margins.setdefault(whole, Margins(rows_are_scores=False, axis=axis))
                margins.add(value[part.place], other[part.place], samples)

    @property
    def missed(self) -> dict[str, str]:
        """Output -> why it could not be compared, in all batches or in some."""
        empty = [name for name in self._empty if name not in self._floats and name not in self._others]
        return self._unlike | dict.fromkeys(empty, EMPTY)

    def check(self) -> None:
        """Raise ModelError for an output without a finite value in the float model, and where all outputs are empty."""
        for name, found in self._floats.items():
            if not found.values:
                raise lack_of_values(name)
        if self._empty and not (self._floats or self._others or self._unlike):
            raise ModelError(
                f"output {next(iter(self._empty))}: found no value in any sample; one output with values is needed to"
                " compare the models; give samples for which the float model finds something"
            )

    def warnings(self) -> Iterator[str]:
        """One line for each output that was not compared, has values that are not finite, or is ruled by one sample."""
        for name, reason in self.missed.items():
            yield f"output {name} was not compared: {reason}"
        for record in self.records():
            if record.left_out:
                yield (
                    f"output {record.name}: {record.left_out:,} values of the float model are not finite, and are left"
                    " out of every measure; check the model, or the preprocessing of the samples"
                )
            if record.broken:
                yield (
                    f"output {record.name}: {record.broken:,} values of the quantized model are not finite where the"
                    " float model's are; its users would get no numbers; quantize it with other settings"
                )
            count = self._floats[record.name].samples if record.name in self._floats else 0
            if count >= SOME_SAMPLES and (record.largest_share or 0) > MOST_OF_IT:
                yield (
                    f"output {record.name}: one of {count} samples has {100 * (record.largest_share or 0):.1f}% of the"
                    f" energy, so that its SQNR is that of this sample; the median of all is {record.median_db:.1f} dB;"
                    " check the samples for one that is unlike the others"
                )

    def records(self) -> tuple[OutputRecord, ...]:
        """One record for each output of which anything could be compared, with intervals over the samples."""
        floats = [
            replace(self._record(name, None, found), parts=self._record_parts(name))
            for name, found in self._floats.items()
            if found.values
        ]
        others = [
            OutputRecord(name, None, None, None, equal / rows, None, agreement_interval(equal, rows))
            for name, (equal, rows) in self._others.items()
        ]
        return (*floats, *others)

    def _record_parts(self, name: str) -> tuple[OutputRecord, ...]:
        """A record of each part that has values."""
        return tuple(
            replace(self._record(name, part, found), tensors=part.tensors)
            for part, found in self._by_part.get(name, {}).items()
            if found.values
        )

    def _record(self, output: str, part: Part | None, found: Comparison) -> OutputRecord:
        """The record of an output or of one of its parts."""
        name = output if part is None else f"{output}{part.label}"
        record = _record(name, found, self._padded.get(output, 0) if part is None else 0)
        if not self._estimates:
            return record
        return replace(record, expected=self._expect(record, found, self._find_seen(output, part)))

    def _find_seen(self, output: str, part: Part | None) -> Comparison | None:
        if self._seen is None:
            return None
        return self._seen._floats.get(output) if part is None else self._seen._by_part.get(output, {}).get(part)

    def _expect(self, record: OutputRecord, found: Comparison, seen: Comparison | None) -> ExpectedRecord | None:
        decibels = None if seen is None else estimate_sqnr(found.by_sample, seen.by_sample)
        counted, margins = record.agreement_interval, self._margins.get(record.name)
        share = None if counted is None or margins is None else margins.estimate(counted)
        if decibels is None and share is None:
            return None
        return ExpectedRecord(
            *(decibels or (record.sqnr_db, record.sqnr_interval)), *(share or (record.agreement, counted))
        )


def _find_fill(value: Any, other: Any) -> np.ndarray | None:
    """Where an output holds a fill value (see ``find_fill``), which is no answer, as padding is none."""
    arrays = isinstance(value, np.ndarray) and isinstance(other, np.ndarray)
    return find_fill(value, other) if arrays and value.dtype.kind == other.dtype.kind == "f" else None


def _record(name: str, found: Comparison, padded: int = 0) -> OutputRecord:
    """The record of what was compared, of whose values so many belong to padding."""
    # Errors whose squares are zero in float64 are errors all the same.
    equal = found.sqnr_db == np.inf
    interval = sqnr_interval(found.powers, found.samples) if equal or found.powers[1] else UNKNOWN
    return OutputRecord(
        name,
        found.sqnr_db,
        found.cosine,
        found.max_abs_error,
        found.agreement,
        interval,
        _agreement_interval(found),
        broken=found.broken,
        left_out=found.left_out - padded,
        median_db=found.median_db,
        largest_share=found.largest_share,
        positions=found.rows if found.rows > found.groups else None,
    )


def _agreement_interval(found: Comparison) -> tuple[float, float] | None:
    if not found.rows:
        return None
    if found.rows == found.groups:
        return agreement_interval(found.equal, found.rows)
    return position_interval(found.clusters, found.groups)
