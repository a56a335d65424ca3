"""Sum the moments of layers over workers by samples: each has a share of them, and runs the quantized model on it.

For pipelines in which a block waits for those before it. The process of the command solves the layers, on the sums of
all shares, which are pooled in their order, so that any number of workers gives the same bytes. What it finds goes to
all workers, which run their samples on. A worker that is lost has its share run again, from the samples on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..config import EFFORTS
from ..graph.layer_params import LayerParams
from ..runtime.device import computing
from ..runtime.store import Store
from ..runtime.workers import Team
from ..spec import Block, LayerScheme
from .carried import CarriedProblem
from .columns import ColumnReader, pool_sums
from .layer_targets import MOST_TARGET_BYTES, keep_targets, may_learn
from .padding_mask import find_real
from .passing import pass_through
from .probes import list_probed
from .reconstruct import tensors_read
from .run import Run
from .spread import is_large
from .state import (
    FLOAT,
    QUANTIZED,
    SHARE_SAMPLES,
    ReconstructionState,
    StoredActivations,
    Sums,
    read_later,
    run_block,
)

# Why samples are not shared out whose targets are not kept: one process then reads its columns in float, and the last
# bits of sums are others.
TOO_LARGE = f"targets of layers take over {MOST_TARGET_BYTES / 2**30:g} GB"


@dataclass(frozen=True)
class ShareTask:
    """Sum the columns of a layer, and of its siblings, on some of the stored batches.

    found: LayerParams of layers before it that were not sent yet.
    """

    own: range
    layer: str
    found: Mapping[str, LayerParams]


@dataclass
class SharedProblem(CarriedProblem):
    """What every worker gets, and the walks of those of the stored batches that it works on.

    tables: LayerParams of embeddings.
    """

    tables: Mapping[str, LayerParams]
    _walks: dict[range, _Walk] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_walks": {}}

    def begin(self, own: range) -> bool:
        """Keep the targets of layers in these batches; False where those of all samples would take too much room."""
        walk = self._walks[own] = _Walk(self, own)
        return not walk.state.stored.has_float

    def sum(self, task: ShareTask) -> list[Sums] | None:
        """The sums of each share of the task's batches; None where a layer before it is not known."""
        walk = self._walks.pop(task.own, None)  # one that fails is not gone on with
        if walk is None or walk.summed == task.layer:
            walk = _Walk(self, task.own)
        walk.found |= task.found
        sums = walk.sum_shares() if walk.advance(task.layer) else None
        self._walks[task.own] = walk
        return sums


def begin_task(common: SharedProblem, own: range) -> bool:
    """``SharedProblem.begin`` as a task of a worker."""
    with computing():
        return common.begin(own)


def sum_task(common: SharedProblem, task: ShareTask) -> list[Sums] | None:
    """``SharedProblem.sum`` as a task of a worker."""
    with computing():
        return common.sum(task)


class _Walk:
    """The quantized model's activations on some of the stored batches, from layer to layer."""

    def __init__(self, common: SharedProblem, own: range) -> None:
        problem = common.open()
        stored = StoredActivations(Store(), common.padding, problem.types)
        stored.sizes, stored.passes, stored.own = list(common.sizes), common.passes, own
        stored.masks = [None] * len(stored.sizes)
        for number in own:
            feeds = common.read_samples(number)
            for prefix in (FLOAT, QUANTIZED):
                for name, value in feeds.items():
                    stored.keep(prefix, name, value)
            stored.masks[number] = find_real(feeds)
        self.state = ReconstructionState(problem, stored, common.grids, dict(common.tables), set(common.frozen))
        keep_targets(self.state, common.blocks)
        stored.integers = True
        self.found: dict[str, LayerParams] = {}
        self.summed: str | None = None  # the last layer
        self._steps = self._go(common.blocks)
        self._part, self._layers = next(self._steps)

    def _go(self, blocks: Sequence[Block]) -> Iterator[tuple[Block, tuple[LayerScheme, ...]]]:
        state = self.state
        for block, later in zip(blocks, read_later(state, blocks, set()), strict=True):
            if block.layers:
                yield from pass_through(state, block, later)
            state.frozen |= tensors_read(state.problem.index, block)
            run_block(state, block, later, quantized=True)
            state.stored.forget(later)
            for name in block.layers:  # a worker holds the integers of one block, and not those of the model
                del state.layers[name], self.found[name]

    def advance(self, layer: str) -> bool:
        """Go on to the layer; False where one before it is not known."""
        while self._layers[0].name != layer:
            if any(each.name not in self.found for each in self._layers):
                return False
            self.state.layers |= {each.name: self.found[each.name] for each in self._layers}
            self._part, self._layers = next(self._steps)
        return True

    def sum_shares(self) -> list[Sums]:
        self.summed = self._layers[0].name
        shape = tuple(self.state.problem.index.initializers[self._layers[0].weight].dims)
        return list(ColumnReader(self.state, self._part, self._layers, shape).sum_shares())


