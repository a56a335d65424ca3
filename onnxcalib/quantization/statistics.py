"""Statistics tuning: scales and biases give each channel of a layer's output the float model's mean and deviation.

The stored integers and the graph do not change (Hubara et al. 2021, section 3.4, para-normalization).
"""

from __future__ import annotations

import numpy as np

from ..graph.blocks import find_blocks, single_layers
from ..graph.emit import LayerParams
from ..graph.ops import CONVOLUTIONS
from ..numeric.statistics import Affine, ChannelTally
from ..progress import track
from ..spec import Block, LayerScheme, QParams
from .padding_mask import select
from .params import give_scale
from .state import FLOAT, ReconstructionState, SubgraphRunner, read_later, run_block

# Samples on which statistics are estimated. Both models see the same ones, and more of them change nothing (on the
# networks of the README 32, 64, 128 and 256 are alike).
STATISTICS_SAMPLES = 32


def tune_statistics(state: ReconstructionState) -> tuple[bool, None]:
    """Tune all layers in order, each on the outputs of the tuned layers before it, over the stored samples.

    ``state`` has the LayerParams of all layers, which are replaced; it stores the model's inputs alone. Returns True,
    because layers have changed, and no remark.
    """
    problem = state.problem
    blocks = find_blocks(problem.model, problem.scheme, index=problem.index)
    parts = [
        part for block in blocks for part in single_layers(problem.model, problem.scheme, block, index=problem.index)
    ]
    for part, later in track([*zip(parts, read_later(state, parts, set()), strict=True)]):
        for name in part.layers:
            _tune_layer(state, part, problem.layers[name])
        run_block(state, part, later, quantized=False)
        run_block(state, part, later, quantized=True)
        state.stored.forget(later)
    return True, None


def _tune_layer(state: ReconstructionState, part: Block, layer: LayerScheme) -> None:
    """Fit the layer's output to the float model's, and store the float outputs of ``part``, which run but once."""
    reference = SubgraphRunner(state, part, list(dict.fromkeys((layer.output, *part.outputs))), quantized=False)
    given = SubgraphRunner(state, part, [layer.output], quantized=True)
    tally = ChannelTally()
    for number in range(len(state.stored.sizes)):
        wanted, found = reference.run(number), given.run(number)[layer.output]
        for tensor in part.outputs:
            state.stored.keep(FLOAT, tensor, wanted[tensor])
        if wanted[layer.output].shape == found.shape and found.ndim > 1:
            conv = layer.op in CONVOLUTIONS
            real = None if conv else state.stored.masks[number]
            mask = state.problem.padding.mask_of(layer.output, found.shape, real, last=False)
            tally.add(select(wanted[layer.output], mask), select(found, mask), 1 if conv else -1)
    if tally.count:
        fit = tally.fit(centred=layer.takes_bias)
        state.layers[layer.name] = apply_affine(state.layers[layer.name], fit, state.input_grid(layer))


def apply_affine(params: LayerParams, fit: Affine, input_grid: QParams | None) -> LayerParams:
    """The layer with the same integers whose output is ``fit`` applied to this layer's output.

    No scale falls below what the int32 bias needs; this binds only in a channel whose weights are almost zero.
    """
    scale, bias = params.grid.scale, params.bias
    # The groups of a ConvTranspose share their scales, a weight may have one scale alone, and powers of two stay: only
    # the means can then be fitted to each channel.
    spec = params.grid.spec
    axis, block = spec.axis, spec.block
    own = axis is not None and not spec.power_of_two and (block is not None or len(fit.gain) == len(scale))
    gain = fit.gain if own else np.ones_like(fit.gain)
    if bias is None and (fit.centre.any() or fit.target.any()):
        bias = np.zeros(len(gain))
    tuned = None if bias is None else fit.target + gain * (bias - fit.centre)
    along = gain if block is None or axis is None else np.expand_dims(gain, 1 - axis)
    return give_scale(params, scale * along if own else scale, tuned, input_grid)
