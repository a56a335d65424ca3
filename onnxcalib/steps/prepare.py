"""Prepare: bring a model into the form that planning expects, its outputs unchanged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from ..config import QuantizeConfig
from ..errors import ModelError
from ..graph.batchnorm import FoldedNorm, fold_affine, fold_batchnorm
from ..graph.emit import FOUR_BIT_IR, FOUR_BIT_OPSET, PER_CHANNEL_OPSET
from ..graph.fold import fold_constants
from ..graph.gemm import normalise_gemm
from ..graph.load import refuse_unsuitable
from ..graph.normalise import drop_dead, normalise
from ..graph.opset import raise_opset
from ..runtime.session import Session

# Largest change of an output by the passes, relative to its largest value: they reorder float32 sums, no more.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Prepared:
    """The rewritten model, each pass with its count of rewrites, and the norms folded into layers."""

    model: ModelProto
    passes: dict[str, int]
    norms: tuple[FoldedNorm, ...]


def prepare(model: ModelProto, config: QuantizeConfig) -> Prepared:
    """Normalise, raise the opset as far as the bits need it, fold constants and norms; mutates ``model``.

    Raises ModelError for a model that cannot be quantized.
    """
    passes = normalise(model)
    four_bit = 4 in (config.weight_bits, config.first_last_bits, config.activation_bits)
    model, raised = raise_opset(model, FOUR_BIT_OPSET if four_bit else PER_CHANNEL_OPSET)
    model.ir_version = max(model.ir_version, FOUR_BIT_IR if four_bit else model.ir_version)
    passes["opset raised"] = int(raised)
    passes["constants folded"] = fold_constants(model)
    norms = fold_batchnorm(model)
    passes["BatchNormalization folded"] = len(norms)
    passes["affine chains folded"] = fold_affine(model)
    passes["Gemm normalised"] = normalise_gemm(model)
    passes["dead removed"] = passes.get("dead removed", 0) + drop_dead(model)
    refuse_unsuitable(model)
    return Prepared(model, passes, norms)


def check_unchanged(original: ModelProto, prepared: ModelProto, feeds: dict[str, np.ndarray], threads: int = 0) -> float:
    """Largest relative change of any output on one batch; ModelError where it is above TOLERANCE."""
    wanted = Session(original, threads=threads).run(feeds)
    given = Session(prepared, threads=threads).run(feeds)
    worst = 0.0
    for name, value in wanted.items():
        if value.dtype.kind != "f" or not value.size:
            continue
        change = float(np.abs(value - given[name]).max() / max(float(np.abs(value).max()), 1e-12))
        if not change <= TOLERANCE:
            raise ModelError(
                f"output {name}: preparation changed it by {change:.1e} of its largest value; {TOLERANCE:.0e} is"
                " allowed; this is a fault of onnxcalib on this model, please report it"
            )
        worst = max(worst, change)
    return worst
