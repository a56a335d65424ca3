"""Checkpoints of the walk over the blocks: its state after each block, to which a run that was stopped goes back."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence

from onnx import helper

from ..errors import OutputError
from ..report import BlockRecord
from ..runtime.work_folder import RECORD, TENSOR
from ..spec import Block
from .checkpoints import TUNED, WALK, BlockDone, Checkpoints, WalkDone, find_changed
from .prepared import Prepared
from .ranges import Ranges
from .state import ReconstructionState

# How decisions end of blocks that were reconstructed on workers by samples: their checkpoints store no activations.
SHARED = "-shared"
# Files of single blocks and of tensors, and all that follow from the walk.
_OF_BLOCKS = re.compile(rf"block-|.*{re.escape(TENSOR)}$|\.")
_OF_WALK = re.compile(rf"(?:{WALK}|{TUNED}){re.escape(RECORD)}$|{_OF_BLOCKS.pattern}")


def digest_decisions(prepared: Prepared, ranges: Ranges) -> str:
    """What layers are solved on, beside the model and the samples; where something was measured, it may differ."""
    scheme = prepared.scheme
    facts = (
        [
            (k.name, k.weight_spec, k.activation_spec, k.dynamic)
            for k in (*scheme.layers, *scheme.embeddings, *scheme.recurrent)
        ],
        sorted(scheme.activations.items()),
        sorted(scheme.requantized.items()),
        sorted(prepared.in_float.items()),
        sorted(prepared.passes.items()),
        ranges.to_json(),
    )
    return hashlib.sha256(repr(facts).encode(errors="surrogatepass")).hexdigest()


class BlockCheckpoints:
    """The state of a walk as it is kept. done: how many blocks are behind it. records, told: of these, as they came.

    most_bytes, seconds: the size of the folder at most, and the time that keeping took.
    """

    def __init__(self, prepared: Prepared, state: ReconstructionState, blocks: Sequence[Block], decisions: str) -> None:
        """``state`` becomes that of the last checkpoint, if there is one."""
        self._run, self._state, self._decisions = prepared.run, state, decisions
        self._kept: Checkpoints = prepared.run.checkpoints
        self._blocks, self._start = blocks, time.perf_counter()
        self._earlier = 0.0
        self.done, self._saved = 0, 0
        self.records: list[BlockRecord] = []
        self.told: list[BlockRecord] = []
        self._waiting: list[BlockRecord] = []
        self.most_bytes, self.seconds = 0, 0.0
        self._remember()
        if self._kept.folder is not None and not self._restore():
            self._kept.folder.clear(keep=lambda name: not _OF_WALK.match(name))

    @property
    def begun(self) -> bool:
        """Whether the samples are stored already."""
        return self._saved > 0

    def commit(self, done: int, records: Sequence[BlockRecord] = ()) -> None:
        """Keep the state behind so many blocks, of which the last has these records."""
        self._waiting += records
        folder = self._kept.folder
        if folder is None:
            return
        start = time.perf_counter()
        grids, state = self._state.grids, self._state
        block = BlockDone(
            {name: params for name, params in state.layers.items() if self._layers.get(name) is not params},
            find_changed(self._activations, grids.activations),
            find_changed(self._requantized, grids.requantized),
            tuple(self._waiting),
        )
        try:
            walk = self._describe(done)
        except (OSError, OutputError) as error:
            self._kept.tell(error)
            return
        if self._kept.keep((f"block-{self._saved}", block, BlockDone), (WALK, walk, WalkDone)):
            self.most_bytes = max(self.most_bytes, folder.count_bytes())
            state.stored.store.release()
            self._saved, self._waiting = walk.saved, []
            self._remember()
        self.seconds += time.perf_counter() - start

    def tell(self) -> None:
        """Note what keeping the state has cost."""
        if self.most_bytes:
            size = f"{self.most_bytes / 2**20:,.1f} MB at most"
            self._run.observer.note(f"checkpoints: {size}, {self.seconds:.1f} s")

    def _describe(self, done: int) -> WalkDone:
        """Raises OSError where the disk cannot take the tensors."""
        stored, run = self._state.stored, self._run
        known = self._state.problem.types
        told = {name: value for name, value in stored.types.items() if known.get(name) is not value}
        return WalkDone(
            decisions=self._decisions,
            done=done,
            solved=sum(bool(block.layers) for block in self._blocks[:done]),
            total=sum(bool(block.layers) for block in self._blocks),
            saved=self._saved + 1,
            store=stored.store.list_kept(),
            sizes=tuple(stored.sizes),
            masks=tuple(stored.masks),
            passes=stored.passes,
            types={name: value.type.tensor_type.elem_type for name, value in told.items()},
            frozen=tuple(sorted(self._state.frozen)),
            warnings=tuple(run.warnings),
            left_out=tuple(run.left_out),
            seconds=self._earlier + time.perf_counter() - self._start,
        )

    def _remember(self) -> None:
        grids = self._state.grids
        self._layers, self._activations = dict(self._state.layers), dict(grids.activations)
        self._requantized = dict(grids.requantized)

    def _restore(self) -> bool:
        """Go back to the last checkpoint, and return whether there is one that is whole and of the same decisions."""
        folder = self._kept.folder
        assert folder is not None
        walk = self._kept.find(WALK, WalkDone)
        if walk is None:
            if folder.has(WALK):
                self._tell("is damaged")
            return False
        if walk.decisions != self._decisions:
            shared = walk.decisions.endswith(SHARED)
            if shared != self._decisions.endswith(SHARED):
                self._tell(f"is of a run {'on workers' if shared else 'in one process'}")
            else:
                self._tell("follows from other measurements of this machine")
            return False
        blocks = [self._kept.find(f"block-{number}", BlockDone) for number in range(walk.saved)]
        whole = [block for block in blocks if block is not None]
        try:
            if len(whole) < walk.saved:
                raise ValueError("a block is damaged")
            self._state.stored.store.restore(walk.store)
        except (OSError, ValueError):
            self._tell("is damaged")
            return False
        self._take(walk, whole)
        files = {f"block-{number}{RECORD}" for number in range(walk.saved)}
        files |= {tensor.file for tensor in walk.store.values()}
        folder.clear(keep=lambda name: name in files or not _OF_BLOCKS.match(name))
        return True

    def _tell(self, fault: str) -> None:
        self._run.observer.note(f"checkpoints: that of the blocks {fault}; all blocks are done again")

    def _take(self, walk: WalkDone, blocks: Sequence[BlockDone]) -> None:
        state, stored, run = self._state, self._state.stored, self._run
        for block in blocks:
            state.layers |= block.layers
            state.grids = state.grids.updated(block.activations, block.requantized)
            self.records += block.records
            self.told += block.records[-1:]
        stored.sizes, stored.masks, stored.passes = list(walk.sizes), list(walk.masks), walk.passes
        stored.types |= {name: helper.make_tensor_value_info(name, number, None) for name, number in walk.types.items()}
        state.frozen |= set(walk.frozen)
        run.warnings += [text for text in walk.warnings if text not in run.warnings]
        run.left_out += [each for each in walk.left_out if each not in run.left_out]
        run.earlier_seconds["reconstruct"] = self._earlier = walk.seconds
        self.done, self._saved = walk.done, walk.saved
        self._remember()
