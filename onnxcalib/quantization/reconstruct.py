"""Reconstruct: block after block, solve the layers, then learn the block; the quantized prefix feeds the next one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from ..config import FULL_BITS
from ..graph.blocks import single_layers
from ..graph.index import reads
from ..numeric.adaquant import Outcome
from ..report import BlockRecord, Observer
from ..runtime.blocks import BlockError
from ..spec import Block
from .learn import Learner, MiniBatches, convert_block
from .solve import solve_block
from .state import ReconstructionState, read_later, run_block

# One sample in so many is held out from learning a block, and says which iteration is kept.
BLOCK_HOLDOUT = 8


def reconstruct(state: ReconstructionState, blocks: Sequence[Block], observer: Observer) -> tuple[BlockRecord, ...]:
    """Reconstruct the blocks in order; ``state`` ends with the grids and the LayerParams of all layers."""
    records: list[BlockRecord] = []
    observer.blocks(sum(bool(b.layers) for b in blocks))
    for block, later in zip(blocks, read_later(state, blocks, set()), strict=True):
        run_block(state, block, later, quantized=False)
        if block.layers:
            found = list(_reconstruct_block(state, block, later))
            records += found
            observer.block(found[-1])
        state.frozen |= _read_inside(state, block)
        run_block(state, block, later, quantized=True)
        state.stored.forget(later)
    return tuple(records)


def _reconstruct_block(state: ReconstructionState, block: Block, later: set[str]) -> Iterator[BlockRecord]:
    """Solve and learn one block; where it cannot be learned as one, its layers are, one by one."""
    start = time.perf_counter()
    reasons = solve_block(state, block)
    rounded = _join(reasons, block)
    steps = _steps(state, block, rounded)
    if not steps:
        yield _solved_record(block, rounded, None, start)
        return
    try:
        yield _learned_record(state, block, rounded, start, steps=steps)
        return
    except BlockError as error:
        reason = str(error)
    if len(block.layers) == 1:
        yield _reconstruct_part(state, block, rounded, reason, steps=0)
        return
    parts = single_layers(state.problem.model, state.problem.scheme, block)
    for part, read in zip(parts, read_later(state, parts, later), strict=True):
        run_block(state, part, read, quantized=False)
        if part.layers:
            rounded = _join(reasons, part)
            yield _reconstruct_part(state, part, rounded, reason, steps=_steps(state, part, rounded))
        state.frozen |= _read_inside(state, part)
        run_block(state, part, read, quantized=True)


def _steps(state: ReconstructionState, block: Block, rounded: str | None) -> int:
    layers = [state.problem.layers[name] for name in block.layers]
    hard = any(layer.groups > 1 and layer.activation_spec.bits < FULL_BITS for layer in layers)
    return state.problem.config.block_steps(solved=rounded is None, hard=hard)


def _join(reasons: dict[str, str], block: Block) -> str | None:
    return "; ".join(reason for name, reason in reasons.items() if name in block.layers) or None


def _learned_record(
    state: ReconstructionState, block: Block, reason: str | None, start: float, *, steps: int
) -> BlockRecord:
    outcome = _learn(state, block, steps)
    kept = outcome.step > 0
    if not kept:
        reason = "; ".join(filter(None, (reason, "the loss on held-out samples did not fall")))
    name = "reconstructed" if kept else "rolled back"
    seconds = time.perf_counter() - start
    return BlockRecord(block.name, block.layers, name, reason, outcome.before, outcome.after, seconds)


def _reconstruct_part(
    state: ReconstructionState, part: Block, rounded: str | None, reason: str, *, steps: int
) -> BlockRecord:
    """One layer of a block that torch does not take: learned alone if it can be, else left as it was solved."""
    start = time.perf_counter()
    try:
        if steps:
            joined = "; ".join(filter(None, (f"not as one block: {reason}", rounded)))
            return _learned_record(state, part, joined, start, steps=steps)
    except BlockError as error:
        reason = f"{reason}; alone: {error}"
    return _solved_record(part, rounded, reason, start)


def _solved_record(block: Block, rounded: str | None, reason: str | None, start: float) -> BlockRecord:
    """A block that is not learned; ``rounded`` says which of its layers were not solved either, and why."""
    reason = "; ".join(filter(None, (reason, rounded))) or None
    outcome = "rounded" if rounded else "solved"
    return BlockRecord(block.name, block.layers, outcome, reason, seconds=time.perf_counter() - start)


def _read_inside(state: ReconstructionState, block: Block) -> set[str]:
    """Tensors that the block reads: its layers were solved on their grids, which must not change any more."""
    return {t for n in state.problem.model.graph.node if n.name in block.nodes for t in reads(n)}


def _learn(state: ReconstructionState, block: Block, steps: int) -> Outcome:
    """AdaQuant on the block; its results go into ``state``. Raises BlockError, having changed nothing."""
    learner = Learner(state, convert_block(state, block), frozen=False)
    data = MiniBatches(state, block, learner.size, holdout=BLOCK_HOLDOUT)
    outcome = learner.learn(data.draw, data.read_held_out, steps=steps)
    if outcome.step:
        learner.read_back()
    return outcome
