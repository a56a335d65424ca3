"""Reasons why a layer loses what it loses: one line for each thing that its numbers show."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..graph.dynamic_lstm import DYNAMIC_LSTM
from ..graph.inspect.quantized_layers import FLOAT_BITS, Operand, QuantizedLayer, QuantizedProduct
from ..graph.ops import INTEGER_PRODUCT, RECURRENT
from ..numeric.diagnosis import Symptoms, channel_gains, diagnose, rounding_sqnr
from .survey import Measured, Survey, joined_parts

# Thresholds above which a symptom is named as a reason.
WIDE_SPREAD, MANY_CLIPPED, UNLIKE_CHANNELS, MANY_DEAD, UNLIKE_PARTS = 4.0, 0.005, 8.0, 0.1, 4.0
CANCELLED, ABOUT_EQUAL = 6.0, 3.0  # dB
ALIKE, WRONG_GAIN = 0.9, 0.25


def find_reasons(each: Measured, survey: Survey, worse: str | None = None) -> tuple[list[str], bool]:
    """What the numbers of a layer or a product show, one line each, and whether it was solved for errors before it.

    worse: the name of a layer or product before it that loses more, where the weights were solved.
    """
    layer = each.pair.layer
    kept: dict[str, float] = {}
    gains = _name_gains(each, survey)
    if isinstance(layer, QuantizedLayer):
        scale, integers = layer.scale * layer.steps, layer.integers / layer.steps
        kept[f"{layer.weight_bits}-bit weights"] = rounding_sqnr(integers, scale, layer.axis)
        if layer.grid is None:
            limit = _list_parts(kept) if gains else _name_unknown_input(layer, each.alone.sqnr_db, *kept.values())
            return [limit, *gains], False
    symptoms: list[str] = []
    for name, operand, axis in _name_operands(layer):
        values = survey.values(operand.source)
        if operand.grid is not None:
            found = diagnose(values, *operand.grid, max(axis, -values.ndim) if axis < 0 else min(axis, values.ndim - 1))
            kept[f"{operand.bits}-bit {name}"] = found.sqnr_db
            symptoms += _name_symptoms(found, operand.grid, name)
            symptoms += _name_parts(_measure_parts(survey, operand.source))
    if each.pair.path:
        kept["grid that clips its output"] = each.grid.sqnr_db
    fault = _name_cancelling(each.alone.sqnr_db, list(kept.values()))
    fitted = bool(worse and (fault or gains)) and isinstance(layer, QuantizedLayer)
    faults = [f"its weights were solved for an input with the errors of {worse}"] if fitted else gains or fault
    if isinstance(layer, QuantizedLayer):
        symptoms += _name_channels(layer)
    return [_list_parts(kept) if faults else _name_limit(kept), *faults, *symptoms], fitted


def _name_operands(layer: QuantizedLayer | QuantizedProduct) -> list[tuple[str, Operand, int]]:
    """What each operand is called, the operand, and its axis of channels, over which products are summed."""
    if isinstance(layer, QuantizedLayer):
        return [("input", operand, -1 if layer.op == "MatMul" else 1) for operand in layer.operands]
    return list(zip(("left operand", "right operand"), layer.operands, (-1, -2), strict=True))


def _measure_parts(survey: Survey, tensor: str) -> dict[str, float]:
    """The largest absolute value of each tensor that a Concat joins to this one."""
    return {name: float(np.abs(survey.values(name)).max()) for name in joined_parts(survey.index, tensor)}


def _name_limit(kept: dict[str, float]) -> str:
    """Which parts of a layer lose most. kept: SQNR in dB with each part alone."""
    least = min(kept.values())
    limits = [part for part, sqnr in kept.items() if sqnr <= least + ABOUT_EQUAL]
    verb = "limits" if len(limits) == 1 and not limits[0].endswith("weights") else "limit"
    return f"its {' and its '.join(limits)} {verb} it: {_list_parts(kept)}"


def _list_parts(kept: dict[str, float]) -> str:
    """SQNR with each part of a layer alone, the worst first."""
    ordered = sorted(kept.items(), key=lambda each: each[1])
    return ", ".join(f"{sqnr:.1f} dB with the {part} alone" for part, sqnr in ordered)


def _name_unknown_input(layer: QuantizedLayer, alone: float, weight: float) -> str:
    """Which part limits a layer whose input's grid is not known. alone, weight: SQNR in dB with both and with one."""
    weights = f"{layer.weight_bits}-bit weights"
    if layer.activation_bits >= FLOAT_BITS or weight <= alone + ABOUT_EQUAL:
        return _name_limit({weights: weight})
    what = f"its {layer.activation_bits}-bit input limits it"
    return f"{what}: {alone:.1f} dB with both, {weight:.1f} dB with the {weights} alone"


