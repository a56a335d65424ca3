"""Tasks in processes and on a cluster: the same results, whatever becomes of a worker."""

import os
import pickle
import subprocess
import sys
import tempfile
from concurrent.futures import BrokenExecutor, Future
from contextlib import nullcontext
from typing import ClassVar

import pytest

from onnxcalib.errors import ConfigError
from onnxcalib.runtime import workers
from onnxcalib.runtime.worker import Shipped
from onnxcalib.runtime.workers import Team, count_jobs, reach, run_tasks
from tests.runtime import tasks

TASKS = {f"task {i}": i for i in range(5)}


def test_results_of_processes_are_those_of_this_one():
    here = dict(run_tasks(tasks.multiply, 10, TASKS))
    there = dict(run_tasks(tasks.multiply, 10, TASKS, jobs=2))
    assert {key: value for key, (value, _) in there.items()} == {key: 10 * i for key, i in TASKS.items()}
    assert {pid for _, pid in here.values()} == {os.getpid()} and os.getpid() not in {pid for _, pid in there.values()}


def test_one_task_needs_no_process():
    assert dict(run_tasks(tasks.name_process, None, {"only": 0}, jobs=4)) == {"only": os.getpid()}


def test_what_a_lost_worker_had_is_run_again(tmp_path):
    warnings = []
    found = dict(run_tasks(tasks.die_once, tmp_path, TASKS, jobs=2, warn=warnings.append))
    assert found == TASKS and len(warnings) == 1
    assert warnings[0].startswith("a worker was lost; ") and warnings[0].endswith(" of 5 tasks are run again")


def test_a_task_that_ends_every_worker_is_given_up(capfd):
    with pytest.raises(ConfigError, match=r"^jobs: workers ended before their task 3 times; .* or --jobs 1$"):
        dict(run_tasks(tasks.die, None, TASKS, jobs=2))
    assert capfd.readouterr() == ("", "")


def test_workers_fill_the_cores(tmp_path, monkeypatch):
    cores = len(os.sched_getaffinity(0))
    assert count_jobs(10**6) == 1
    for text, jobs in {"max 100000": cores, "5000 100000": 1, "-1 100000": cores, "": cores, "x": cores}.items():
        (tmp_path / "cpu.max").write_text(text)
        monkeypatch.setattr("onnxcalib.runtime.cores.QUOTAS", (tmp_path / "none", tmp_path / "cpu.max"))
        assert count_jobs(1) == jobs


def test_a_cluster_that_does_not_answer_is_refused(monkeypatch):
    monkeypatch.setattr("onnxcalib.runtime.workers.PATIENCE", 0.5)
    with pytest.raises(ConfigError, match=r"^scheduler: found tcp://127.0.0.1:1: .*; the address of a running Dask"):
        dict(run_tasks(print, None, TASKS, scheduler="tcp://127.0.0.1:1"))


def test_a_cluster_without_workers_is_refused(monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr("onnxcalib.runtime.workers.PATIENCE", 2)
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0") as cluster:
        with pytest.raises(ConfigError, match=r"^scheduler: found no worker at tcp://.*; start some$"):
            dict(run_tasks(print, None, TASKS, scheduler=cluster.scheduler_address))


def test_a_cluster_needs_dask(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"^scheduler: found tcp://x:1, but Dask is not installed; install onnxcalib"):
        dict(run_tasks(print, None, TASKS, scheduler="tcp://x:1"))


def test_a_thread_of_a_cluster_has_its_next_task_until_as_many_are_left_as_there_are_threads(monkeypatch):
    given, ends = [], iter("baaabbbbba")

    class Ends:
        def put(self, future):
            pass

        def get(self, timeout):
            home = next(ends)
            return next(future for _, at, future in given if at == home and not future.done() and end(future))

    def end(future):
        future.set_result(future.run())
        return True

    class Client:
        def wait_for_workers(self, count, timeout):
            pass

        def ncores(self):
            return {"b": 2, "a": 1}

        def submit(self, run, data, shipped, *, workers, allow_other_workers, pure):
            assert allow_other_workers and not pure
            future = Future()
            future.run = lambda: run(data, shipped)
            given.append((pickle.loads(data)[1], *workers, future))
            return future

    monkeypatch.setattr(workers, "SimpleQueue", lambda: Ends())
    found = dict(workers._Cluster(Client(), Shipped(10)).run(tasks.multiply, {i: i for i in range(10)}))
    assert {key: value for key, (value, _) in found.items()} == {i: 10 * i for i in range(10)}
    assert "".join(home for _, home, _ in given) == "abb" + "abb" + "b" + "a" + "a" + "b"
    assert [task for task, _, _ in given] == [*range(10)]


def test_a_scheduler_that_reads_a_task_imports_no_torch():
    script = "import sys, onnxcalib.runtime.worker; assert not {'torch', 'onnx', 'onnxruntime'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_cluster_is_reached_once_for_all_that_a_context_does():
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options) as cluster, reach(cluster.scheduler_address):
        known = len(cluster.scheduler.clients)
        for common in (2, 3):
            found = dict(run_tasks(tasks.multiply, common, TASKS, scheduler=cluster.scheduler_address))
            assert {key: value for key, (value, _) in found.items()} == {key: common * i for key, i in TASKS.items()}
            assert len(cluster.scheduler.clients) == known


