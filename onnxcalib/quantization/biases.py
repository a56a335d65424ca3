"""Bias tuning: all biases are trained end to end, so that the quantized model's outputs follow the float model's.

No labels are needed (Hubara et al. 2021, section 3.5). Biases are learned on three quarters of the samples. Of the
other samples one half chooses the iteration, and the other half decides whether its biases are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from ..graph.blocks import find_blocks, join_blocks
from ..graph.index import reads
from ..graph.weightless import held_bytes
from ..numeric.adaquant import Batch, Pace
from ..numeric.distill import divergence_sums, sample_losses
from ..progress import track
from ..runtime.blocks import BlockError
from ..spec import Block
from .learn import BIASES, Learner, MiniBatches, convert_block
from .output_parts import take_parts
from .params import give_scale
from .probes import MOST_MODEL_BYTES
from .state import ReconstructionState, run_block

# Few iterations at a low rate: more fit the samples themselves (MobileNetV2 at W4A8: the held-out loss rose after a
# tenth of a pass over the samples).
STEPS = 96
PACE = Pace(others=0.2)
# One sample in so many is held out.
BIAS_HOLDOUT = 4
# The least number of deciding samples, and the standard errors by which their loss must fall. What is learned mostly
# fits the calibration set alone: without these conditions ResNet-20 lost 0.15 dB with 32 images.
LEAST_DECIDING = 16
CERTAIN = 2.0
TOO_FEW = "{} samples are too few to see whether it helps, {} would do"


def tune_biases(state: ReconstructionState) -> tuple[bool, str | None]:
    """Train the biases of the whole model, or of the longest part at its end that torch takes.

    ``state`` has the LayerParams of all layers; it stores the model's inputs alone. Returns whether biases in ``state``
    changed, and a remark: which part was trained, or why nothing was kept.
    """
    samples = sum(state.stored.sizes)
    if samples < 2 * BIAS_HOLDOUT * LEAST_DECIDING:
        return False, TOO_FEW.format(samples, 2 * BIAS_HOLDOUT * LEAST_DECIDING)
    learner, remark = _open_learner(state)
    if learner is None:
        return False, remark
    if not learner.biases():
        return False, "no layer that torch takes has a bias"
    data = MiniBatches(state, learner.block, learner.size, holdout=BIAS_HOLDOUT)
    stopping, deciding = list(data.batches(data.held_out[::2])), list(data.batches(data.held_out[1::2]))
    before = relative_losses(learner, deciding)
    if before.shape[1] < LEAST_DECIDING:
        return False, "its outputs do not count samples, and the batches are too few to see whether it helps"
    steps = track(range(STEPS))

    def draw() -> Batch:
        next(steps, None)  # tells the step before
        return data.draw()

    try:
        outcome = learner.learn(
            draw,
            lambda: stopping,
            steps=STEPS,
            pace=PACE,
            sums=lambda outputs, targets: divergence_sums(_part(learner, outputs), _part(learner, targets)),
        )
    except BlockError as error:
        return False, str(error)
    if not outcome.step:
        return False, "the loss on held-out samples did not fall"
    if not is_better(before, relative_losses(learner, deciding)):
        return False, "what it gains on held-out samples is within their noise"
    for name, bias in learner.biases().items():
        params, grid = state.layers[name], state.input_grid(state.problem.layers[name])
        state.layers[name] = give_scale(params, params.grid.scale, bias, grid)
    return True, remark


def _open_learner(state: ReconstructionState) -> tuple[Learner | None, str | None]:
    """A learner of the longest part at the end of the model that torch takes; its inputs and targets are stored.

    The second result says why that part is not the whole model, or why there is none.
    """
    problem = state.problem
    blocks = find_blocks(problem.model, problem.scheme, index=problem.index)
    first, first_reason = _skip_float_readers(state, blocks)
    for start in range(first, len(blocks)):
        if not any(block.layers for block in blocks[start:]):
            break
        part = join_blocks(problem.model, problem.scheme, blocks[start:], index=problem.index)
        try:
            check_size(state, part)
            converted = convert_block(state, part)  # before anything is computed for it
            _store(state, blocks[:start], part)
            learner = Learner(state, converted, learned=BIASES)
        except BlockError as error:
            first_reason = first_reason or str(error)
            continue
        return learner, first_reason and f"the layers from {part.layers[0]} on alone: {first_reason}"
    return None, first_reason or "the model has no layers"


def _skip_float_readers(state: ReconstructionState, blocks: Sequence[Block]) -> tuple[int, str | None]:
    """Index of the first block after all layers that read float, and the name of the last of these as a reason."""
    in_float = {layer.name for layer in state.problem.scheme.layers if layer.reads_float}
    first = max((index + 1 for index, block in enumerate(blocks) if in_float.intersection(block.layers)), default=0)
    return first, f"{blocks[first - 1].layers[-1]} reads float activations, and is not learned" if first else None


def check_size(state: ReconstructionState, block: Block) -> None:
    """Raise BlockError for a block with more weights than torch should hold."""
    index = state.problem.index
    read = {tensor for name in block.nodes for tensor in reads(index.nodes[name])}
    size = sum(held_bytes(index.initializers[tensor]) for tensor in read & index.initializers.keys())
    if size > MOST_MODEL_BYTES:
        most = MOST_MODEL_BYTES / 2**20
        raise BlockError(f"{size / 2**20:.0f} MB of weights are more than the {most:.0f} MB for torch")


def _store(state: ReconstructionState, before: Sequence[Block], part: Block) -> None:
    """Store the inputs of the part in both models, and its outputs in the float model."""
    problem = state.problem
    if before:
        block = join_blocks(problem.model, problem.scheme, before, index=problem.index)
        for quantized in (False, True):
            run_block(state, block, set(part.inputs), quantized=quantized)
    run_block(state, part, set(part.outputs), quantized=False)


def relative_losses(learner: Learner, batches: Iterable[Batch]) -> np.ndarray:
    """Loss of each output on each sample, (outputs, samples).

    For class scores the divergence; for other outputs the squared error over the mean power of the target.
    """
    learner.module.eval()
    with torch.no_grad():
        losses = [
            sample_losses(_part(learner, learner.module(*inputs)), _part(learner, targets))
            for inputs, targets in batches
        ]
        found = torch.cat(losses, 1)
    errors, powers = found.double().cpu().numpy().transpose(2, 0, 1)
    relative: np.ndarray = errors / np.maximum(powers.mean(1, keepdims=True), np.finfo(np.float64).tiny)
    return relative


def _part(learner: Learner, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The parts of the outputs of a block, each of which weighs as much as another output."""
    named = zip(learner.block.outputs, values, strict=True)
    return [part for name, value in named for _, (part,) in take_parts(learner.state.problem.parts, name, value)]


def is_better(before: np.ndarray, after: np.ndarray, certain: float = CERTAIN) -> bool:
    """Whether the loss, averaged over the outputs, falls by more than so many standard errors over the samples."""
    gains = (before - after).mean(0)
    error = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return bool(gains.mean() > certain * error)