def _name_gains(each: Measured, survey: Survey) -> list[str]:
    """Channels that are a multiple of the float model's, which no rounding causes, but a wrong scale or sign."""
    wanted, given = survey.values(each.pair.output), survey.values(f"alone:{each.result}")
    if wanted.shape != given.shape or wanted.ndim < 2:
        return []
    axis = wanted.ndim - 1 if each.pair.layer.op in ("MatMul", INTEGER_PRODUCT, DYNAMIC_LSTM, *RECURRENT) else 1
    gains, correlations = channel_gains(wanted, given, axis)
    wrong = np.flatnonzero((np.abs(correlations) > ALIKE) & (np.abs(gains - 1) > WRONG_GAIN))
    if not wrong.size:
        return []
    which = f"{wrong.size} of its {gains.size} output channels, number {wrong[0]} first,"
    return [f"{which} are about {gains[wrong[0]]:.2g} times the float model's: a wrong scale or sign, or saturation"]


def _name_cancelling(alone: float, kept: list[float]) -> list[str]:
    """Whether sums are far smaller than their terms, whose errors they keep."""
    with np.errstate(divide="ignore", over="ignore"):  # nothing lost, or all
        expected = -10 * np.log10(np.power(10.0, [-each / 10 for each in kept]).sum())
    if not alone < expected - CANCELLED:
        return []
    return [f"its products cancel: its output keeps {alone:.1f} dB where these would leave {expected:.1f} dB"]


def _name_symptoms(found: Symptoms, grid: tuple[float, float, float], what: str) -> list[str]:
    _, low, high = grid
    reasons = []
    if found.spread > WIDE_SPREAD:
        reasons.append(f"its {what}'s grid, {low:.3g} to {high:.3g}, is {found.spread:.0f} times as wide as its bulk")
    if found.clipped > MANY_CLIPPED:
        reasons.append(f"{100 * found.clipped:.1f}% of its {what} saturate")
    if found.unlike > UNLIKE_CHANNELS:
        reasons.append(
            f"a channel of its {what} reaches {found.unlike:.0f} times as far as the middle one, on one scale"
        )
    if found.dead > MANY_DEAD:
        reasons.append(f"{100 * found.dead:.0f}% of its {what}'s channels are dead")
    return reasons


def _name_parts(parts: Mapping[str, float]) -> list[str]:
    ranges = sorted((value, name) for name, value in parts.items() if value > 0)
    if len(ranges) < 2 or ranges[-1][0] <= UNLIKE_PARTS * ranges[0][0]:
        return []
    (least, one), (most, other) = ranges[0], ranges[-1]
    return [f"a Concat joins {one}, up to {least:.3g}, and {other}, up to {most:.3g}, on one scale"]


def _name_channels(layer: QuantizedLayer) -> list[str]:
    """Output channels of the weight with very different ranges on one scale, or with zeros only."""
    rows = np.abs(np.moveaxis(layer.integers, layer.axis, 0)).reshape(layer.shape[layer.axis], -1).max(axis=1)
    alive = rows[rows > 0]
    reasons = []
    if layer.scale.size == 1 and alive.size and alive.max() > UNLIKE_CHANNELS * np.median(alive):
        reasons.append("the ranges of its weight's channels are very unlike, on one scale")
    if alive.size < (1 - MANY_DEAD) * rows.size:
        reasons.append(f"{rows.size - alive.size} of its {rows.size} output channels have weights of 0 alone")
    return reasons
