"""Prepare: bring a model into the form that planning expects, its outputs unchanged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from ..config import QuantizeConfig
from ..errors import ModelError
from ..graph.edit import drop_dead
from ..graph.emit import FOUR_BIT_IR, FOUR_BIT_OPSET, PER_CHANNEL_OPSET
from ..graph.load import refuse_unsuitable
from ..graph.passes.attributes import spell_attributes
from ..graph.passes.batchnorm import FoldedNorm, fold_affine, fold_batchnorm
from ..graph.passes.duplicates import merge_duplicates
from ..graph.passes.float16 import widen_float16
from ..graph.passes.fold import fold_constants
from ..graph.passes.gemm import normalise_gemm, spread_biases
from ..graph.passes.hardswish import split_hardswish
from ..graph.passes.normalise import normalise
from ..graph.passes.opset import raise_opset
from ..graph.passes.pads import fold_pads
from ..graph.passes.pool import globalise_pools
from ..runtime.session import Session, is_float

# Largest change of an output by the passes, relative to its largest value: they reorder float32 sums, no more; of a
# float16 model, which then computes in float32, the rounding that it had.
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1


@dataclass(frozen=True)
class Prepared:
    """The rewritten model, each pass with its count of rewrites, and the norms folded into layers."""

    model: ModelProto
    passes: dict[str, int]
    norms: tuple[FoldedNorm, ...]

    @property
    def tolerance(self) -> float:
        """What ``check_unchanged`` may find."""
        return HALF_TOLERANCE if self.passes["widen_float16"] else TOLERANCE


def prepare(model: ModelProto, config: QuantizeConfig) -> Prepared:
    """Normalise, raise the opset as far as the bits need it, fold constants and norms; mutates ``model``.

    Raises ModelError for a model that cannot be quantized.
    """
    passes = normalise(model)
    four_bit = config.least_bits == 4 or config.block_size is not None
    raised = raise_opset(model, FOUR_BIT_OPSET if four_bit else PER_CHANNEL_OPSET)
    model.ir_version = max(model.ir_version, FOUR_BIT_IR if four_bit else model.ir_version)
    passes["raise_opset"] = int(raised)
    for step in (fold_constants, widen_float16, merge_duplicates):
        passes[step.__name__] = step(model)
    norms = fold_batchnorm(model)
    passes["fold_batchnorm"] = len(norms)
    for step in (
        fold_affine, normalise_gemm, spread_biases, split_hardswish, spell_attributes, fold_pads, globalise_pools,
    ):  # fmt: skip
        passes[step.__name__] = step(model)
    passes["drop_dead"] += drop_dead(model)
    refuse_unsuitable(model)
    return Prepared(model, passes, norms)


def check_unchanged(
    original: ModelProto,
    prepared: ModelProto,
    feeds: dict[str, np.ndarray],
    threads: int = 0,
    *,
    tolerance: float = TOLERANCE,
) -> float:
    """Largest change of any float output on one batch, relative to its largest value; ModelError above ``tolerance``.

    Values that are not finite in the original are left to calibration, which names where they come from.
    """
    wanted = Session(original, threads=threads).run(feeds)  # gone before the other is made
    given = Session(prepared, name="the prepared model", threads=threads).run(feeds)
    floats = {name: value for name, value in wanted.items() if is_float(value)}
    changes = {name: _change(value, given[name]) for name, value in floats.items()}
    for name, change in changes.items():
        if not change <= tolerance:
            raise ModelError(
                f"output {name}: preparation changed it by {change:.1e} of its largest value; {tolerance:.0e} is"
                " allowed; this is a fault of onnxcalib on this model, please report it"
            )
    return max(changes.values(), default=0.0)


def _change(wanted: np.ndarray, given: np.ndarray) -> float:
    if wanted.shape != given.shape:
        return np.inf
    finite = np.isfinite(wanted)
    if not finite.any():
        return 0.0
    largest = float(np.abs(wanted[finite]).max())
    return float(np.abs(wanted[finite] - given[finite]).max() / max(largest, np.finfo(np.float32).tiny))
