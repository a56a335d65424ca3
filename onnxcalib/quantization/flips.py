"""What operators that turn small differences into whole steps do to the outputs, as it is to be expected on other data.

On few samples a Floor, a threshold or the condition of a loop may by chance give what it gives in the float model, and
another result on the next ones. So the errors that such steps read are exchanged between samples, and the float model
behind the steps is run with them: all of its other values are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from onnx import ModelProto

from ..data import CalibrationSet
from ..errors import ModelError
from ..graph.edit import copy_model
from ..graph.extract import infer_types
from ..graph.index import Index
from ..graph.passes.normalise import name_nodes
from ..graph.steps import Step, Tail, cut_tail, find_layers_before, find_steps, is_step
from ..numeric.metrics import TINY, Comparison
from ..progress import track
from ..report import OutputRecord, list_judged, name_some
from ..runtime.session import Session
from .batches import BATCH_BYTES
from .ordering import describe_orders, find_same
from .output_parts import Parts
from .output_tally import OutputTally
from .padding_mask import PaddingMask, find_real

_Run = tuple[Mapping[str, Any], int]  # feeds, and their samples
_Measured = tuple[dict[str, float], dict[str, float]]  # SQNR by output, and by step the share of values that jump

# Samples on which what steps read is compared.
FLIPS = 32
# Samples whose margins are looked at; pairs of one of them and the errors of another, about; exchanges at most.
SAMPLES, PAIRS, MOST_EXCHANGES = 256, 1024, 16
# A measured SQNR that is more than so many dB above the expected one was luck.
LUCK = 2.0
# Steps explain an output below LEAST_DB where they alone leave no more than so many dB above what it has.
EXPLAINED, LEAST_DB = 3.0, 30.0
# A node that small errors pass through jumped where its error has so many times the power of the median sample's.
JUMP = 100.0


class Flip(NamedTuple):
    """What is told of an output, or of a part of one, and the SQNR that steps leave it on other data, where known."""

    output: str
    text: str
    sqnr_db: float | None = None


def describe_flips(
    original: ModelProto,
    quantized: ModelProto,
    samples: CalibrationSet,
    outputs: Sequence[OutputRecord],
    *,
    batches: tuple[int, int],
    others: CalibrationSet | None = None,
    padding: PaddingMask | None = None,
    parts: Parts | None = None,
    threads: int = 0,
) -> Iterator[Flip]:
    """Each output that is bad through order alone, or that a step makes worse than the rest of the model.

    outputs: as they were measured on ``samples``. batches: the samples of each, and how many are run in both models.
    others: more samples, which the float model alone sees.
    """
    explained = set()
    for name, line in describe_orders(original, quantized, samples, outputs, batches=batches, threads=threads):
        explained.add(name)
        yield Flip(name, line)
    if not any(is_step(node) for node in original.graph.node):
        return
    named = copy_model(original)
    name_nodes(named)
    try:
        found = _Errors.of(named, quantized, samples, batches, threads)
        if found.steps:
            exchange = _Exchange.of(named, found, _list_runs(samples, others, batches[0]), threads)
            expected = exchange.measure(found.steps, padding, parts)
            told = [
                record
                for record in list_judged(outputs)
                if record.name.partition("[")[0] not in explained and exchange.is_telling(record, expected)
            ]
            one = len(found.steps) == 1
            alone = [
                (step, expected if one else exchange.measure([step], padding, parts))
                for step in track(found.steps if told else ())
            ]
            yield from (Flip(each.name, exchange.describe(each, alone), expected[0][each.name]) for each in told)
    except ModelError:  # what was measured stands without this
        return


def expect_flips(
    model: ModelProto,
    quantized: ModelProto,
    samples: CalibrationSet,
    batches: tuple[int, int],
    *,
    padding: PaddingMask | None = None,
    parts: Parts | None = None,
    pairs: int,
    threads: int = 0,
) -> dict[str, float]:
    """The SQNR that steps alone leave of each output, or part of one, where they read other values in both models.

    pairs: of one sample and the errors of another, about.
    """
    found = _Errors.of(model, quantized, samples, batches, threads)
    if not found.steps:
        return {}
    exchange = _Exchange.of(model, found, _list_runs(samples, None, batches[0]), threads)
    return exchange.measure(found.steps, padding, parts, pairs)[0]


def lower_expected(outputs: Sequence[OutputRecord], flips: Iterable[Flip]) -> tuple[OutputRecord, ...]:
    """The outputs with no more SQNR expected of other samples than their steps leave."""
    limits = {flip.output: flip.sqnr_db for flip in flips}

    def lower(record: OutputRecord) -> OutputRecord:
        expected, most = record.expected, limits.get(record.name)
        if expected is None or expected.sqnr_db is None or most is None or most >= expected.sqnr_db:
            return record
        low, high = expected.sqnr_interval or (most, most)
        return replace(record, expected=replace(expected, sqnr_db=most, sqnr_interval=(min(low, most), high)))

    return tuple(lower(replace(record, parts=tuple(map(lower, record.parts)))) for record in outputs)


def _list_runs(samples: CalibrationSet, others: CalibrationSet | None, size: int) -> Iterator[_Run]:
    """Batches of the samples, then of the others, until there are SAMPLES."""
    done = 0
    for each in (samples, *([] if others is None else [others])):
        for feeds in each.batches(size):
            if done >= SAMPLES:
                return
            done += each.count(feeds)
            yield feeds, each.count(feeds)


@dataclass(frozen=True)
class _Errors:
    """What the quantized model adds to what steps read.

    steps: those of which it changes anything that they read, which alone they name. rows: (step, tensor) -> the errors
    in each sample. compared: tensor -> float and quantized.
    """

    steps: list[Step]
    rows: dict[tuple[str, str], list[np.ndarray]]
    compared: dict[str, Comparison]

    @classmethod
    def of(
        cls,
        model: ModelProto,
        quantized: ModelProto,
        samples: CalibrationSet,
        batches: tuple[int, int],
        threads: int,
    ) -> _Errors:
        """The errors in some batches of the samples."""
        index, other = Index(model.graph), Index(quantized.graph)
        steps = find_steps(model, index, infer_types(model))
        pairs = ((step, tensor) for step in steps for tensor in step.tensors)
        same = {(step.name, t): name for step, t in pairs if (name := _find_same(other, index, step, t))}
        if not same:
            return cls([], {}, {})
        one = Session(model, also=[t for _, t in same], threads=threads)
        two = Session(quantized, also=list(same.values()), optimize=False, threads=threads)
        rows: dict[tuple[str, str], list[np.ndarray]] = {}
        compared: dict[str, Comparison] = {}
        for feeds in islice(samples.batches(batches[0]), batches[1]):
            count = samples.count(feeds)
            wanted, given = {**feeds, **one.run(feeds)}, {**feeds, **two.run(feeds)}
            for key, name in same.items():
                value, quant = wanted[key[1]], given.get(name)
                if isinstance(quant, np.ndarray) and quant.shape == value.shape:
                    compared.setdefault(key[1], Comparison()).add(value, quant, count)
                    finite = np.isfinite(value) & np.isfinite(quant)
                    error = np.subtract(quant, value, out=np.zeros_like(value), where=finite)
                    rows.setdefault(key, []).extend(_rows(error, count))
        moved = {key: errors for key, errors in rows.items() if any(each.any() for each in errors)}
        kept = (step._replace(tensors=tuple(t for t in step.tensors if (step.name, t) in moved)) for step in steps)
        return cls([step for step in kept if step.tensors], moved, compared)


@dataclass(frozen=True)
class _Exchange:
    """The part of the float model behind its steps, and what it reads in some batches.

    runs: the feeds of each batch, and its samples. values: of each batch, by the tail's inputs.
    """

    index: Index
    errors: _Errors
    tail: Tail
    session: Session
    runs: list[_Run]
    values: list[dict[str, Any]]

    @classmethod
    def of(cls, model: ModelProto, errors: _Errors, runs: Iterator[_Run], threads: int) -> _Exchange:
        """Reads batches until their values take BATCH_BYTES."""
        tail = cut_tail(model, errors.steps)
        before = Session(model, also=[*tail.given, *(t for _, t in tail.copies)], threads=threads)
        found = cls(
            Index(model.graph), errors, tail, Session(tail.model, name="the part behind steps", threads=threads), [], []
        )
        held = 0
        for feeds, count in runs:
            values = {**feeds, **before.run(feeds)}
            own = {t: values[t] for t in tail.given} | {copy: values[t] for (_, t), copy in tail.copies.items()}
            found.runs.append((feeds, count))
            found.values.append(own)
            held += sum(value.nbytes for value in own.values() if isinstance(value, np.ndarray))
            if held >= BATCH_BYTES:
                break
        return found

    def measure(
        self, steps: Sequence[Step], padding: PaddingMask | None, parts: Parts | None, pairs: int = PAIRS
    ) -> _Measured:
        """The SQNR of outputs with the errors of other samples in what these steps read, and each step's share."""
        tally = OutputTally(padding, parts)
        jumps = {step.name: _Jumps(step) for step in steps}
        moved = {self.tail.copies[step.name, t]: self.errors.rows[step.name, t] for step in steps for t in step.tensors}
        total = sum(count for _, count in self.runs)
        shifts = range(1, 1 + min(max(total - 1, 1), MOST_EXCHANGES, -(-pairs // total)))
        first = 0
        for (given, count), values in track([*zip(self.runs, self.values, strict=True)]):
            wanted, real = self.session.run(values), find_real(given)
            ends = {name: wanted[name] for name in self.tail.outputs}
            for shift in shifts:
                changed = {name: _add(values[name], rows, count, first + shift) for name, rows in moved.items()}
                found = self.session.run({**values, **changed})
                tally.add(ends, found, count, real)
                for step in steps:
                    jumps[step.name].add(wanted[step.output], found[step.output], count)
            first += count
        decibels = {r.name: r.sqnr_db for r in list_judged(tally.records()) if r.sqnr_db is not None}
        return decibels, {name: each.share for name, each in jumps.items()}

    def is_telling(self, record: OutputRecord, expected: _Measured) -> bool:
        """Whether an output is to be expected worse than measured, or is bad through steps for the most part."""
        decibels = expected[0].get(record.name)
        if record.sqnr_db is None or decibels is None:
            return False
        mixed = any(step.mixed for step in self.errors.steps)
        most = max(record.sqnr_db, *record.sqnr_interval) if record.sqnr_interval else record.sqnr_db
        explains = record.sqnr_db < LEAST_DB and decibels <= most + EXPLAINED and not mixed
        return decibels < record.sqnr_db - LUCK or explains

    def describe(self, record: OutputRecord, alone: Sequence[tuple[Step, _Measured]]) -> str:
        """The line of such an output, with the step that does most to it; alone: each step, as measured by itself."""
        found = [(decibels.get(record.name, np.inf), shares[step.name], step) for step, (decibels, shares) in alone]
        least, share, step = min(found, key=lambda each: each[0])
        read = ", ".join(f"{t} ({self.errors.compared[t].sqnr_db:.1f} dB)" for t in step.tensors)
        layers = find_layers_before(self.index, step)
        before = f"the layers in front of it ({name_some(layers)})" if layers else "what is in front of it"
        return (
            f"output {record.name}: {step.op} ({step.name}) makes whole steps of small errors in {read}, for"
            f" {100 * share:.2g}% of its {'samples' if step.mixed else 'values'}; that leaves {least:.1f} dB to be"
            f" expected, where {record.sqnr_db:.1f} are measured on these samples; leave {before} in float with"
            " exclude, or the step out of the model"
        )


@dataclass
class _Jumps:
    """Counts where a step's output jumps: each value that changes, or each sample where small errors pass through."""

    step: Step
    changed: int = 0
    count: int = 0
    errors: list[float] = field(default_factory=list)

    def add(self, wanted: Any, given: Any, samples: int) -> None:
        alike = _is_number(wanted) and _is_number(given) and wanted.shape == given.shape
        if alike and self.step.mixed:
            self.errors += map(_sum_squares, _rows(wanted, samples), _rows(given, samples))
        elif self.step.mixed:
            self.errors.append(np.inf)
        else:
            size = wanted.size if alike else 1
            self.changed, self.count = self.changed + int((wanted != given).sum() if alike else 1), self.count + size

    @property
    def share(self) -> float:
        if self.step.mixed:
            return float(np.mean(np.asarray(self.errors) > JUMP * max(float(np.median(self.errors)), TINY)))
        return self.changed / max(self.count, 1)


def _find_same(other: Index, index: Index, step: Step, tensor: str) -> str:
    """The tensor of the quantized model that stands for what a step reads; an empty text where none is found."""
    node = index.nodes[step.name]
    if tensor in node.input:
        return find_same(other, node, list(node.input).index(tensor))
    return tensor if tensor in other.producer else ""


def _add(value: np.ndarray, rows: Sequence[np.ndarray], count: int, first: int) -> np.ndarray:
    """A batch of what a step reads, with the errors of the samples from ``first`` on."""
    new = [each + np.resize(rows[(first + i) % len(rows)], each.shape) for i, each in enumerate(_rows(value, count))]
    return np.stack(new).reshape(value.shape).astype(value.dtype)


def _is_number(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub"


def _sum_squares(wanted: np.ndarray, given: np.ndarray) -> float:
    """The squared error of what is finite in both."""
    error = np.zeros(wanted.shape)
    np.subtract(wanted, given, out=error, where=np.isfinite(wanted) & np.isfinite(given), dtype=np.float64)
    return float(np.square(error).sum())


def _rows(value: np.ndarray, count: int) -> list[np.ndarray]:
    """The samples of a batch; the whole batch as one where axis 0 does not count them."""
    return list(value) if value.ndim and len(value) == count else [value]