def test_a_cluster_that_does_not_answer_is_refused_before_the_work(monkeypatch):
    monkeypatch.setattr("onnxcalib.runtime.workers.PATIENCE", 0.5)
    with pytest.raises(ConfigError, match=r"^scheduler: found tcp://127.0.0.1:1: .*; the address of a running Dask"):
        with reach("tcp://127.0.0.1:1"):
            raise AssertionError


def test_a_cluster_takes_a_large_task_without_a_word():
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options) as cluster:
        with Team(1, jobs=1, scheduler=cluster.scheduler_address) as team:
            ((given, _),) = team.ask(tasks.multiply, [bytes(2**24)])
    assert len(given) == 2**24


def test_a_cluster_whose_last_worker_ends_has_lost_its_tasks():
    class Client:
        def wait_for_workers(self, count, timeout):
            raise TimeoutError("Only 0/1 workers arrived")

    with pytest.raises(BrokenExecutor, match="Only 0/1 workers"):
        dict(workers._Cluster(Client(), Shipped(10)).run(tasks.multiply, TASKS))


def test_a_team_has_each_task_where_the_one_before_went_until_a_worker_is_lost(tmp_path):
    warnings = []
    with Team(tmp_path, jobs=2, warn=warnings.append) as team:
        first, second = team.ask(tasks.name_process, [0, 0])
        assert team.size == 2 and first != second
        assert team.ask(tasks.name_process, [None, 0]) == [None, second]
        with pytest.raises(ConfigError, match="jobs: found 3"):
            team.ask(tasks.fail, ["with own constructor"])
        assert team.ask(tasks.die_once, [3, 4]) == [3, 4]
        assert not {first, second} & {*team.ask(tasks.name_process, [0, 0])}
    assert warnings == ["a worker was lost; its share of the samples is run again"]


def test_a_team_whose_workers_all_end_is_given_up(monkeypatch):
    class Runner:
        def ask(self, function, tasks):
            raise BrokenExecutor

    monkeypatch.setattr(workers, "open_workers", lambda common, jobs: nullcontext(Runner()))
    with Team(None, jobs=2) as team:
        with pytest.raises(ConfigError, match=r"^jobs: workers ended before their task 3 times; "):
            team.ask(tasks.die, [0])


def test_a_cluster_has_each_task_where_the_one_before_went_until_that_is_lost():
    pytest.importorskip("distributed")

    class Client:
        alive: ClassVar = {"a": 1, "b": 1}
        homes: ClassVar = []

        def wait_for_workers(self, count, timeout):
            pass

        def ncores(self):
            return self.alive

        def submit(self, run, data, shipped, *, workers, allow_other_workers, pure):
            self.homes.append(*workers)
            assert allow_other_workers and not pure
            done = Future()
            done.set_result(run(data, shipped))
            return done

    cluster = workers._Cluster(Client(), Shipped(10))
    assert cluster.size == 2
    for given in ([1, 2], [None, 2], [1, 2]):
        found = cluster.ask(tasks.multiply, given)
        assert [each and each[0] for each in found] == [task and 10 * task for task in given]
        Client.alive = {"a": 1, "b": 1} if given[0] else {"a": 1, "c": 1}
    assert Client.homes == ["a", "b", "b", "a", "c"]
    # One that is opened again where workers were lost has all tasks, on those that are left.
    Client.alive, Client.homes = {"c": 1}, []
    again = workers._Cluster(Client(), Shipped(10))
    assert [found[0] for found in again.ask(tasks.multiply, [1, 2])] == [10, 20] and Client.homes == ["c", "c"]
    Client.alive = {}
    assert again.size == 1
    with pytest.raises(BrokenExecutor, match="no worker is left"):
        again.ask(tasks.multiply, [1, 2])


def test_a_cluster_whose_scheduler_ends_is_lost():
    class Client:
        def wait_for_workers(self, count, timeout):
            pass

        def ncores(self):
            raise OSError("Timed out trying to connect")

    with pytest.raises(BrokenExecutor, match="Timed out"):
        dict(workers._Cluster(Client(), Shipped(10)).run(tasks.multiply, TASKS))


def test_what_lost_workers_stored_is_cleared_away(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(ConfigError):
        dict(run_tasks(tasks.store_and_die, None, TASKS, jobs=2))
    assert not list(tmp_path.iterdir())
