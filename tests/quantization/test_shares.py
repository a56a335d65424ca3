"""Moments that workers sum, each on its share of the samples: the same layers, whoever sums which."""

import pickle
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from onnxcalib import QuantizeConfig, quantize
from onnxcalib.graph.blocks import find_blocks
from onnxcalib.numeric.gram import MomentSum
from onnxcalib.quantization import shares
from onnxcalib.quantization import state as state_module
from onnxcalib.quantization.columns import pool_sums
from onnxcalib.quantization.layer_targets import keep_targets
from onnxcalib.quantization.reconstruct import reconstruct
from onnxcalib.quantization.run import Run
from onnxcalib.quantization.shares import explain_one_process, share_samples
from onnxcalib.quantization.state import StoredActivations
from onnxcalib.report import Observer
from onnxcalib.runtime.device import computing
from onnxcalib.runtime.store import Store

DATA = np.random.default_rng(5).normal(size=(40, 3, 8, 8)).astype(np.float32)
FAST = {"weight_bits": 4, "effort": "fast"}


@pytest.fixture(autouse=True)
def as_runs_compute():
    with computing():
        yield


@pytest.fixture(autouse=True)
def few_samples_a_share(monkeypatch):
    monkeypatch.setattr(state_module, "SHARE_SAMPLES", 12)  # of 40, in batches of 8: 16, 8 and 16
    monkeypatch.setattr(shares, "SHARE_SAMPLES", 12)


def copied(value):
    """As it arrives in another process."""
    return pickle.loads(pickle.dumps(value))


@pytest.fixture
def hire(monkeypatch):
    """Lets so many workers of this process sum what is asked, all from pickles; ``lost``: workers lost at an ask."""

    def set_team(size, lost=()):
        class Team:
            asked, tasks = 0, []

            def __init__(self, common, **_options):
                self.common, self.size = pickle.dumps(common), size
                self.workers = [pickle.loads(self.common) for _ in range(size)]

            def __enter__(self):
                return self

            def __exit__(self, *_exception):
                pass

            def ask(self, function, tasks):
                for ask, worker in lost:
                    if ask == Team.asked:
                        self.workers[worker] = pickle.loads(self.common)
                Team.asked += 1
                Team.tasks.append(tasks)
                pairs = zip(self.workers, tasks, strict=False)
                return [task and copied(function(worker, copied(task))) for worker, task in pairs]

        monkeypatch.setattr(shares, "Team", Team)
        return Team

    return set_team


def start(model, state_of, **settings):
    state = state_of(model, DATA, axes=(2, 3), **settings)
    return state, find_blocks(state.problem.model, state.problem.scheme)


def solve_here(model, state_of, **settings):
    state, blocks = start(model, state_of, **settings)
    keep_targets(state, blocks)
    state.stored.integers = True
    reconstruct(state, blocks, Observer())
    return pickle.dumps([state.layers[name] for name in sorted(state.layers)])


def solve_shared(model, state_of, **settings):
    state, blocks = start(model, state_of, **settings)
    empty = StoredActivations(Store(), state.problem.padding, state.problem.types)
    own, run = replace(state, stored=empty), Run(state.problem.config, Observer())
    with share_samples(own, state.stored, blocks, run) as shared:
        assert shared
        reconstruct(own, blocks, Observer())
    assert own.sum_elsewhere is None and not empty.store.names()
    return pickle.dumps([own.layers[name] for name in sorted(own.layers)])


@pytest.mark.parametrize(("size", "settings"), [(1, {}), (2, {}), (2, FAST), (5, {})], ids=str)
def test_any_number_of_workers_gives_the_bytes_of_one_process(residual, state_of, hire, settings, size):
    team = hire(size)
    assert solve_shared(residual, state_of, **settings) == solve_here(residual, state_of, **settings)
    assert {len(tasks) for tasks in team.tasks} == {min(size, 3)} and team.asked == 4


@pytest.mark.parametrize("lost", [(3, 0), (3, 1)])
def test_a_lost_worker_s_share_is_run_again_from_its_samples(residual, state_of, hire, lost):
    team = hire(2, lost=[lost])
    assert solve_shared(residual, state_of) == solve_here(residual, state_of)
    again = team.tasks[lost[0] + 1]
    assert [task is None for task in again] == [worker != lost[1] for worker in (0, 1)]
    assert again[lost[1]].found.keys() >= {"c1"}


