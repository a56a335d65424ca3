"""Distillation of models that read few bits: all that is quantized is trained end to end, on mixtures of images.

With 4 bits nearly all of the error is the rounding of activations. Layers that were solved one at a time make up for
the part of it that is in front of them alone. Here the outputs of all blocks follow the float model's together.
Weights, their scales, grids of activations and biases are trained from where they were solved, through the rounding of
all of them (LSQ, Esser et al. 2020). Few integers move, as many steps have to agree.

A network is surer of the images that it was trained on than of others, and calibration images are often such. Mixtures
of two images are nearer to the others. One image in four is held out. Of mixtures of these one half chooses the
iteration, and the other half decides whether what was trained is kept.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from ..data.images import image_axes
from ..graph.blocks import find_blocks, join_blocks
from ..graph.load import inputs_of
from ..numeric.adaquant import Batch, Pace
from ..numeric.views import draw_mixtures, draw_views
from ..progress import track
from ..runtime.blocks import BlockError
from ..spec import Block
from .biases import TOO_FEW, check_size, is_better, relative_losses
from .distill import check_room
from .learn import END_TO_END, Learner, convert_block
from .prepared import Prepared
from .state import Problem, ReconstructionState, run_block
from .tensor_shapes import measure_shapes

# Steps for each sample, steps at most, and images of a step at most: 40 passes over the samples, each as long as 8 of
# the float model. 1,024 samples gain no more by 40 passes than by 24. Models of large activations have as many steps,
# of fewer images: they would take long.
STEPS_A_SAMPLE, MOST_STEPS, STEP_IMAGES = 2.5, 1536, 16
PACE = Pace(integers=2.0, others=4.0)  # a step sees all blocks, and there are more steps than for one
# One image in so many is held out, and no more than so many in all. The least number of deciding ones.
HOLDOUT, MOST_HELD_OUT, LEAST_DECIDING = 4, 128, 8
MIXTURES = 2  # of each image that is held out
# Standard errors by which the loss of the deciding ones must fall.
CERTAIN = 1.0
# Of all that the model makes of a step's images: what memory a step takes at most (ResNet-20: 2.8, MobileNetV2: 3.7).
COPIES = 4
COMPARED = 4  # images on which torch is compared with onnxruntime
NO_IMAGES = "where layers read few bits, it takes a model with one input of images: files, or arrays with views"
FIXED = "where layers read few bits, it takes a model of any number of samples; export it with a free batch axis"
SHARED = "where layers read few bits, it takes none that share a weight"


def distill_all(prepared: Prepared, state: ReconstructionState) -> tuple[bool, str | None]:
    """Train the integers and scales of weights, grids and biases of the whole model.

    ``state`` has the grids and the LayerParams of all layers, and stores nothing. Returns whether they changed, and a
    remark: why nothing was kept.
    """
    try:
        return _Training(prepared, state, _find_axes(prepared)).run()
    except BlockError as error:
        return False, str(error)


class _Training:
    """The whole model in torch with its quantizers, and mixtures of images with what the float model gives for them."""

    def __init__(self, prepared: Prepared, state: ReconstructionState, axes: tuple[int, int]) -> None:
        """axes: of rows and columns. Raises BlockError where torch does not take the model."""
        self.samples, self.axes, problem = prepared.samples, axes, state.problem
        self.device, self.input = problem.device, inputs_of(problem.model)[0].name
        if any(problem.readers.has(layer.name) for layer in problem.scheme.layers):
            raise BlockError(SHARED)
        whole = _find_whole(problem)
        check_size(state, whole)
        # Which the walk over the blocks held fast, as layers were solved on them.
        state.frozen = {*prepared.lossless, *problem.scheme.fixed}
        state.stored.fill_some(self.samples, COMPARED, COMPARED)
        run_block(state, whole, set(whole.outputs), quantized=False)
        self.learner = Learner(state, convert_block(state, whole), learned=END_TO_END)
        if self.learner.size is None:
            raise BlockError("torch takes samples of one number alone")
        self.size = min(self.learner.size, STEP_IMAGES)
        check_room(prepared, COPIES * self.size * self._count_bytes())
        self.float = convert_block(state, whole).module.to(self.device)
        self.generator = np.random.default_rng(problem.config.seed)

    def _count_bytes(self) -> int:
        """Bytes in float32 of all that the nodes make of an image."""
        problem = self.learner.state.problem
        shapes = measure_shapes(problem.model, self.samples.read([0]), problem.threads)
        made = [t for node in problem.model.graph.node for t in node.output]
        return 4 * sum(math.prod(shapes[t]) for t in made if t in shapes)

    def run(self) -> tuple[bool, str | None]:
        """Train, and put what was trained into the state if it is better on the deciding images."""
        order = self.generator.permutation(len(self.samples))
        count = min(len(order) // HOLDOUT, MOST_HELD_OUT)
        if count < 2 * LEAST_DECIDING:
            return False, TOO_FEW.format(len(order), 2 * HOLDOUT * LEAST_DECIDING)
        learning, (deciding, stopping) = order[count:], (self._mix_all(order[start:count:2]) for start in (0, 1))
        before = relative_losses(self.learner, map(self._follow, deciding))
        steps = min(MOST_STEPS, math.ceil(STEPS_A_SAMPLE * len(order)))
        told = track(range(steps))

        def draw() -> Batch:
            next(told, None)  # tells the step before
            chosen = self.generator.choice(learning, min(self.size, len(learning)), replace=False)
            return self._follow(self._mix(chosen))

        outcome = self.learner.learn(draw, lambda: map(self._follow, stopping), steps=steps, pace=PACE)
        if not outcome.step:
            return False, "the loss on held-out samples did not fall"
        if not is_better(before, relative_losses(self.learner, map(self._follow, deciding)), CERTAIN):
            return False, "what it gains on held-out samples is within their noise"
        self.learner.read_back()
        return True, f"error of blocks on held-out samples {outcome.before:.3g} before, {outcome.after:.3g} after"

    def _mix(self, indices: np.ndarray) -> torch.Tensor:
        """Mixtures of views of these images."""
        images = self.samples.read(sorted(map(int, indices)))[self.input]
        mixed = draw_mixtures(draw_views(images, self.axes, self.generator), self.axes, self.generator)
        return torch.from_numpy(mixed)

    def _mix_all(self, indices: np.ndarray) -> list[torch.Tensor]:
        parts = np.array_split(indices, -(-len(indices) // self.size))
        return [self._mix(part) for part in parts for _ in range(MIXTURES)]

    def _follow(self, images: torch.Tensor) -> Batch:
        """Images with what the float model gives for them; not kept, as those of all held-out ones take gigabytes."""
        inputs = [images.to(self.device)]
        with torch.no_grad():
            return inputs, list(self.float(*inputs))


def _find_axes(prepared: Prepared) -> tuple[int, int]:
    """Axes of rows and columns of the one input, which takes image files, or arrays of which there may be views.

    Raises BlockError for other models.
    """
    samples, config = prepared.samples, prepared.config
    if samples.fixed_batch is not None:
        raise BlockError(FIXED)
    axes = None
    if (samples.images or config.views) and prepared.run.quantized_samples is None:  # other arrays may be anything
        values = samples.read([0])
        axes = image_axes(next(iter(values.values())).shape, config.data) if len(values) == 1 else None
    if axes is None:
        raise BlockError(NO_IMAGES)
    return axes


def _find_whole(problem: Problem) -> Block:
    """The whole model as a block that gives the outputs of all blocks with layers too."""
    blocks = find_blocks(problem.model, problem.scheme, index=problem.index)
    whole = join_blocks(problem.model, problem.scheme, blocks, index=problem.index)
    inner = dict.fromkeys(t for block in blocks if block.layers for t in block.outputs if t not in whole.outputs)
    return replace(whole, outputs=(*inner, *whole.outputs))