def explain_one_process(state: ReconstructionState, blocks: Sequence[Block], samples: int) -> str | None:
    """Why so many stored samples are not shared out to workers; None: they are."""
    problem = state.problem
    if samples < 2 * SHARE_SAMPLES:
        return f"fewer than {2 * SHARE_SAMPLES} samples are one worker's"
    if problem.device.type != "cpu":
        return f"it works on {problem.device}"
    if is_large(problem.model):
        return "the model is above 2 GB"
    if any(may_learn(state, block) for block in blocks):
        return "blocks are learned on all samples"
    if EFFORTS[problem.config.effort].probes and list_probed(state):
        return "probes belong to all samples"
    return None


@contextmanager
def share_samples(
    state: ReconstructionState, given: StoredActivations, blocks: Sequence[Block], run: Run
) -> Iterator[bool]:
    """Let the workers of the settings sum the moments of ``state``'s layers. ``given`` stores the samples.

    Gives False where they do not, as targets are TOO_LARGE.
    """
    config, layers = state.problem.config, state.problem.layers
    tables = {name: params for name, params in state.layers.items() if name not in layers}
    common = SharedProblem.of(state, given, blocks, tables=tables)
    jobs = min(config.jobs or 1, len(given.shares))
    with Team(common, jobs=jobs, scheduler=config.scheduler, warn=run.warn) as team:
        runs = _part_evenly(given.shares, team.size)
        shared = all(team.ask(begin_task, runs))
        if shared:
            state.sum_elsewhere = _Sharing(state, team, runs).sum
        try:
            yield shared
        finally:
            state.sum_elsewhere = None


def _part_evenly(shares: Sequence[range], count: int) -> list[range]:
    """Runs of stored batches of whole shares, for so many workers or fewer."""
    ends = [round(len(shares) * (number + 1) / count) for number in range(count)]
    runs = [shares[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return [range(run[0].start, run[-1].stop) for run in runs if run]


class _Sharing:
    """Asks a team for the sums of layers. runs: the stored batches of each worker."""

    def __init__(self, state: ReconstructionState, team: Team, runs: Sequence[range]) -> None:
        self.state, self.team, self.runs = state, team, runs
        self.sent = set[str]()

    def sum(self, layers: Sequence[LayerScheme]) -> Sums:
        known = {name: params for name, params in self.state.layers.items() if name in self.state.problem.layers}
        new = {name: params for name, params in known.items() if name not in self.sent}
        found = self.team.ask(sum_task, [ShareTask(own, layers[0].name, new) for own in self.runs])
        if any(sums is None for sums in found):  # of a worker that has taken the place of another
            pairs = zip(self.runs, found, strict=True)
            lost = [None if sums is not None else ShareTask(own, layers[0].name, known) for own, sums in pairs]
            again = self.team.ask(sum_task, lost)
            found = [had or now for had, now in zip(found, again, strict=True)]
        self.sent |= known.keys()
        return pool_sums(share for sums in found for share in sums)
