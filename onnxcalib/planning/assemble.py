"""Assemble models of every set at its chosen candidate, and measure their size, costs, loss and agreement."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from onnx import ModelProto

from ..data import CalibrationSet
from ..errors import ConfigError
from ..graph.constants import constant_bytes, count_weights
from ..graph.stream import model_bytes
from ..numeric.metrics import lay_rows, scores_classes, top_class
from ..quantization.batches import batch_size
from ..quantization.class_axes import list_values
from ..quantization.compared import Compared, find_comparable_outputs
from ..quantization.output_parts import Parts
from ..quantization.padding_mask import PaddingMask, find_real
from ..runtime.cache import Cache
from ..runtime.session import Session
from ..spec import BitSet
from .bits import Bits
from .loss import LOSS_POSITIONS, USUAL, Extent, ReferenceBatch, divergence_of


class Assembler:
    """Models assembled at the bits of all sets. Each is measured once, or not at all where the cache has the result.

    seconds: time spent on measuring. pass_seconds: time of the float model over the whole calibration set.
    """

    def __init__(
        self,
        original: ModelProto,
        emit: Callable[[Bits], ModelProto],
        samples: CalibrationSet,
        padding: PaddingMask,
        cache: Cache,
        *,
        parts: Parts | None = None,
        class_axes: Mapping[str, int] | None = None,
        measure: Callable[[Bits], float] | None = None,
        sets: tuple[BitSet, ...],
        rest: float,
        threads: int,
        fused: bool = True,
        compared: Compared | None = None,
        emit_empty: Callable[[Bits], ModelProto] | None = None,
        extent: Extent = USUAL,
    ) -> None:
        """``emit`` makes the model at these bits; ``padding`` and ``parts`` are those of ``original``; class_axes:
        see ``find_class_axes``; ``rest`` are milliseconds of a run that belong to no set. fused: whether models at any
        bits run with onnxruntime's optimizations. measure: finds the loss at these bits otherwise than of the model.
        compared: the outputs by which the loss is measured, where these are not all. emit_empty: makes a file of the
        same size as ``emit``. extent: of the samples by which losses are measured."""
        self.original, self.emit, self.samples, self.cache, self.threads = original, emit, samples, cache, threads
        self.sets, self.rest, self.fused = sets, rest, fused
        self.seconds = 0.0
        self._sizes: dict[Bits, int] = {}
        self._constants: dict[Bits, int] = {}
        self.weights = max(1, count_weights(original))
        self._compared, self._emit_empty = compared, emit_empty or emit
        self._classes: dict[str, np.ndarray] | None = None
        self._measure, self._extent = measure, extent
        self._parts, self._axes = parts, class_axes or {}
        self._float, self._padding = Session(original, threads=threads), padding
        self._batch_size = min(batch_size(self._float, samples), extent.most)
        start = time.perf_counter()
        self._references = self._run_float()
        self.pass_seconds = (time.perf_counter() - start) * len(samples) / min(extent.most, len(samples))
        self._names = (
            find_comparable_outputs([batch.outputs for batch in self._references])
            if compared is None
            else list(compared.names)
        )

    def _run_float(self) -> list[ReferenceBatch]:
        """The first batches, of the most samples of losses if there are as many, or of LOSS_POSITIONS positions."""
        found, done, most = [], 0, self._extent.most
        if self._compared is not None:
            most = min(most, max(1, LOSS_POSITIONS // self._compared.positions))
        wanted = None if self._compared is None else self._compared.names
        for feeds in self.samples.batches(self._batch_size):
            blank = partial(self._padding.fill_padding, real=find_real(feeds))
            outputs = {name: blank(name, value) for name, value in self._float.run(feeds, wanted).items()}
            found.append(ReferenceBatch(feeds, outputs, blank, self._parts))
            done += self.samples.count(feeds)
            if done >= most:
                break
        return found

    def size(self, bits: Bits) -> int:
        """Bytes of the file."""
        if bits not in self._sizes:
            self._weigh(bits)
        return self._sizes[bits]

    def bits_per_weight(self, bits: Bits) -> float:
        """See ``graph.constants``."""
        if bits not in self._constants:
            self._weigh(bits)
        return 8 * self._constants[bits] / self.weights

    def other_bytes(self, bits: Bits) -> int:
        """Bytes of the file that are no values of constants: its nodes and names."""
        return self.size(bits) - self._constants[bits]

    def _weigh(self, bits: Bits) -> None:
        model = self._emit_empty(bits)
        self._sizes[bits], self._constants[bits] = model_bytes(model), constant_bytes(model)

    def bops(self, bits: Bits) -> int:
        """Bit operations of one sample: multiplications times the bits of both factors."""
        return sum(each.costs[c].bops for each, c in zip(self.sets, bits, strict=True))

    def milliseconds(self, bits: Bits) -> float:
        """Time of one run: the sum of the sets' times, and what belongs to no set."""
        return self.rest + sum(each.costs[c].milliseconds for each, c in zip(self.sets, bits, strict=True))

    def loss(self, bits: Bits) -> float:
        """Divergence of the outputs on the first samples."""

        if (measure := self._measure) is not None:
            return self._recall(f"loss of activations {_spell(bits)}", lambda: measure(bits))
        return self._recall(
            f"loss {_spell(bits)}",
            lambda: divergence_of(
                self._open(bits),
                self._references,
                self._names,
                None if self._compared is None else self._compared.axes,
                extent=self._extent,
            ),
        )

    def agreement(self, bits: Bits) -> float:
        """% of all answers whose top class is the float model's; the lowest among the outputs of class scores.

        Raises ConfigError where there is no output of class scores.
        """

        def measure() -> float:
            wanted = self._top_classes()
            given = self._find_answers(self._open(bits))
            return min(100.0 * float(np.mean((given[name] == each)[each >= 0])) for name, each in wanted.items())

        return self._recall(f"agreement {_spell(bits)}", measure)

    def _top_classes(self) -> dict[str, np.ndarray]:
        """The float model's top classes of all samples, by output of class scores. Raises ConfigError without any."""
        if self._classes is None:
            scores = self._find_answers(self._float)
            if not scores:
                raise ConfigError(
                    "max_disagreement: found no class scores in the outputs; it limits the agreement of the top class;"
                    " give max_loss, or class_axis where there are some"
                )
            self._classes = {name: found for name, found in scores.items() if (found >= 0).any()}
            if not self._classes:
                raise ConfigError(
                    f"max_disagreement: found no finite class scores in output {next(iter(scores))} of the float model;"
                    " agreement needs some; check the preprocessing of the samples"
                )
        return self._classes

    def _find_answers(self, session: Session) -> dict[str, np.ndarray]:
        """A model's top classes of all samples, by output, or part of one, that is class scores in all batches.

        They have an entry a sample, or a position where ``class_axes`` has the output. Padding is no top class.
        """
        found: list[dict[str, np.ndarray]] = []
        for feeds in self.samples.batches(self._batch_size):
            outputs = self._padding.mask_outputs(session.run(feeds, self._names), find_real(feeds))
            rows: dict[str, np.ndarray] = {}
            for name, value in list_values(outputs, self._parts):
                if (axis := self._axes.get(name)) is not None:
                    rows[name] = lay_rows(value, axis)
                elif name in outputs and scores_classes(value.shape):
                    rows[name] = value
            found.append({name: top_class(value) for name, value in rows.items()})
        names = [name for name in found[0] if all(name in each for each in found)]
        return {name: np.concatenate([each[name] for each in found]) for name in names}

    def _open(self, bits: Bits) -> Session:
        return Session(self.emit(bits), optimize=self.fused, threads=self.threads)

    def _recall(self, name: str, measure: Callable[[], float]) -> float:
        """The measurement that the cache has, or else a new one, whose time is counted."""
        start = time.perf_counter()
        found = self.cache.recall(name, measure, float)
        self.seconds += time.perf_counter() - start
        return found


def _spell(bits: Bits) -> str:
    return " ".join(map(str, bits))
