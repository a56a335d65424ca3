"""Whole models assembled of every set's own candidate: what they weigh, cost and lose."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from onnx import ModelProto

from ..data import CalibrationSet
from ..errors import ConfigError
from ..graph.save import model_bytes
from ..numeric.metrics import scores_classes, top_class
from ..quantization.calibrate import batch_size
from ..quantization.padding_mask import PaddingMask, find_real
from ..runtime.cache import Cache
from ..runtime.session import Session
from ..spec import BitSet, Candidate
from .allocate import Bits
from .sensitivity import JUDGES, divergence_of, judged_outputs


class Assembler:
    """Models of the sets' bits, each measured once; what the cache has is not measured again.

    emit: the model with all sets at these bits. rest: milliseconds of what belongs to no set. seconds: what was spent
    on measuring, and what the float model takes for the whole calibration set.
    """

    def __init__(
        self,
        original: ModelProto,
        emit: Callable[[Bits], ModelProto],
        samples: CalibrationSet,
        padding: PaddingMask,
        cache: Cache,
        *,
        threads: int,
    ) -> None:
        """``padding``: that of ``original``."""
        self.original, self.emit, self.samples, self.cache, self.threads = original, emit, samples, cache, threads
        self.sets: tuple[BitSet, ...] = ()
        self.rest = 0.0
        self.seconds = 0.0
        self._sizes: dict[Bits, int] = {}
        self._classes: dict[str, np.ndarray] | None = None
        self._float, self._padding = Session(original, threads=threads), padding
        self._size = min(batch_size(self._float, samples), JUDGES)
        start = time.perf_counter()
        self._judged = self._run_float(JUDGES)
        self.pass_seconds = (time.perf_counter() - start) * len(samples) / min(JUDGES, len(samples))
        self._names = judged_outputs([wanted for _, wanted, _ in self._judged])

    def _run_float(self, most: int) -> list[tuple[Mapping, dict, Callable]]:
        """The first samples, at least so many if there are, as ``divergence_of`` takes them."""
        found, done = [], 0
        for feeds in self.samples.batches(self._size):
            blank = partial(self._padding.blank, real=find_real(feeds))
            outputs = self._float.run(feeds)
            found.append((feeds, {name: blank(name, value) for name, value in outputs.items()}, blank))
            done += self.samples.count(feeds)
            if done >= most:
                break
        return found

    def size(self, bits: Bits) -> int:
        """Bytes of the file."""
        if bits not in self._sizes:
            self._sizes[bits] = model_bytes(self.emit(bits))
        return self._sizes[bits]

    def bops(self, bits: Bits) -> int:
        """MACs times both bits, of one sample."""
        return sum(each.costs[c].bops for each, c in zip(self.sets, bits, strict=True))

    def milliseconds(self, bits: Bits) -> float:
        """The sum of the sets' times and the rest."""
        return self.rest + sum(each.costs[c].milliseconds for each, c in zip(self.sets, bits, strict=True))

    def loss(self, bits: Bits) -> float:
        """Divergence of the outputs on the first JUDGES samples."""

        def measure() -> float:
            return divergence_of(self._open(bits), self._judged, self._names)

        return self._timed(f"loss {_spell(bits)}", measure)

    def agreement(self, bits: Bits) -> float:
        """% of all samples whose top class is the float model's, of the output in which they agree least.

        Raises ConfigError where no output is class scores.
        """

        def measure() -> float:
            wanted = self._top_classes()
            session = self._open(bits)
            given = self._run(session, list(wanted))
            return min(
                100.0 * float(np.mean(np.concatenate([top_class(each[name]) for each in given]) == classes))
                for name, classes in wanted.items()
            )

        return self._timed(f"agreement {_spell(bits)}", measure)

    def _top_classes(self) -> dict[str, np.ndarray]:
        """The float model's top class of every sample, by output. Raises ConfigError where none is class scores."""
        if self._classes is None:
            given = self._run(self._float, self._names)
            scores = [name for name in self._names if all(scores_classes(each[name].shape) for each in given)]
            if not scores:
                raise ConfigError(
                    "max_disagreement: found no class scores in the outputs; it limits the agreement of the top class;"
                    " give max_loss"
                )
            self._classes = {name: np.concatenate([top_class(each[name]) for each in given]) for name in scores}
        return self._classes

    def _run(self, session: Session, names: Sequence[str]) -> list[Mapping[str, Any]]:
        """Outputs of all samples, batch by batch, in which padding is no top class."""
        found = []
        for feeds in self.samples.batches(self._size):
            found.append(self._padding.hide(session.run(feeds, names), find_real(feeds)))
        return found

    def _open(self, bits: Bits) -> Session:
        return Session(self.emit(bits), threads=self.threads)

    def _timed(self, name: str, measure: Callable[[], float]) -> float:
        start = time.perf_counter()
        found = self.cache.recall(name, measure)
        self.seconds += time.perf_counter() - start
        return found


def _spell(bits: Sequence[Candidate]) -> str:
    return " ".join(map(str, bits))
