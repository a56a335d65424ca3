"""Run independent tasks in worker processes of this machine or on a Dask cluster, with the same results."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
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
# Seconds between two looks for workers that have come or ended.
LOOK = 1.0
# Above which size of a task Dask warns: of none. Integers of layers and probes may take more than its 10 MB.
LARGE_TASK = {"distributed.admin.large-graph-warning-threshold": "1PB"}

# Of each task; None: all cost the same.
Costs = Mapping[Hashable, float] | None


# The address of a scheduler and the client that ``reach`` has connected to it.
_reached: ContextVar[tuple[str, Any] | None] = ContextVar("reached", default=None)


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
        self._client, self._common = client, common
        self._homes = list[str]()

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
        """Each thread of a worker has a task, and another that it goes on with, until there are few left.

        If a worker had more, Dask would move them to others, which would have to begin anew where they had gone on from
        task to task. With one alone it would wait for the next.
        """
        queue, busy = TaskQueue(tasks, costs), dict[Any, tuple[Hashable, str]]()
        ended: SimpleQueue[Any] = SimpleQueue()
        alive, asked = dict[str, int](), 0.0

        def give() -> None:
            nonlocal alive, asked
            if not busy or monotonic() > asked + LOOK:
                alive, asked = self._find_alive(), monotonic()
            for home in self._list_free(alive, [home for _, home in busy.values()], len(queue)):
                given = queue.take(home, sum(alive.values()), alone=not busy)
                if given is not None:
                    future = self._submit(home, function, given[1])
                    busy[future] = given[0], home
                    future.add_done_callback(ended.put)

        give()
        while busy:
            try:
                future = ended.get(timeout=LOOK)
            except Empty:
                give()
                continue
            key, _ = busy.pop(future)
            give()
            yield key, future.result()

    @staticmethod
    def _list_free(alive: Mapping[str, int], homes: Sequence[str], waiting: int) -> list[str]:
        """The workers that get a task each; homes: those of tasks that have been given."""
        have, found = Counter(homes), list[str]()
        for tasks in (1, 2):  # of a thread
            for home, threads in sorted(alive.items()):
                free = max(0, tasks * threads - have[home])
                if tasks > 1:
                    free = min(free, max(0, waiting - len(found) - sum(alive.values())))
                found += [home] * free
                have[home] += free
        return found

    def _submit(self, home: str, function: Function, task: Any) -> Any:
        data = pickle.dumps((function, task), pickle.HIGHEST_PROTOCOL)
        return self._client.submit(
            run_pickled, data, self._common, workers=[home], allow_other_workers=True, pure=False
        )

    def ask(self, function: Function, tasks: Sequence[Any]) -> list[Any]:
        """Each task goes to the worker that had the one of its place before, or, where that is lost, to another.

        A worker has several where there are fewer workers than tasks, as some may have ended since ``size`` was asked.
        """
        from distributed.scheduler import KilledWorker

        alive = sorted(self._find_alive())
        homes = self._homes or [""] * len(tasks)
        self._homes = [home if home in alive else alive[place % len(alive)] for place, home in enumerate(homes)]
        futures = [
            None if task is None else self._submit(home, function, task)
            for task, home in zip(tasks, self._homes, strict=True)
        ]
        try:
            return [None if future is None else future.result() for future in futures]
        except KilledWorker as error:
            raise BrokenExecutor(str(error)) from error


@contextmanager
def reach(scheduler: str | None) -> Iterator[None]:
    """Be connected to a scheduler in the context, where one is named: a wrong address is told before minutes of work.

    Raises ConfigError where Dask is not installed, or no scheduler answers.
    """
    if scheduler is None:
        yield
        return
    with _open_client(scheduler) as client:
        token = _reached.set((scheduler, client))
        try:
            yield
        finally:
            _reached.reset(token)


def _open_client(scheduler: str) -> Any:
    """A client, or the one that ``reach`` has opened, which stays open."""
    reached = _reached.get()
    if reached is not None and reached[0] == scheduler and reached[1].status == "running":
        return nullcontext(reached[1])
    try:
        from distributed import Client
    except ImportError:
        raise ConfigError(
            f"scheduler: found {scheduler}, but Dask is not installed; install onnxcalib[dask], or leave it out"
        ) from None
    client, fault = _connect(partial(Client, scheduler, timeout=PATIENCE, set_as_default=False))
    if client is None:
        raise ConfigError(f"scheduler: found {scheduler}: {fault}; the address of a running Dask scheduler is needed")
    return client


@contextmanager
def _open_cluster(common: Any, scheduler: str) -> Iterator[_Runner]:
    """The workers of a cluster, which itself runs lost tasks again while one of its workers has ``common``.

    Raises ConfigError where Dask is not installed, or no scheduler or worker answers.
    """
    with _open_client(scheduler) as client:
        from dask import config
        from distributed.scheduler import KilledWorker

        with config.set(LARGE_TASK):
            try:
                client.wait_for_workers(1, PATIENCE)
                shipped = client.scatter(Shipped(common), broadcast=True, hash=False)
            except (OSError, TimeoutError) as error:
                fault = f"scheduler: found no worker at {scheduler}: {first_line(error)}; start some"
                raise ConfigError(fault) from None
            try:
                yield _Cluster(client, shipped)
            except KilledWorker as error:
                raise BrokenExecutor(str(error)) from error
            finally:
                shipped.release()


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
