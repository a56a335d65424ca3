"""Statistics tuning: scales and biases give each channel of a layer's output the float model's mean and deviation.

The stored integers and the graph do not change (Hubara et al. 2021, section 3.4, para-normalization).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..graph.blocks import find_blocks, join_blocks, single_layers
from ..graph.layer_params import LayerParams
from ..graph.ops import CONVOLUTIONS
from ..numeric.statistics import Affine, ChannelTally
from ..progress import track
from ..runtime.session import Session
from ..runtime.store import Store
from ..spec import Block, LayerScheme, QParams
from .batches import choose_step
from .padding_mask import select
from .params import give_scale
from .state import FLOAT, Problem, ReconstructionState, SubgraphRunner, read_later, run_block

# Samples on which statistics are estimated. Both models see the same ones, and more of them change nothing (on the
# networks of the README 32, 64, 128 and 256 are alike).
STATISTICS_SAMPLES = 32
# A layer is fitted on fewer of them where these have so many values of each channel, but on as many samples at least;
# and on so many values of a channel of one batch, about.
ENOUGH_VALUES, LEAST_SAMPLES = 2**13, 8


def tune_statistics(state: ReconstructionState) -> tuple[bool, None]:
    """Tune all layers in order, each on the outputs of the tuned layers before it, over the stored samples.

    ``state`` has the LayerParams of all layers, which are replaced; it stores the model's inputs alone. Returns True,
    because layers have changed, and no remark.
    """
    problem = state.problem
    state.stored.integers = True  # no grid changes any more
    parts = _list_parts(problem)
    with Store() as store:
        wanted = _Wanted.run(state, store)
        for part, later in track([*zip(parts, read_later(state, parts, set()), strict=True)]):
            for name in part.layers:
                _tune_layer(state, part, problem.layers[name], wanted)
            run_block(state, part, later, quantized=True)
            state.stored.forget(later)
    return True, None


def _list_parts(problem: Problem) -> list[Block]:
    """The model as parts of one layer each, with all that follows it up to the next one."""
    model, scheme, index = problem.model, problem.scheme, problem.index
    found: list[list[Block]] = []
    for block in find_blocks(model, scheme, index=index):
        for part in single_layers(model, scheme, block, index=index):
            if found and not part.layers:
                found[-1].append(part)
            else:
                found.append([part])
    return [join_blocks(model, scheme, parts, index=index) if len(parts) > 1 else parts[0] for parts in found]


@dataclass(frozen=True)
class _Wanted:
    """Outputs of the float model's layers, in a store; numbers: layer -> the stored batches in which they are kept."""

    store: Store
    numbers: Mapping[str, Sequence[int]]

    @classmethod
    def run(cls, state: ReconstructionState, store: Store) -> _Wanted:
        """Outputs of each layer in batches spread evenly, as many as have LEAST samples and ENOUGH values a channel."""
        layers, sizes = state.problem.layers, state.stored.sizes
        session = Session(state.problem.model, also=[k.output for k in layers.values()], threads=state.problem.threads)
        numbers: dict[str, Sequence[int]] = {name: [0] for name in layers}
        for number in range(len(sizes)):
            names = [name for name, each in numbers.items() if number in each]
            feeds = state.stored.feeds(FLOAT, session.inputs, number)
            values = session.run(feeds, list(dict.fromkeys(layers[name].output for name in names)))
            for name in names:
                value = values[layers[name].output]
                store.append(name, _thin(layers[name], value))
                if number == 0:
                    numbers[name] = _spread(
                        len(sizes), sizes[0], value.size // max(value.shape[_axis(layers[name])], 1)
                    )
        return cls(store, numbers)


def _spread(batches: int, samples: int, values: int) -> list[int]:
    """Numbers of batches, each with so many samples, and so many values of a channel."""
    count = max(-(-LEAST_SAMPLES // samples), -(-ENOUGH_VALUES // max(values, 1)))
    return sorted({int(number) for number in np.linspace(0, batches - 1, min(count, batches))})


def _thin(layer: LayerScheme, value: np.ndarray) -> np.ndarray:
    """Evenly spread positions of a batch of images, about as many as have ENOUGH values of a channel."""
    if layer.op not in CONVOLUTIONS:
        return value
    positions = value.reshape(*value.shape[:2], -1)
    step = choose_step(positions.shape[2], max(1, ENOUGH_VALUES // len(value)))
    return positions[:, :, ::step]


def _axis(layer: LayerScheme) -> int:
    return 1 if layer.op in CONVOLUTIONS else -1


def _tune_layer(state: ReconstructionState, part: Block, layer: LayerScheme, wanted: _Wanted) -> None:
    """Fit the layer's output to the float model's."""
    given = SubgraphRunner(state, part, [layer.output], quantized=True, integers=False)
    tally = ChannelTally()
    for place, number in enumerate(wanted.numbers[layer.name]):
        value, found = wanted.store.batch(layer.name, place), _thin(layer, given.run(number)[layer.output])
        if value.shape == found.shape and found.ndim > 1:
            real = None if layer.op in CONVOLUTIONS else state.stored.masks[number]
            mask = state.problem.padding.mask_of(layer.output, found.shape, real, last=False)
            tally.add(select(value, mask), select(found, mask), _axis(layer))
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
