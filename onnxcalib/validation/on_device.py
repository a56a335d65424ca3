"""Run a quantized file in the runtime of its target, beside onnxruntime and the float model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from onnx import ModelProto

from ..data import CalibrationSet
from ..errors import GateError, ModelError
from ..progress import track
from ..quantization.output_parts import Parts
from ..quantization.output_tally import EMPTY, OutputTally
from ..quantization.padding_mask import PaddingMask, find_real
from ..runtime.foreign import ForeignSession, find_runtime, open_foreign, spell_runtime
from ..runtime.placement import Placement
from ..runtime.session import Session
from ..targets import Target
from ..verdict import DeviceRecord, OffRecord
from .timing import clock_on_device

# Seconds after which no further samples are run: simulators take up to some seconds a sample.
SECONDS = 60.0


def check_placed(target: Target | None) -> None:
    """Raise GateError where nothing here tells which nodes the device of a target runs."""
    if target is None:
        raise GateError("min_placed: found no target; the runtime of one places the nodes; give --target too")
    runtime, missing = find_runtime(target.runtime)
    if runtime is None:
        none = f"min_placed: target {target.name} has no runtime here"
        if missing:
            raise GateError(f"{none}: {missing}, or leave --min-placed out")
        raise GateError(f"{none} that tells placement; openvino and qnn have one; leave --min-placed out")


class _Run:
    """One file on one device: the samples run, and how the outputs compare."""

    def __init__(self, padding: PaddingMask, parts: Parts, axes: Mapping[str, int]) -> None:
        self.samples, self.seconds = 0, 0.0
        self.placement: Placement | None = None
        self.fault = ""
        self._tallies = [OutputTally(padding, parts, class_axes=axes) for _ in range(3)]

    def run(
        self, device: ForeignSession, sessions: tuple[Session, Session], samples: CalibrationSet, *, fixed: bool
    ) -> None:
        """Run samples until the time is up; fixed: only those of the shapes of the first."""
        self.placement = device.place()
        original, unoptimized = sessions
        start, shapes = time.perf_counter(), None
        for batch in track(samples.split(1), len):
            feeds = samples.read(batch)
            given = {name: value.shape for name, value in feeds.items()}
            shapes = shapes or given
            if fixed and given != shapes:
                continue
            outputs = device.run(feeds)
            wanted, exact, real = original.run(feeds), unoptimized.run(feeds), find_real(feeds)
            pairs = (wanted, outputs), (exact, outputs), (wanted, exact)
            for tally, pair in zip(self._tallies, pairs, strict=True):
                tally.add(*pair, len(batch), real)
            self.samples += len(batch)
            self.seconds = time.perf_counter() - start
            if self.seconds > SECONDS:
                return

    def _find_fault(self) -> str:
        """Why the outputs of the device are no outputs of this model; empty where they are."""
        tally = self._tallies[0]
        for name, why in tally.missed.items():
            if why != EMPTY:
                return f"output {name} on the device could not be compared with the float model's: {why}"
        for record in tally.records():
            if record.broken:
                return f"{record.broken:,} values of output {record.name} are not finite on the device"
        return ""

    def record(self, runtime: str) -> DeviceRecord:
        """What was found, whether or not the run came to its end."""
        of, total, off = (
            ("", 0, ()) if self.placement is None else (self.placement.of, self.placement.total, self.placement.off)
        )
        found = [tally.records() if self.samples else () for tally in self._tallies]
        return DeviceRecord(
            runtime,
            self.fault or self._find_fault(),
            of,
            total,
            tuple(OffRecord(each.node, each.op, each.reason) for each in off),
            self.samples,
            self.seconds,
            against_float=found[0],
            against_unoptimized=found[1],
            onnxruntime=found[2],
        )


def run_on_device(
    package: str,
    models: tuple[ModelProto, ModelProto],
    samples: CalibrationSet,
    *,
    padding: PaddingMask,
    parts: Parts,
    axes: Mapping[str, int],
    threads: int,
    seconds: float,
) -> DeviceRecord:
    """The quantized one of both models in the runtime of an installed package; a fault of that is in the record."""
    original, quantized = models
    runtime, _ = find_runtime(package)
    sessions = (
        Session(original, name="the float model", threads=threads),
        Session(quantized, name="the quantized model", optimize=False, threads=threads),
    )
    run = _Run(padding, parts, axes)
    first = samples.read(samples.split(1)[0])
    with open_foreign(package, quantized, first, threads, seconds=seconds) as device:
        try:
            run.run(device, sessions, samples, fixed=runtime is not None and runtime.fixed)
        except ModelError as error:
            run.fault = str(error)
    record = run.record(spell_runtime(package))
    if record.fault or runtime is None or not runtime.timed:
        return record
    try:
        speedup, interval = clock_on_device(package, models, samples, seconds)
    except ModelError:  # of the float model, which no gate is about
        return record
    return replace(record, speedup=speedup, speedup_interval=interval)
