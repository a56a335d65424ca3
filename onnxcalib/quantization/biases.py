"""Bias tuning: all biases trained end to end, so that the quantized model's outputs follow the float model's.

No labels are needed (Hubara et al. 2021, section 3.5). What is learned on three quarters of the samples is kept where
the rest, half of which said when to stop, shows that it helps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ..graph.blocks import find_blocks, join_blocks
from ..graph.index import reads
from ..graph.weightless import held_bytes
from ..numeric.distill import divergence_sums, sample_losses
from ..runtime.blocks import BlockError
from ..spec import Block
from .learn import Learner, MiniBatches, convert_block
from .probes import MOST_MODEL_BYTES
from .solve import guard_scale
from .state import ReconstructionState, run_block

# Few, at a low rate: more fits the samples (MobileNetV2 at W4A8: the held-out loss rose from a tenth of a pass on).
STEPS = 96
RATE = 0.002
# One sample in so many is not learned from.
BIAS_HOLDOUT = 4
# Samples without which nothing is decided, and standard errors by which their loss must fall: what is learned mostly
# fits the calibration set alone (with 32 images ResNet-20 lost 0.15 dB before these).
LEAST_DECIDING = 16
CERTAIN = 2.0
TOO_FEW = "{} samples are too few to see whether it helps, {} would do"


def tune_biases(state: ReconstructionState) -> tuple[bool, str | None]:
    """Train the biases of the whole model, or of the longest part up to its outputs that torch takes.

    ``state`` has the LayerParams of all layers and stores the model's inputs alone. Returns whether biases changed in
    it; and a remark: the part that was trained, or why nothing was kept.
    """
    samples = sum(state.stored.sizes)
    if samples < 2 * BIAS_HOLDOUT * LEAST_DECIDING:
        return False, TOO_FEW.format(samples, 2 * BIAS_HOLDOUT * LEAST_DECIDING)
    learner, remark = _find_part(state)
    if learner is None:
        return False, remark
    if not learner.biases():
        return False, "no layer that torch takes has a bias"
    data = MiniBatches(state, learner.block, learner.size, holdout=BIAS_HOLDOUT)
    stopping, deciding = (list(data.batches(half)) for half in (data.held_out[::2], data.held_out[1::2]))
    before = _losses(learner, deciding)
    if before.shape[1] < LEAST_DECIDING:
        return False, "its outputs do not count samples, and the batches are too few to see whether it helps"
    try:
        outcome = learner.learn(data.draw, lambda: stopping, steps=STEPS, bias_rate=RATE, sums=divergence_sums)
    except BlockError as error:
        return False, str(error)
    if not outcome.step:
        return False, "the loss on held-out samples did not fall"
    if not _is_better(before, _losses(learner, deciding)):
        return False, "what it gains on held-out samples is within their noise"
    for name, bias in learner.biases().items():
        params, grid = state.layers[name], state.input_grid(state.problem.layers[name])
        scale = guard_scale(params.grid.scale, bias, grid)
        state.layers[name] = replace(params, grid=replace(params.grid, scale=scale), bias=bias)
    return True, remark


def _find_part(state: ReconstructionState) -> tuple[Learner | None, str | None]:
    """The longest run of blocks that ends the model and that torch takes, its inputs and outputs stored."""
    blocks = [block for block in find_blocks(state.problem.model, state.problem.scheme)]
    in_float = {layer.name for layer in state.problem.scheme.layers if layer.reads_float}
    past = max((index + 1 for index, block in enumerate(blocks) if in_float.intersection(block.layers)), default=0)
    first = f"{blocks[past - 1].layers[-1]} reads float activations, and is not learned" if past else None
    for start in range(past, len(blocks)):
        if not any(block.layers for block in blocks[start:]):
            break
        part = join_blocks(state.problem.model, state.problem.scheme, blocks[start:])
        size = _weight_bytes(state, part)
        if size > MOST_MODEL_BYTES:
            first = (
                first or f"{size / 2**20:.0f} MB of weights are more than the {MOST_MODEL_BYTES / 2**20:.0f} for torch"
            )
            continue
        try:  # before anything is computed for it
            converted = convert_block(state, part)
        except BlockError as error:
            first = first or str(error)
            continue
        _store(state, join_blocks(state.problem.model, state.problem.scheme, blocks[:start]) if start else None, part)
        try:
            learner = Learner(state, converted, frozen=True)
        except BlockError as error:
            first = first or str(error)
            continue
        return learner, None if first is None else f"the layers from {part.layers[0]} on alone: {first}"
    return None, first or "the model has no layers"


def _weight_bytes(state: ReconstructionState, block: Block) -> int:
    nodes, constants = set(block.nodes), state.problem.index.initializers
    read = {tensor for node in state.problem.model.graph.node if node.name in nodes for tensor in reads(node)}
    return sum(held_bytes(constants[tensor]) for tensor in read & constants.keys())


def _store(state: ReconstructionState, before: Block | None, part: Block) -> None:
    """What the part reads in the quantized model, and what both give in the float one."""
    if before is not None:
        for quantized in (False, True):
            run_block(state, before, set(part.inputs), quantized=quantized)
    run_block(state, part, set(part.outputs), quantized=False)


def _losses(learner: Learner, batches: Sequence) -> np.ndarray:
    """Loss of each sample relative to the mean of what it is relative to, (outputs, samples)."""
    learner.module.eval()
    with torch.no_grad():
        found = torch.cat([sample_losses(learner.module(*inputs), targets) for inputs, targets in batches], 1)
    losses, powers = found.double().cpu().numpy().transpose(2, 0, 1)
    return losses / np.maximum(powers.mean(1, keepdims=True), np.finfo(np.float64).tiny)


def _is_better(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether the mean over outputs falls by more than CERTAIN standard errors, sample by sample."""
    gains = (before - after).mean(0)
    error = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return bool(gains.mean() > CERTAIN * error)
