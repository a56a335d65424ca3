"""Make a bit plan: candidates of all sets, stitched into one model, are judged by its size and its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from onnx import ModelProto

from ..bitplan import FLOAT, BitPlan, SetRecord, Totals
from ..config import QuantizeConfig
from ..data import CalibrationSet
from ..errors import ConfigError
from ..graph.save import fingerprint, model_bytes
from ..limits import read_limit
from ..runtime.session import Session
from ..spec import BitSet, Candidate
from .allocate import Bits, Budgets, allocate
from .calibrate import batch_size
from .sensitivity import JUDGES, Measured, divergence_of, judged_outputs

FLOAT_BITS = 32
BUDGETS = ("max_size", "max_bops", "max_loss")


def make_bit_plan(
    original: ModelProto,
    measured: Measured,
    stitch: Callable[[Bits], ModelProto],
    config: QuantizeConfig,
    samples: CalibrationSet,
    *,
    name_of: Callable[[str, Candidate], str],
    excluded: Sequence[str],
) -> BitPlan:
    """The bits within the settings' budgets; ``stitch`` gives the model with all sets at these.

    name_of: the bits that a layer has at a candidate, which are its own where settings say so; excluded: layers that
    stay in float.

    Raises ConfigError for budgets that cannot be met.
    """
    judge, sets = _Judge(original, samples, config.threads or 0), measured.sets
    eight = tuple(max(each.losses) for each in sets)
    asked = [_keep(each, config.candidates) for each in sets]

    def bops_of(bits: Bits) -> int:
        return sum(each.costs[c].bops for each, c in zip(sets, bits, strict=True))

    of_float = model_bytes(original), FLOAT_BITS**2 * sum(each.macs for each in sets)
    widest = stitch(eight)
    of_eight = model_bytes(widest), bops_of(eight)
    limits = [
        None if text is None else read_limit(text).resolve(of_float=whole, of_eight=wide)
        for text, whole, wide in zip((config.max_size, config.max_bops), of_float, of_eight, strict=True)
    ]
    budgets = Budgets(*limits, config.max_loss)
    chosen = allocate(
        asked, budgets, size_of=lambda bits: model_bytes(stitch(bits)), loss_of=lambda bits: judge.loss_of(stitch(bits))
    )
    names = {n: name_of(n, c) for each, c in zip(sets, chosen.bits, strict=True) for n in each.layers}

    return BitPlan(
        model=fingerprint(original),
        budgets={k: v for k, v in zip(BUDGETS, (*limits, config.max_loss), strict=True) if v},
        layers={**names, **dict.fromkeys(excluded, FLOAT)},
        totals=Totals(
            predicted_loss=chosen.predicted_loss,
            measured_loss=chosen.measured_loss,
            bytes=model_bytes(stitch(chosen.bits)),
            bops=bops_of(chosen.bits),
        ),
        eight_bit=Totals(
            predicted_loss=sum(each.losses[c] for each, c in zip(sets, eight, strict=True)),
            measured_loss=judge.loss_of(widest),
            bytes=of_eight[0],
            bops=of_eight[1],
        ),
        bound=chosen.bound,
        rounds=chosen.rounds,
        sets=tuple(_record(each, {c: name_of(each.layers[0], c) for c in each.losses}) for each in sets),
    )


def _record(each: BitSet, names: Mapping[Candidate, str]) -> SetRecord:
    return SetRecord(
        layers=each.layers,
        macs=each.macs,
        loss={names[c]: loss for c, loss in each.losses.items()},
        bytes={names[c]: cost.bytes for c, cost in each.costs.items()},
        bops={names[c]: cost.bops for c, cost in each.costs.items()},
    )


def _keep(each: BitSet, names: Sequence[str]) -> BitSet:
    """The set with the candidates that were asked for, or with what it has where these are none."""
    losses = {c: loss for c, loss in each.losses.items() if str(c) in names} or each.losses
    if not any(np.isfinite(loss) for loss in losses.values()):
        raise ConfigError(
            f"{each.layers[0]}: found outputs that are not finite at each of its candidates"
            f" {', '.join(map(str, losses))}; exclude the layer"
        )
    return replace(each, losses=losses)


class _Judge:
    """The float model's outputs on the first JUDGES samples."""

    def __init__(self, original: ModelProto, samples: CalibrationSet, threads: int):
        session = Session(original, threads=threads)
        size, self.threads, self.batches = min(batch_size(session, samples), JUDGES), threads, []
        done = 0
        for feeds in samples.batches(size):
            self.batches.append((feeds, session.run(feeds)))
            done += size
            if done >= JUDGES:
                break
        self.names = judged_outputs([wanted for _, wanted in self.batches])

    def loss_of(self, model: ModelProto) -> float:
        return divergence_of(Session(model, threads=self.threads), self.batches, self.names)
