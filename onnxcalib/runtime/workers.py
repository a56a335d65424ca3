"""Run independent tasks in worker processes of this machine or on a Dask cluster, with the same results."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, CancelledError, Executor, as_completed
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from threading import Thread
from typing import Any

import loky

from ..errors import ConfigError, first_line
from ..files.scratch import Scratch

# How often tasks are tried whose workers end before them.
LOSSES = 3
# Seconds within which a cluster must answer.
PATIENCE = 10
# Seconds after which an idle worker ends.
IDLE = 30


def count_jobs(threads: int) -> int:
    """The number of workers, of this many threads each, for which this machine has cores."""
    cores: int = loky.cpu_count()
    return max(1, cores // threads)


def run_tasks(
    function: Callable[[Any, Any], Any],
    common: Any,
    tasks: Mapping[Hashable, Any],
    *,
    jobs: int = 1,
    scheduler: str | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[Hashable, Any]]:
    """Yield (key, function(common, task)) for every task, in the order in which they end.

    With one job, tasks run in this process, one after the other. Otherwise ``common``, tasks and results are pickled;
    ``common`` is sent to each worker once. Tasks of workers that end early are run again; raises ConfigError after
    LOSSES such attempts.
    """
    if scheduler is None and (jobs == 1 or len(tasks) == 1):
        yield from ((key, function(common, task)) for key, task in tasks.items())
        return
    waiting = dict(tasks)
    for left in reversed(range(LOSSES)):
        opened = _open_processes(common, jobs) if scheduler is None else _open_cluster(common, scheduler)
        try:
            with opened as (executor, given):
                futures = {executor.submit(_run, function, given, task): key for key, task in waiting.items()}
                for future in as_completed(futures):
                    result = future.result()
                    del waiting[futures[future]]
                    yield futures[future], result
                return
        except (BrokenExecutor, CancelledError):
            if left:
                warn(f"a worker was lost; {len(waiting)} of {len(tasks)} tasks are run again")
    setting, remedy = ("jobs", "take fewer, or --jobs 1") if scheduler is None else ("scheduler", "give them more")
    raise ConfigError(
        f"{setting}: workers ended before their task {LOSSES} times; each needs memory for the model and its samples;"
        f" {remedy}"
    )


def _run(function: Callable[[Any, Any], Any], given: Any, task: Any) -> Any:
    return function(_read(given) if isinstance(given, Path) else given, task)


@lru_cache(maxsize=1)
def _read(path: Path) -> Any:
    with open(path, "rb") as file:
        return pickle.load(file)


@contextmanager
def _open_processes(common: Any, jobs: int) -> Iterator[tuple[Executor, Path]]:
    """Worker processes, which do not import this one's main module: it needs no ``if __name__ == "__main__"``."""
    with Scratch() as folder:
        path = folder / "common"
        with open(path, "wb") as file:
            pickle.dump(common, file, pickle.HIGHEST_PROTOCOL)
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        # Files that a killed worker leaves are removed with this folder. Idle workers end soon after their parent.
        env = {"OMP_NUM_THREADS": threads, "TMPDIR": str(folder)}
        executor = loky.ProcessPoolExecutor(jobs, env=env, timeout=IDLE)
        try:
            yield executor, path
        finally:
            executor.shutdown(kill_workers=True)


@contextmanager
def _open_cluster(common: Any, scheduler: str) -> Iterator[tuple[Executor, Any]]:
    """The executor of a cluster, which itself runs lost tasks again while one of its workers has ``common``.

    Raises ConfigError where Dask is not installed, or no scheduler or worker answers.
    """
    try:
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
    with client:
        try:
            client.wait_for_workers(1, PATIENCE)
            shipped = client.scatter(common, broadcast=True, hash=False)
        except (OSError, TimeoutError) as error:
            raise ConfigError(f"scheduler: found no worker at {scheduler}: {first_line(error)}; start some") from None
        try:
            yield client.get_executor(pure=False), shipped
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
