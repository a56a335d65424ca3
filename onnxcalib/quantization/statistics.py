"""Statistics tuning: every layer's output gets the float model's mean and deviation a channel, by its scale and bias.

The stored integers and the graph stay as they are (Hubara et al. 2021, section 3.4, para-normalization).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph.blocks import find_blocks, single_layers
from ..graph.emit import LayerParams
from ..numeric.statistics import Affine, ChannelTally
from ..spec import Block, LayerScheme, QParams
from .padding_mask import select
from .solve import guard_scale
from .state import FLOAT, ReconstructionState, SubgraphRunner, read_later, run_block

# Samples from all over the set on which statistics are estimated: as both models see the same ones, more change nothing
# (on the networks of the README 32, 64, 128 and 256 are alike).
STATISTICS_SAMPLES = 32


def tune_statistics(state: ReconstructionState) -> tuple[bool, None]:
    """Tune all layers in order, each on what the tuned layers before it give, over the stored samples.

    ``state`` has the LayerParams of all layers, which are replaced, and stores the model's inputs alone.
    Returns True, as layers have changed, and no remark.
    """
    blocks = find_blocks(state.problem.model, state.problem.scheme)
    parts = [part for block in blocks for part in single_layers(state.problem.model, state.problem.scheme, block)]
    for part, later in zip(parts, read_later(state, parts, set()), strict=True):
        for name in part.layers:
            _tune(state, part, state.problem.layers[name])
        run_block(state, part, later, quantized=False)
        run_block(state, part, later, quantized=True)
        state.stored.forget(later)
    return True, None


def _tune(state: ReconstructionState, part: Block, layer: LayerScheme) -> None:
    """Fit the layer's output; the part's own in the float model are stored on the way, so that it is run once."""
    reference = SubgraphRunner(state, part, list(dict.fromkeys((layer.output, *part.outputs))), quantized=False)
    given = SubgraphRunner(state, part, [layer.output], quantized=True)
    tally = ChannelTally()
    for number in range(len(state.stored.sizes)):
        wanted, found = reference.run(number), given.run(number)[layer.output]
        for tensor in part.outputs:
            state.stored.keep(FLOAT, tensor, wanted[tensor])
        if wanted[layer.output].shape == found.shape and found.ndim > 1:
            conv = layer.op in ("Conv", "ConvTranspose")
            real = None if conv else state.stored.masks[number]
            kept = state.problem.padding.mask_of(layer.output, found.shape, real, last=False)
            tally.add(*(select(y, kept) for y in (wanted[layer.output], found)), 1 if conv else -1)
    if tally.count:
        fit = tally.fit(centred=layer.takes_bias)
        state.layers[layer.name] = apply_affine(state.layers[layer.name], fit, state.input_grid(layer))


def apply_affine(params: LayerParams, fit: Affine, input_grid: QParams | None) -> LayerParams:
    """The layer whose output is ``fit`` of this one's, its integers the same.

    A scale is not brought below what the int32 bias needs: of a channel with next to no weights it does not matter.
    """
    scale, bias = params.grid.scale, params.bias
    # The groups of a ConvTranspose share their scales: only the means are a channel's own.
    axis, block = params.grid.spec.axis, params.grid.spec.block
    own = block is not None or len(fit.gain) == len(scale)
    gain = fit.gain if own else np.ones_like(fit.gain)
    if bias is None and (fit.centre.any() or fit.target.any()):
        bias = np.zeros(len(gain))
    tuned = None if bias is None else fit.target + gain * (bias - fit.centre)
    along = np.expand_dims(gain, 1 - axis) if block is not None else gain
    scale = guard_scale(scale * along if own else scale, tuned, input_grid)
    return replace(params, grid=replace(params.grid, scale=scale), bias=tuned)
