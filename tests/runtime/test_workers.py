"""Tasks in processes and on a cluster: the same results, whatever becomes of a worker."""

import os
import signal
import sys
import tempfile

import pytest

from onnxcalib.errors import ConfigError, DataError
from onnxcalib.runtime.workers import count_jobs, run_tasks

TASKS = {f"task {i}": i for i in range(5)}


def test_results_of_processes_are_those_of_this_one():
    def multiply(common, task):
        return common * task, os.getpid()

    here = dict(run_tasks(multiply, 10, TASKS))
    there = dict(run_tasks(multiply, 10, TASKS, jobs=2))
    assert {key: value for key, (value, _) in there.items()} == {key: 10 * i for key, i in TASKS.items()}
    assert {pid for _, pid in here.values()} == {os.getpid()} and os.getpid() not in {pid for _, pid in there.values()}


def test_one_task_needs_no_process():
    assert dict(run_tasks(lambda common, task: os.getpid(), None, {"only": 0}, jobs=4)) == {"only": os.getpid()}


def test_what_a_lost_worker_had_is_run_again(tmp_path):
    def die_once(common, task):
        marker = common / str(task)
        if task == 3 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return task

    warnings = []
    found = dict(run_tasks(die_once, tmp_path, TASKS, jobs=2, warn=warnings.append))
    assert found == TASKS and len(warnings) == 1
    assert warnings[0].startswith("a worker was lost; ") and warnings[0].endswith(" of 5 tasks are run again")


def test_a_task_that_ends_every_worker_is_given_up():
    def die(common, task):
        os._exit(1)

    with pytest.raises(ConfigError, match=r"^jobs: workers ended before their task 3 times; .* or --jobs 1$"):
        dict(run_tasks(die, None, TASKS, jobs=2))


def test_a_fault_of_a_task_is_raised_here():
    def fail(common, task):
        raise DataError(f"task {task}: found nothing")

    with pytest.raises(DataError, match=r"^task \d: found nothing$"):
        dict(run_tasks(fail, None, TASKS, jobs=2))


def test_workers_fill_the_cores():
    assert count_jobs(10**6) == 1 and count_jobs(1) >= 1


def test_a_cluster_that_does_not_answer_is_refused(monkeypatch):
    monkeypatch.setattr("onnxcalib.runtime.workers.PATIENCE", 0.5)
    with pytest.raises(ConfigError, match=r"^scheduler: found tcp://127.0.0.1:1: .*; the address of a running Dask"):
        dict(run_tasks(print, None, TASKS, scheduler="tcp://127.0.0.1:1"))


def test_a_cluster_without_workers_is_refused(monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr("onnxcalib.runtime.workers.PATIENCE", 2)
    with distributed.LocalCluster(n_workers=0, dashboard_address=None) as cluster:
        with pytest.raises(ConfigError, match=r"^scheduler: found no worker at tcp://.*; start some$"):
            dict(run_tasks(print, None, TASKS, scheduler=cluster.scheduler_address))


def test_a_cluster_needs_dask(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"^scheduler: found tcp://x:1, but Dask is not installed; install onnxcalib"):
        dict(run_tasks(print, None, TASKS, scheduler="tcp://x:1"))


def test_what_lost_workers_stored_is_cleared_away(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)

    def store(common, task):
        import tempfile

        open(os.path.join(tempfile.mkdtemp(), "activations"), "w").close()
        os._exit(1)

    with pytest.raises(ConfigError):
        dict(run_tasks(store, None, TASKS, jobs=2))
    assert not list(tmp_path.iterdir())
