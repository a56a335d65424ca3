"""Operators that the target has not, and those that stand for them in its file: what that changes is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onnx import ModelProto

from ..graph.edit import copy_model
from ..graph.passes.hard_sigmoids import harden_sigmoids
from ..graph.passes.normalise import normalise
from ..numeric.metrics import Comparison
from ..runtime.session import Session, is_float
from ..targets import Target


def write_approximations(model: ModelProto, target: Target) -> int:
    """Write Sigmoid as HardSigmoid where the target allows no Sigmoid; returns the count. Mutates ``model``."""
    return harden_sigmoids(model) if _lacks_sigmoid(target) else 0


def _lacks_sigmoid(target: Target) -> bool:
    return target.rules.operators is not None and "Sigmoid" in target.rules.operators.forbidden


def approximate(
    original: ModelProto,
    wanted: Mapping[str, Any],
    feeds: Mapping[str, Any],
    target: Target,
    *,
    warn: Callable[[str], None],
    threads: int = 0,
) -> tuple[ModelProto, Mapping[str, Any]]:
    """The float model with the target's operators, and its outputs on ``feeds``; warns of how far these are off.

    wanted: the original's outputs. A model whose operators the target has is given back as it is.
    """
    if not _lacks_sigmoid(target):
        return original, wanted
    model = copy_model(original)
    normalise(model)
    count = write_approximations(model, target)
    if not count:
        return original, wanted
    outputs = Session(model, name="the model with the target's operators", threads=threads).run(feeds)
    losses = []
    for name, value in wanted.items():
        if is_float(value) and value.shape == outputs[name].shape:
            comparison = Comparison()
            comparison.add(value.reshape(1, -1), outputs[name].reshape(1, -1))
            losses.append((comparison.sqnr_db, name))
    worst = f", which brings output {min(losses)[1]} to {min(losses)[0]:.1f} dB" if losses else ""
    warn(
        f"Sigmoid: found {count}; target {target.name!r} takes HardSigmoid, which stands for each{worst} before"
        " anything is quantized; a model that was trained with HardSigmoid loses nothing by it"
    )
    return model, outputs
