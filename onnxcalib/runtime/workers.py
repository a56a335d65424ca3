"""Run independent tasks in worker processes of this machine or on a Dask cluster, with the same results."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from threading import Thread
from typing import Any, Protocol

from ..errors import ConfigError, first_line
from .cores import count_cores
from .processes import Function, open_workers
from .task_queue import TaskQueue
from .worker import Shipped, run_pickled

# How often tasks are tried whose workers end before them.
LOSSES = 3
# Seconds within which a cluster must answer.
PATIENCE = 10
# Above which size of a task Dask warns: of none. Integers of layers and probes may take more than its 10 MB.
LARGE_TASK = {"distributed.admin.large-graph-warning-threshold": "1PB"}

# Of each task; None: all cost the same.
Costs = Mapping[Hashable, float] | None


class _Runner(Protocol):
    def run(
        self, function: Function, tasks: Mapping[Hashable, Any], costs: Costs
    ) -> Iterator[tuple[Hashable, Any]]: ...

    def ask(self, function: Function, tasks: Sequence[Any]) -> list[Any]: ...

    @property
    def size(self) -> int: ...


def count_jobs(threads: int) -> int:
    """The number of workers, of this many threads each, for which this process has cores."""
    return max(1, count_cores() // threads)


def run_tasks(
    function: Function,
    common: Any,
    tasks: Mapping[Hashable, Any],
    *,
    jobs: int = 1,
    scheduler: str | None = None,
    costs: Costs = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[Hashable, Any]]:
    """Yield (key, function(common, task)) for every task, in the order in which they end.

    With one job, tasks run in this process, one after the other. Otherwise ``function``, ``common``, tasks and results
    are pickled; ``common`` is sent to each worker once. Workers begin tasks as ``TaskQueue`` says. What a task
    raises is raised here. Tasks of workers that end early are run again; raises ConfigError after LOSSES such attempts.
    """
    if scheduler is None and (jobs == 1 or len(tasks) == 1):
        yield from ((key, function(common, task)) for key, task in tasks.items())
        return
    waiting = dict(tasks)
    for left in reversed(range(LOSSES)):
        try:
            with _open(common, jobs, scheduler) as runner:
                for key, result in runner.run(function, dict(waiting), costs):
                    del waiting[key]
                    yield key, result
                return
        except (BrokenExecutor, CancelledError):
            if left:
                warn(f"a worker was lost; {len(waiting)} of {len(tasks)} tasks are run again")
    raise _explain_losses(scheduler)


def _open(common: Any, jobs: int, scheduler: str | None) -> AbstractContextManager[_Runner]:
    return open_workers(common, jobs) if scheduler is None else _open_cluster(common, scheduler)


def _explain_losses(scheduler: str | None) -> ConfigError:
    setting, remedy = ("jobs", "take fewer, or --jobs 1") if scheduler is None else ("scheduler", "give them more")
    return ConfigError(
        f"{setting}: workers ended before their task {LOSSES} times; each needs memory for the model and its samples;"
        f" {remedy}"
    )


class Team:
    """Workers of which each has a part of the work that stays with it, so that a task goes where the one before went.

    Use as a context manager.
    """

    def __init__(
        self, common: Any, *, jobs: int, scheduler: str | None = None, warn: Callable[[str], None] = lambda text: None
    ) -> None:
        """As ``run_tasks``."""
        self._open = partial(_open, common, jobs, scheduler)
        self._scheduler, self._warn = scheduler, warn
        self._opened = ExitStack()

    def __enter__(self) -> Team:
        self._runner = self._opened.enter_context(self._open())
        return self

    def __exit__(self, *_exception: object) -> None:
        self._opened.close()

    @property
    def size(self) -> int:
        """How many workers there are, of which each may have one task at a time."""
        return self._runner.size

    def ask(self, function: Function, tasks: Sequence[Any]) -> list[Any]:
        """``function(common, task)`` of each task, in their order; None for a task that is None.

        All are run again where a worker is lost: those that come in its place, or all, know nothing of earlier tasks.
        Raises ConfigError after LOSSES such attempts.
        """
        for left in reversed(range(LOSSES)):
            try:
                return self._runner.ask(function, tasks)
            except (BrokenExecutor, CancelledError):
                if left:
                    self._warn("a worker was lost; its share of the samples is run again")
                    self._opened.close()
                    self._runner = self._opened.enter_context(self._open())
        raise _explain_losses(self._scheduler)


class _Cluster:
    """The workers of a cluster, to which ``common`` was sent."""

    def __init__(self, client: Any, common: Any) -> None:
        self._executor, self._common = client.get_executor(pure=False), common
        self._client, self._homes = client, list[str]()

    @property
    def size(self) -> int:
        return len(self._count_threads()) or 1  # where all have ended since, ``ask`` waits for another one

    def _count_threads(self) -> dict[str, int]:
        """The threads of each worker. Raises BrokenExecutor where the scheduler has ended."""
        try:
            threads: dict[str, int] = self._client.ncores()
        except OSError as error:
            raise BrokenExecutor(first_line(error)) from error
        return threads

    def _find_alive(self) -> dict[str, int]:
        """The same. Raises BrokenExecutor where no worker comes in time in place of those that ended."""
        try:
            self._client.wait_for_workers(1, PATIENCE)
        except (OSError, TimeoutError) as error:
            raise BrokenExecutor(first_line(error)) from error
        alive = self._count_threads()
        if not alive:  # it has ended since
            raise BrokenExecutor("no worker is left")
        return alive

    def run(
        self, function: Function, tasks: Mapping[Hashable, Any], costs: Costs = None
    ) -> Iterator[tuple[Hashable, Any]]:
        """A worker gets its next task when it has ended one.

        By itself Dask gives workers more than they work on, and moves these to others later: those have to begin
        anew where they had gone on from task to task.
        """
        queue, busy = TaskQueue(tasks, costs), dict[Future[Any], tuple[Hashable, str]]()
        while queue or busy:
            alive = self._count_threads() if busy else self._find_alive()
            for home, threads in sorted(alive.items()):
                free = max(0, threads - sum(home == other for _, other in busy.values()))
                for _ in range(free):
                    given = queue.take(home, sum(alive.values()), alone=not busy)
                    if given is None:
                        break
                    key, task = given
                    future = self._executor.submit(
                        run_pickled, _pickle(function, task), self._common, workers=[home], allow_other_workers=True
                    )
                    busy[future] = key, home
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                yield busy.pop(future)[0], future.result()

    def ask(self, function: Function, tasks: Sequence[Any]) -> list[Any]:
        """Each task goes to the worker that had the one of its place before, or, where that is lost, to another.

        A worker has several where there are fewer workers than tasks, as some may have ended since ``size`` was asked.
        """
        from distributed.scheduler import KilledWorker

        alive = sorted(self._find_alive())
        homes = self._homes or [""] * len(tasks)
        self._homes = [home if home in alive else alive[place % len(alive)] for place, home in enumerate(homes)]
        options = {"allow_other_workers": True, "pure": False}
        futures = [
            None
            if task is None
            else self._client.submit(run_pickled, _pickle(function, task), self._common, workers=[home], **options)
            for task, home in zip(tasks, self._homes, strict=True)
        ]
        try:
            return [None if future is None else future.result() for future in futures]
        except KilledWorker as error:
            raise BrokenExecutor(str(error)) from error


def _pickle(function: Function, task: Any) -> bytes:
    return pickle.dumps((function, task), pickle.HIGHEST_PROTOCOL)


@contextmanager
def _open_cluster(common: Any, scheduler: str) -> Iterator[_Runner]:
    """The workers of a cluster, which itself runs lost tasks again while one of its workers has ``common``.

    Raises ConfigError where Dask is not installed, or no scheduler or worker answers.
    """
    try:
        from dask import config
        from distributed import Client
        from distributed.scheduler import KilledWorker
    except ImportError:
        raise ConfigError(
            f"scheduler: found {scheduler}, but Dask is not installed; install onnxcalib[dask], or leave it out"
        ) from None
    client, fault = _connect(partial(Client, scheduler, timeout=PATIENCE, set_as_default=False))
    if client is None:
        raise ConfigError(
            f"scheduler: found {scheduler}: {fault}; the address of a running Dask scheduler is needed"
        ) from None
    with client, config.set(LARGE_TASK):
        try:
            client.wait_for_workers(1, PATIENCE)
            shipped = client.scatter(Shipped(common), broadcast=True, hash=False)
        except (OSError, TimeoutError) as error:
            raise ConfigError(f"scheduler: found no worker at {scheduler}: {first_line(error)}; start some") from None
        try:
            yield _Cluster(client, shipped)
        except KilledWorker as error:
            raise BrokenExecutor(str(error)) from error


def _connect(make: Callable[[], Any]) -> tuple[Any, str]:
    """A client, or the reason why there is none.

    Made in a thread, as a server of another protocol at the same address would never answer.
    """
    found: list[Any] = [None, "no answer"]

    def run() -> None:
        try:
            found[0] = make()
        except Exception as error:  # Dask passes on whatever its transports raise
            found[1] = first_line(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(2 * PATIENCE)
    return found[0], found[1]
