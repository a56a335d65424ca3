"""Make a bit plan: candidates of all sets, stitched into one model, are judged by its size and its outputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import ModelProto

from ..bitplan import BitPlan, SetRecord, Totals
from ..config import QuantizeConfig
from ..data import CalibrationSet
from ..graph.save import fingerprint, model_bytes
from ..limits import read_limit
from ..numeric.divergence import Divergence
from ..runtime.session import Session
from .allocate import Bits, Budgets, allocate
from .calibrate import batch_size
from .sensitivity import JUDGES, Measured

FLOAT_BITS = 32
BUDGETS = ("max_size", "max_bops", "max_loss")


def make_bit_plan(
    original: ModelProto,
    measured: Measured,
    stitch: Callable[[Bits], ModelProto],
    config: QuantizeConfig,
    samples: CalibrationSet,
) -> BitPlan:
    """The bits within the settings' budgets; ``stitch`` gives the model with all sets at these.

    Raises ConfigError for budgets that cannot be met.
    """
    judge, sets = _Judge(original, samples, config.threads or 0), measured.sets
    eight = tuple(max(each.losses) for each in sets)

    def bops_of(bits: Bits) -> int:
        return sum(each.costs[c].bops for each, c in zip(sets, bits, strict=True))

    of_float = model_bytes(original), FLOAT_BITS**2 * sum(each.macs for each in sets)
    of_eight = model_bytes(stitch(eight)), bops_of(eight)
    limits = [
        None if text is None else read_limit(text).resolve(of_float=whole, of_eight=wide)
        for text, whole, wide in zip((config.max_size, config.max_bops), of_float, of_eight, strict=True)
    ]
    budgets = Budgets(*limits, config.max_loss)
    chosen = allocate(
        sets, budgets, size_of=lambda bits: model_bytes(stitch(bits)), loss_of=lambda bits: judge.loss_of(stitch(bits))
    )
    names = {n: str(c) for each, c in zip(sets, chosen.bits, strict=True) for n in each.layers}

    def totals(bits: Bits, predicted: float, loss: float) -> Totals:
        return Totals(predicted_loss=predicted, measured_loss=loss, bytes=model_bytes(stitch(bits)), bops=bops_of(bits))

    return BitPlan(
        model=fingerprint(original),
        budgets={k: v for k, v in zip(BUDGETS, (*limits, config.max_loss), strict=True) if v},
        layers=names,
        totals=totals(chosen.bits, chosen.predicted_loss, chosen.measured_loss),
        eight_bit=totals(
            eight, sum(each.losses[c] for each, c in zip(sets, eight, strict=True)), judge.loss_of(stitch(eight))
        ),
        bound=chosen.bound,
        rounds=chosen.rounds,
        sets=tuple(
            SetRecord(
                layers=each.layers,
                macs=each.macs,
                loss={str(c): loss for c, loss in each.losses.items()},
                bytes={str(c): cost.bytes for c, cost in each.costs.items()},
                bops={str(c): cost.bops for c, cost in each.costs.items()},
            )
            for each in sets
        ),
    )


class _Judge:
    """The float model's outputs on the first JUDGES samples."""

    def __init__(self, original: ModelProto, samples: CalibrationSet, threads: int):
        session = Session(original, threads=threads)
        size, self.threads, self.pairs = min(batch_size(session, samples), JUDGES), threads, []
        done = 0
        for feeds in samples.batches(size):
            self.pairs.append((feeds, session.run(feeds)))
            done += size
            if done >= JUDGES:
                break

    def loss_of(self, model: ModelProto) -> float:
        """Divergence of a model's outputs, the mean over those of floating point."""
        session = Session(model, threads=self.threads)
        found: dict[str, Divergence] = {}
        for feeds, wanted in self.pairs:
            given = session.run(feeds)
            for name, value in wanted.items():
                if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.shape == given[name].shape:
                    found.setdefault(name, Divergence()).add(value, given[name])
        return float(np.mean([each.value for each in found.values()])) if found else 0.0
