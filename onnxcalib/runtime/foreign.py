"""Run a file in the runtime of a target, in a process of its own, which may crash without ending this one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import numpy as np
from onnx import ModelProto

from ..errors import ModelError
from ..files.scratch import Scratch
from ..graph.edit import copy_model
from ..graph.passes.normalise import name_nodes
from ..graph.save import save_model
from .openvino_file import open_openvino
from .placement import File, Opened, Placement
from .processes import NoAnswer, Workers, open_workers
from .qnn_file import open_qnn

# The largest file that is written whole; onnxruntime and OpenVINO read the tensors of larger ones from a second file.
MOST_BYTES = 2**28
STDERR = 2
MOST_SHOWN = 300  # characters of what a runtime says


@dataclass(frozen=True)
class Runtime:
    """A runtime that can be run here.

    extra: of this package, which installs it. fixed: a file has one shape. timed: it is the device, and no simulator.
    """

    open: Callable[[File], Opened]
    extra: str
    fixed: bool = False
    timed: bool = False


@dataclass(frozen=True)
class Timed:
    """A task of the worker: the time of one run of these inputs is wanted, and not its outputs."""

    feeds: Mapping[str, np.ndarray]


# The package of a runtime, as targets name it -> how it runs a file.
RUNTIMES = {
    "openvino": Runtime(open_openvino, "openvino", timed=True),
    "onnxruntime_qnn": Runtime(open_qnn, "qnn", fixed=True),
}


def find_runtime(package: str | None) -> tuple[Runtime | None, str]:
    """The runtime of a package where it is installed; else None, and what would run files, if that is known."""
    runtime = RUNTIMES.get(package or "")
    if package is None or runtime is None:
        return None, ""
    if find_spec(package) is None:
        return None, f"{package}, which runs it, is not installed; pip install 'onnxcalib[{runtime.extra}]'"
    return runtime, ""


class ForeignSession:
    """A model in a target's runtime. Where that fails, hangs or ends its process, methods raise ModelError."""

    def __init__(self, package: str, workers: Workers, outputs: list[str], seconds: float) -> None:
        self._package, self._workers, self._outputs, self._seconds = package, workers, outputs, seconds

    def place(self) -> Placement:
        """Compile the file, and say what runs where."""
        found: Placement = self._ask("compile", None)
        return found

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name."""
        return dict(zip(self._outputs, self._ask("run", dict(feeds)), strict=True))

    def clock(self, feeds: Mapping[str, np.ndarray]) -> float:
        """Seconds of one run, without those between the processes."""
        found: float = self._ask("run", Timed(dict(feeds)))
        return found

    def _ask(self, what: str, task: Any) -> Any:
        try:
            ((_, answer),) = self._workers.run(answer_task, {what: task}, seconds=self._seconds)
        except NoAnswer:
            raise ModelError(
                f"{self._package} did not {what} the file within {self._seconds:g} s, and its process was ended; give"
                " device_timeout more seconds"
            ) from None
        except BrokenExecutor:
            raise ModelError(f"{self._package} ended its process when it was to {what} the file") from None
        except Exception as error:  # runtimes raise what they like
            raise ModelError(f"{self._package} cannot {what} the file: {_spell(error)}") from None
        return answer


@contextmanager
def open_foreign(
    package: str, model: ModelProto, feeds: Mapping[str, np.ndarray], threads: int, *, seconds: float
) -> Iterator[ForeignSession]:
    """The model in the runtime of this package, for runs of inputs of the shapes of ``feeds``. Raises ModelError.

    seconds: in which the runtime must have compiled the file, and made each run.
    """
    runtime, _ = find_runtime(package)
    assert runtime is not None, "find_runtime says whether it is installed"
    with Scratch() as folder:
        named = copy_model(model)
        name_nodes(named)
        save_model(named, folder / "model.onnx", most_bytes=MOST_BYTES, lasting=False)
        shapes = tuple((name, value.shape) for name, value in feeds.items())
        file = File(runtime.open, folder / "model.onnx", folder / "log", shapes, threads)
        with open_workers(file, 1) as workers:
            yield ForeignSession(package, workers, [output.name for output in model.graph.output], seconds)


def spell_runtime(package: str) -> str:
    """The package with its version."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:  # a module without metadata
        return package


def _spell(error: Exception) -> str:
    """What a runtime says in one line, without the place in its own source, with which OpenVINO begins."""
    lines = [line.strip() for line in str(error).splitlines() if not line.startswith("Exception from ")]
    return " ".join(filter(None, lines))[:MOST_SHOWN] or type(error).__name__


def answer_task(file: File, task: Mapping[str, np.ndarray] | Timed | None) -> Any:
    """What the worker does: the placement without a task, else the outputs in the order of the graph's, or a time."""
    opened, placement = _open(file)
    if isinstance(task, Timed):
        start = time.perf_counter()
        opened.run(task.feeds)
        return time.perf_counter() - start
    return placement if task is None else opened.run(task)


@cache
def _open(file: File) -> tuple[Opened, Placement]:
    """The file in its runtime, and its placement. What a runtime writes on standard error goes into the log."""
    with open(file.log, "wb") as log:
        os.dup2(log.fileno(), STDERR)
    try:
        opened = file.open(file)
        return opened, opened.place()
    finally:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), STDERR)
