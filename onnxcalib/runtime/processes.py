"""Worker processes of this machine: they end with this one, and import nothing from the current folder.

Each is a Python of its own at the other end of a pair of sockets. There are no locks, semaphores or files beside them
that a killed process could leave.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..files.scratch import Scratch, room_in
from .cores import count_cores
from .task_queue import TaskQueue

Function = Callable[[Any, Any], Any]
# Python's own modules are found without the current folder. All others are found where this process finds them.
START = """
import sys
from multiprocessing.connection import Connection
pipe = Connection({pipe})
try:
    sys.path[:] = pipe.recv()
except (EOFError, OSError):  # this process has ended already
    sys.exit(1)
from onnxcalib.runtime.worker import serve
serve(pipe, {parent})
"""
# The numbers of files below it are those of standard streams, which other files have where a stream is closed.
FIRST_FREE = 3
# Options of Python that say where it looks for modules.
FLAGS = {"isolated": "-I", "ignore_environment": "-E", "no_user_site": "-s", "no_site": "-S"}


class NoAnswer(Exception):
    """No worker gave a result in time."""


@dataclass(frozen=True)
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: Connection

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()


class Workers:
    """Processes that hold ``common``, which lies in a file of theirs."""

    def __init__(self, common: Path) -> None:
        self._common = common
        self._workers: list[_Worker] = []

    def start(self, environment: Mapping[str, str]) -> None:
        """Start one more. Raises ConfigError where the system refuses it."""
        try:
            pipe, other = _make_pipe()
            with other, _without_interrupts():
                process = subprocess.Popen(
                    [
                        sys.executable,
                        *(flag for name, flag in FLAGS.items() if getattr(sys.flags, name)),
                        "-P",
                        "-c",
                        START.format(pipe=other.fileno(), parent=os.getpid()),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,  # this process' own is for results
                    stderr=subprocess.DEVNULL if sys.__stderr__ is None else None,
                    env={**os.environ, **environment},
                    pass_fds=[other.fileno()],
                )
        except OSError as error:
            raise ConfigError(
                f"jobs: no worker process can be started ({error.strerror or error}); take fewer, or --jobs 1"
            ) from None
        self._workers.append(_Worker(process, pipe))
        _send(pipe, pickle.dumps([each for each in sys.path if isinstance(each, str)]))

    def run(
        self,
        function: Function,
        tasks: Mapping[Hashable, Any],
        costs: Mapping[Hashable, float] | None = None,
        *,
        seconds: float | None = None,
    ) -> Iterator[tuple[Hashable, Any]]:
        """Yield (key, function(common, task)) in the order in which the tasks end; costs: as ``TaskQueue`` has them.

        What a task raises is raised here. Raises BrokenExecutor where a worker ends before its task, and NoAnswer where
        none gives a result for so many seconds: all of them are ended then.
        """
        queue, busy = TaskQueue(tasks, costs), dict[Connection, Hashable]()

        def give(pipe: Connection) -> None:
            given = queue.take(pipe, self.size, alone=not busy)
            if given is not None:
                busy[pipe] = given[0]
                _send(pipe, pickle.dumps((function, self._common, given[1])))

        for worker in self._workers:
            give(worker.pipe)
        while busy:
            ready = wait(list(busy), seconds)
            if not ready:
                self.end()
                raise NoAnswer
            for pipe in ready:
                assert isinstance(pipe, Connection)
                key = busy.pop(pipe)
                done, value = _receive(pipe)
                if not done:
                    raise value
                give(pipe)
                yield key, value

    @property
    def size(self) -> int:
        return len(self._workers)

    def ask(self, function: Function, tasks: Sequence[Any]) -> list[Any]:
        """``function(common, task)`` of each task, in their order: the first worker has the first task.

        There are no more tasks than workers. One that is None is none, and has the result None. Raises as ``run``.
        """
        asked = {place: self._workers[place].pipe for place, task in enumerate(tasks) if task is not None}
        for place, pipe in asked.items():
            _send(pipe, pickle.dumps((function, self._common, tasks[place]), pickle.HIGHEST_PROTOCOL))
        found: list[Any] = [None] * len(tasks)
        for place, pipe in asked.items():
            done, found[place] = _receive(pipe)
            if not done:
                raise found[place]
        return found

    def end(self) -> None:
        while self._workers:
            self._workers.pop().end()


@contextmanager
def open_workers(common: Any, count: int) -> Iterator[Workers]:
    """Worker processes for ``run``, which end with the context. Their temporary files are removed with it.

    Raises OutputError where ``common`` cannot be handed over.
    """
    with Scratch() as folder:
        path = folder / "common"
        with room_in(folder), open(path, "wb") as file:
            pickle.dump(common, file, pickle.HIGHEST_PROTOCOL)
        threads = str(max(1, count_cores() // count))
        workers = Workers(path)
        try:
            for _ in range(count):
                workers.start({"OMP_NUM_THREADS": threads, "TMPDIR": str(folder)})
            yield workers
        finally:
            workers.end()


def _make_pipe() -> tuple[Connection, Connection]:
    """This process' end of a pipe, and that of a worker, whose standard streams must not replace it."""
    own, other = Pipe()
    with other:
        return own, Connection(fcntl.fcntl(other.fileno(), fcntl.F_DUPFD_CLOEXEC, FIRST_FREE))


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process that is started here never sees a Ctrl-C, which the terminal sends to all: this process ends it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send(pipe: Connection, data: bytes) -> None:
    try:
        pipe.send_bytes(data)
    except OSError as error:
        raise BrokenExecutor("a worker ended") from error


def _receive(pipe: Connection) -> tuple[bool, Any]:
    try:
        data = pipe.recv_bytes()
    except (EOFError, OSError) as error:
        raise BrokenExecutor("a worker ended") from error
    done, value = pickle.loads(data)
    return done, value