def test_a_layer_that_is_asked_for_twice_is_summed_from_the_samples_again(residual, state_of, hire):
    team = hire(2)
    ask = team.ask
    team.ask = lambda self, function, tasks: [ask(self, function, tasks), ask(self, function, tasks)][1]
    assert solve_shared(residual, state_of) == solve_here(residual, state_of)


def test_workers_are_sent_each_layer_once(residual, state_of, hire):
    team = hire(2)
    solve_shared(residual, state_of)
    assert [[*task.found] for tasks in team.tasks[1:] for task in tasks] == [[], [], ["c1"], ["c1"], ["c2"], ["c2"]]


@pytest.mark.parametrize(
    ("settings", "samples", "reason"),
    [
        ({}, 40, None),
        ({}, 23, "fewer than 24 samples are one worker's"),
        ({"weight_bits": 4}, 40, "probes belong to all samples"),
        (
            {"weight_bits": 4, "activation_bits": 4, "effort": "best", "steps": 3},
            40,
            "blocks are learned on all samples",
        ),
    ],
)
def test_what_is_not_shared_out_has_a_reason(residual, state_of, settings, samples, reason):
    state, blocks = start(residual, state_of, **settings)
    assert explain_one_process(state, blocks, samples) == reason


def test_a_run_with_jobs_gives_the_file_of_one_process_and_says_where_it_does_not_share(
    residual, hire, listen, tmp_path
):
    team, observer = hire(2), listen()
    files = []
    for jobs in (1, 2):
        config = QuantizeConfig(jobs=jobs, threads=1, placement="all")
        files.append(quantize(residual, DATA, config, test=DATA[:8]).model.SerializeToString())
    assert files[0] == files[1] and team.asked == 4
    quantize(residual, DATA[:12], QuantizeConfig(jobs=2, placement="all"), test=DATA[:8], observer=observer)
    assert ("note", "one process reconstructs: fewer than 24 samples are one worker's") in observer.heard


def test_where_targets_take_too_much_room_workers_are_let_go_for_the_file_of_one_process(
    residual, hire, listen, monkeypatch
):
    monkeypatch.setattr("onnxcalib.quantization.layer_targets.MOST_TARGET_BYTES", 0)
    team, observer, files = hire(2), listen(), []
    for jobs in (1, 2):
        config = QuantizeConfig(jobs=jobs, threads=1, placement="all")
        result = quantize(residual, DATA, config, test=DATA[:8], observer=observer)
        files.append(result.model.SerializeToString())
    assert files[0] == files[1] and team.asked == 1
    assert ("note", "one process reconstructs: targets of layers take over 2 GB") in observer.heard


def test_a_run_on_workers_goes_on_behind_its_blocks_and_one_process_does_them_again(
    residual, hire, listen, tmp_path, monkeypatch
):
    team, lines = hire(2), []

    def run(jobs, last=99):
        """Stops at an ask; gives the file, and how often workers were asked."""
        ask, team.asked, observer = team.ask, 0, listen()

        def stop(self, function, tasks):
            if team.asked == last:
                raise KeyboardInterrupt
            return ask(self, function, tasks)

        config = QuantizeConfig(jobs=jobs, threads=1, placement="all")
        with monkeypatch.context() as patch:
            patch.setattr(team, "ask", stop)
            try:
                result = quantize(residual, DATA, config, test=DATA[:8], output=tmp_path / "q.onnx", observer=observer)
            except KeyboardInterrupt:
                return None
        result.save(tmp_path / "q.onnx")
        lines[:] = [text for kind, text in observer.heard if kind == "note"]
        return result.model.SerializeToString(), team.asked

    wanted, asked = run(2)
    assert asked == 4
    run(2, last=3)
    assert run(2) == (wanted, 2)  # to begin, and for the last layer
    assert lines[0].endswith("it goes on after 2 of 3 blocks")
    run(2, last=3)
    assert run(1) == (wanted, 0)
    assert "checkpoints: that of the blocks is of a run on workers; all blocks are done again" in lines


def test_the_sums_of_one_share_are_in_memory_at_a_time():
    made = []

    def make():
        sums = MomentSum(), MomentSum()
        for each in sums:
            each.add(torch.ones(1, 3, 4), torch.ones(1, 2, 4))
        made.extend(map(weakref.ref, sums))
        return sums

    def list_shares():
        for _ in range(3):
            assert not any(each() for each in made[2:])  # the first are what the others are added to
            yield make()

    assert [total.columns for total in pool_sums(list_shares())] == [12, 12]
