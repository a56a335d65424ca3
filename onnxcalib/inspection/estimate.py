"""How long ``quantize`` would take here, and its memory: a timed run of one sample, times what was counted.

seconds = passes x samples x seconds of a sample + speed x (start + layers + solving), where speed is that of a matrix
product here against the machine on which the constants were fitted: four networks at 32 to 256 samples, by
``benchmarks/estimates.py``.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from onnx import ModelProto

from ..config import HOLD_OUT_FROM
from ..contents import EstimateRecord
from ..graph.index import Index
from ..graph.kernel_times import Shapes
from ..graph.stream import model_bytes
from ..runtime.session import Session
from ..spec import QuantScheme

# Runs that are timed, behind one that allocates, until all have taken SECONDS: up to MOST_RUNS. A first one that takes
# as long is timed alone, as allocating adds a fifth at most.
SECONDS, MOST_RUNS = 0.1, 20
SAMPLES = (64, 256, 1024)
MOST_HELD_OUT = 256
# The product of two matrices of SIDE values a side, and its rate on the machine of the constants: 2 cores of a Zen 4.
SIDE, PRODUCTS, RATE = 384, 12, 106e9
# Wider layers are searched with one branch: 40 inputs for each of 16 branches.
MOST_SEARCHED = 640
# Bytes of the process, of what batches of activations take at most, and of the model's weights, of which some copies
# are held; a sample's activations are held in part.
PROCESS, BATCHES, COPIES, HELD = 430e6, 300e6, 2.5, 0.4
START = 2.2  # seconds of Python and its packages


@dataclass(frozen=True)
class Cost:
    """Of a run at some bits: float passes; seconds a layer, and for 10^9 products of solving narrow and wide layers."""

    passes: float
    layer: float
    narrow: float
    wide: float


COSTS = {"W8A8": Cost(14.4, 0.11, 0.3, 0.15), "W4A4": Cost(45.0, 0.12, 2.0, 1.1)}


@dataclass(frozen=True)
class Work:
    """What a run is made of.

    sample_seconds: of the float model. narrow, wide: products of solving layers on their Gram matrices, inputs x inputs
    x (inputs + channels), of those with up to MOST_SEARCHED inputs and of others. activations: bytes of a sample's.
    """

    sample_seconds: float
    layers: int
    narrow: float
    wide: float
    bytes: int
    activations: int


def count_work(model: ModelProto, scheme: QuantScheme, shapes: Shapes, seconds: float) -> Work:
    """shapes: of all tensors in a run of one sample, which takes so many seconds."""
    index, narrow, wide = Index(model.graph), 0.0, 0.0
    for layer in scheme.layers:
        dims = index.initializers[layer.weight].dims
        channels = dims[layer.channel_axis]
        inputs = math.prod(dims) // max(channels, 1)
        products = float(inputs) ** 2 * (channels + inputs)
        narrow += products if inputs <= MOST_SEARCHED else 0
        wide += products if inputs > MOST_SEARCHED else 0
    sizes = [4 * math.prod(shapes[name]) for node in model.graph.node for name in node.output if name in shapes]
    layers = len(scheme.layers) + len(scheme.recurrent)
    return Work(seconds, layers, narrow, wide, model_bytes(model), sum(sizes))


def time_sample(session: Session, feeds: dict[str, np.ndarray]) -> float:
    """Seconds of a run of one sample in a session with all cores; nothing else must run meanwhile."""
    return _time_least(partial(session.run, feeds), MOST_RUNS)


def estimate_runs(work: Work) -> tuple[EstimateRecord, ...]:
    """For each number of samples, at 8 and at 4 bits."""
    rng = np.random.default_rng(0)
    one = rng.standard_normal((SIDE, SIDE)).astype(np.float32)
    slowness = _time_least(partial(np.matmul, one, one), PRODUCTS) * RATE / (2 * SIDE**3)
    return tuple(_estimate(work, bits, samples, slowness) for bits in COSTS for samples in SAMPLES)


def _estimate(work: Work, bits: str, samples: int, slowness: float) -> EstimateRecord:
    cost = COSTS[bits]
    used = samples - (min(samples // 4, MOST_HELD_OUT) if samples >= HOLD_OUT_FROM else 0)
    float_pass = used * work.sample_seconds
    solving = cost.layer * work.layers + (cost.narrow * work.narrow + cost.wide * work.wide) / 1e9
    seconds = cost.passes * float_pass + slowness * solving
    batches = min(BATCHES, HELD * used * work.activations)
    return EstimateRecord(
        bits=bits,
        samples=samples,
        seconds=seconds + slowness * START,
        passes=seconds / max(float_pass, 1e-9),
        memory_bytes=int(PROCESS + batches + COPIES * work.bytes),
    )


def _time_least(call: partial[Any], most: int) -> float:
    """Seconds of the fastest of some calls, which other load changes least; the first counts where it is long."""
    found: list[float] = []
    while len(found) <= most and sum(found) < SECONDS:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found[1:] or found)
