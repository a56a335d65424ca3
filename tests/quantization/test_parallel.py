"""Blocks that are reconstructed apart from each other: the same, whoever does which and when."""

import pickle

import numpy as np
import pytest

from onnxcalib import QuantizeConfig, quantize
from onnxcalib.graph.blocks import find_blocks
from onnxcalib.quantization import parallel
from onnxcalib.quantization.parallel import Carried, reconstruct_apart
from onnxcalib.quantization.probes import draw_probes
from onnxcalib.quantization.reconstruct import reconstruct
from onnxcalib.quantization.run import Run
from onnxcalib.report import Observer
from onnxcalib.runtime.store import Store

NET = """g (float[N, 3, 6, 6] x) => (float[N, 3] y) {
    [stem] s = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)  [relu0] r = Relu (s)
    [inner] c = Conv <pads = [1, 1, 1, 1]> (r, w1, b1)  [mid] d = Relu (c)
    [outer] e = Conv <pads = [1, 1, 1, 1]> (d, w2, b2)  [add] z = Add (e, r)  [relu2] v = Relu (z)
    [tail] t = Conv (v, w3, b3)  [side] u = Conv (v, w5, b5)  [sum] q = Add (t, u)
    [mean] m = GlobalAveragePool (q)  [flat] f = Flatten (m)  [head] y = Gemm <transB = 1> (f, w4, b4)
}"""
DATA = np.random.default_rng(3).normal(size=(24, 3, 6, 6)).astype(np.float32)
LIGHT = {"weight_bits": 4}
FOUR = {"weight_bits": 4, "activation_bits": 4, "first_last_bits": 4}


@pytest.fixture
def net(build, weigh):
    shapes = [(4, 3, 3, 3), (4, 4, 3, 3), (4, 4, 3, 3), (6, 4, 1, 1), (3, 6), (6, 4, 1, 1)]
    weights = {f"w{i}": weigh(*shape) for i, shape in enumerate(shapes)}
    return build(NET, **weights, **{f"b{i}": weigh(shape[0]) for i, shape in enumerate(shapes)})


class Listener(Observer):
    def __init__(self):
        self.total, self.heard = None, []

    def blocks(self, total):
        self.total = total

    def block(self, record):
        self.heard.append(record.name)


@pytest.fixture
def rebuild(net, state_of):
    """Makes the layers, the grids and the records of the small network, and the blocks heard of as they were done."""

    def make(probes=0, **changes):
        state = state_of(net, DATA, axes=(2, 3), jobs=1, **changes)
        if probes:
            draw_probes(state, parallel_samples(state), probes)
        listener = Listener()
        blocks = find_blocks(state.problem.model, state.problem.scheme)
        records = reconstruct_apart(state, blocks, Run(state.problem.config, listener), "")
        assert listener.total == len(records)
        return state.layers, state.grids, [each.name for each in records], listener.heard

    return make


def parallel_samples(state):
    """What ``draw_probes`` asks of the samples: how many go through torch at once."""

    class Samples:
        fixed_batch = state.stored.sizes[0]

    return Samples()


def same(one, other):
    """Whether two reconstructions are the same to the bit."""
    return all(
        {name: pickle.dumps(value) for name, value in a.items()}
        == {name: pickle.dumps(value) for name, value in b.items()}
        for a, b in ((one[0], other[0]), *zip(vars(one[1]).values(), vars(other[1]).values(), strict=True))
    )


@pytest.fixture
def work_as(monkeypatch):
    """Lets workers take tasks in turn, in this order, what is common from a pickle; a lost one begins anew."""

    def set_workers(*, order=lambda tasks: tasks, workers=1, lost=()):
        def spread(function, common, tasks, *_args, **_options):
            data = pickle.dumps(common)
            own = [pickle.loads(data) for _ in range(workers)]
            for number, key in enumerate(order(list(tasks))):
                if number in lost:
                    own[number % workers] = pickle.loads(data)
                found = function(own[number % workers], pickle.loads(pickle.dumps(tasks[key])))
                yield key, pickle.loads(pickle.dumps(found))

        monkeypatch.setattr(parallel, "spread_tasks", spread)

    return set_workers


def test_each_tensor_is_carried_with_its_own_values():
    with Store() as store:
        for name, values in {"a": (1, 2), "b": (3,), "c": ()}.items():
            for value in values:
                store.append(name, np.full((2, 2), value))
        found = pickle.loads(pickle.dumps(Carried(store, ["a", "b"])))
    assert found.names == ("a", "b") and found.store.names() == ["a", "b"]
    assert [found.store.batch("a", i)[0, 0] for i in (0, 1)] == [1, 2] and found.store.batch("b", 0)[0, 0] == 3


@pytest.mark.parametrize("changes", [{**FOUR, "steps": 3}, {**LIGHT, "views": 1, "probes": 1}], ids=str)
def test_any_workers_in_any_order_give_the_bytes_of_one_process(rebuild, work_as, changes):
    here = rebuild(**changes)
    work_as(workers=2, lost={2})
    assert same(rebuild(**changes), here)
    work_as(order=lambda tasks: tasks[::-1])
    backwards = rebuild(**changes)
    assert same(backwards, here) and backwards[2] == here[2] and backwards[3] == here[3][::-1]


def test_probes_go_with_their_block(rebuild, monkeypatch):
    carried, solve = [], parallel.solve_task
    monkeypatch.setattr(parallel, "solve_task", lambda common, task: carried.append(task.probes) or solve(common, task))
    with_probes, without = rebuild(probes=1, **LIGHT), rebuild(**LIGHT)
    assert [each.names for each in carried[:3]] == [(), ("probe:c", "probe:e"), ("probe:t", "probe:u")]
    assert not same(with_probes, without)


def test_inside_a_block_layers_see_each_others_errors_and_no_others(rebuild, net, state_of):
    apart = rebuild(**FOUR, steps=0)[0]
    state = state_of(net, DATA, axes=(2, 3), **FOUR, steps=0)
    reconstruct(state, find_blocks(state.problem.model, state.problem.scheme), Observer())
    differ = {name for name in apart if (apart[name].integers != state.layers[name].integers).any()}
    assert "stem" not in differ and {"inner", "outer"} & differ


def test_the_pipeline_solves_apart_and_tunes_statistics(net):
    config = QuantizeConfig(pipeline="parallel", jobs=1, placement="all", **FOUR)
    report = quantize(net, DATA, config).report
    assert {block.outcome for block in report.blocks} == {"solved"}
    assert [step.name for step in report.steps] == ["reconstruct", "statistics"]
