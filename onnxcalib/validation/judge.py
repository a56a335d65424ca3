"""Apply the gates that the user asked for to the measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ..config import ValidateConfig
from ..errors import GateError
from ..report import OutputRecord, list_judged, list_rows, name_some, spell_worst
from ..targets.violation import NOT_RUN, LintRecord
from ..verdict import GateRecord, Interval, ReferenceRecord, ScoreRecord, Verdict, spell_interval
from .compare import Comparisons

# Gates on onnxruntime's own kernels.
KERNEL_GATES = frozenset({"max_unfused", "max_steps", "max_saturating"})
# Shares of samples are not binary fractions: 241 of 250 must pass a limit of 96.4%.
ROUNDING = 1e-9


class _Judged(NamedTuple):
    """Whether a gate holds, in words, and what was measured, as ``GateRecord`` has it."""

    passed: bool
    text: str
    measured: float | None = None
    interval: Interval | None = None
    unit: str = ""


def check_gates(found: Comparisons, config: ValidateConfig) -> None:
    """Raise GateError for a gate that cannot be measured on these outputs, or that no model could fail.

    Where an output could not be compared, gates on outputs are not refused: they fail.
    """
    if config.max_drop is not None:
        _check_drop(found.scores, config.max_drop, config.confident)
    if found.missed:
        return
    if config.min_agreement is not None and all(record.agreement is None for record in list_rows(found.outputs)):
        raise GateError(
            "min_agreement: found no output that is class scores, (samples, classes), probabilities of classes at"
            " each position, or whole numbers; agreement needs one; use --min-sqnr, or --metric with --max-drop"
        )
    if config.min_sqnr is not None and all(record.sqnr_db is None for record in found.outputs):
        raise GateError("min_sqnr: found no output of floats; SQNR needs one; use --min-agreement")


def _check_drop(scores: Sequence[ScoreRecord], limit: float, confident: bool) -> None:
    if not scores:
        raise GateError(
            "max_drop: found no labels; accuracy needs the class of every sample; give --labels, or ask for"
            " --min-agreement or --min-sqnr in its place"
        )
    score = scores[0]
    if confident and score.drop_interval is None and math.isfinite(score.drop):
        raise GateError(
            f"confident: found one number for all samples from metric {score.name}, which has no interval; return one"
            " number for each sample, or leave --confident out"
        )
    if 0 < score.float_score <= limit:
        raise GateError(
            f"max_drop: found {limit:g} where {score.name} of the float model is {score.float_score:.6g}; not even a"
            " drop to 0 would fail; give less, in the unit of the score"
        )


def check_reference(config: ValidateConfig, obstacle: str) -> None:
    """Raise GateError where there is a gate on the reference, and none to judge by.

    obstacle: why onnx's evaluator does not run the quantized model; empty where it does.
    """
    if config.min_reference_sqnr is None:
        return
    if config.reference is None:
        raise GateError(
            "min_reference_sqnr: found no reference; the gate needs samples that onnx's evaluator runs; give"
            " --reference 4, or leave the gate out"
        )
    if obstacle:
        raise GateError(
            f"min_reference_sqnr: onnx's evaluator cannot judge the quantized model: {obstacle}; leave the gate out,"
            " or change the operator"
        )


def judge(found: Verdict, config: ValidateConfig, missed: Iterable[str] = ()) -> tuple[GateRecord, ...]:
    """One record for every gate that ``config`` sets, in the order of _GATES, after ``check_gates``; last the target's.

    NaN passes no gate, nor does an infinite score, nor an output that could not be compared (``missed``). A model whose
    outputs are not finite where the float model's are passes none at all. With ``confident`` a gate judges the end of
    the interval that is nearer to the limit, not the measured value.
    """
    broken = next(
        (f"; {each.broken:,} values of {each.name} are not finite" for each in found.outputs if each.broken), ""
    )
    records = []
    for name, measure in _GATES.items():
        limit = getattr(config, name)
        if limit is not None and (found.fused or name not in KERNEL_GATES):
            each = measure(found, limit, config.confident, tuple(missed))
            numbers = each.measured, each.interval, each.unit
            records.append(GateRecord(name, each.passed and not broken, each.text + broken, limit, *numbers))
    if found.lint is not None:  # of the file alone, whatever its outputs are
        records.append(_judge_target(found, found.lint))
    return tuple(records)


def _judge_target(found: Verdict, lint: LintRecord) -> GateRecord:
    """The rules hold, and the runtime, where it is installed, runs the file."""
    device = found.device
    if device is None:
        return GateRecord("target", lint.passed, lint.text)
    run = device.fault or f"{device.runtime} ran {device.samples} of {found.samples} samples, {device.placement}"
    if device.speedup is not None:
        run += f", {device.speedup:.2f} times as fast as the float model there{spell_interval(device.speedup_interval)}"
    return GateRecord("target", lint.passed and not device.fault, f"{lint.text.removesuffix(NOT_RUN)}; {run}")


def _judge_placed(found: Verdict, limit: float, confident: bool, missed: tuple[str, ...]) -> _Judged:
    device = found.device
    if device is None or (device.fault and not device.placed_of):
        return _Judged(False, f"{device.fault if device else 'the device was not run'}, at least {limit:g}%")
    first = f"; off: {name_some(off.node for off in device.off)}" if device.off else ""
    passed = _least(device.placed, None, limit, confident)
    return _Judged(passed, f"{device.placement}{first}, at least {limit:g}%", device.placed, unit="%")


def _judge_drop(found: Verdict, limit: float, confident: bool, missed: tuple[str, ...]) -> _Judged:
    score = found.scores[0]
    unit, form = (" points", ".2f") if score.name.startswith("top-") else ("", ".6g")
    where = f" on {score.output}" if score.output else ""
    passed = math.isfinite(score.drop) and _most(score.drop, score.drop_interval, limit, confident)
    change = f"{score.name}{where} {score.float_score:{form}} to {score.quantized_score:{form}}, a drop of"
    drop = f"{score.drop:{form}}{unit}{spell_interval(score.drop_interval, form)}"
    text = f"{change} {drop}, {_spell_scope(confident)}at most {limit:g}"
    return _Judged(passed, text, score.drop, score.drop_interval, unit.strip())


def _judge_agreement(found: Verdict, limit: float, confident: bool, missed: tuple[str, ...]) -> _Judged:
    if missed:
        return _Judged(False, f"output {missed[0]} could not be compared, at least {limit:g}%")
    shares = [
        (record.agreement, record.agreement_interval, record.name)
        for record in list_rows(found.outputs)
        if record.agreement is not None
    ]
    share, interval, name = min(shares, key=lambda each: _low(each[0], each[1], confident))
    percent = None if interval is None else (100 * interval[0], 100 * interval[1])
    passed = _least(100 * share, percent, limit, confident)
    text = f"{100 * share:.2f}%{spell_interval(percent)}"
    text = f"{text} on {name}, {_spell_scope(confident)}at least {limit:g}%"
    return _Judged(passed, text, 100 * share, percent, "%")


def _judge_sqnr(found: Verdict, limit: float, confident: bool, missed: tuple[str, ...]) -> _Judged:
    return _judge_decibels(found.outputs, limit, confident, missed)


def _judge_reference(found: Verdict, limit: float, confident: bool, missed: tuple[str, ...]) -> _Judged:
    reference = found.reference or ReferenceRecord(0)
    if not reference.missed and all(record.sqnr_db is None for record in reference.deployed):
        return _Judged(False, f"no output of floats to judge, at least {limit:g} dB")
    return _judge_decibels(reference.deployed, limit, confident, reference.missed)


def _judge_decibels(outputs: Sequence[OutputRecord], limit: float, confident: bool, missed: tuple[str, ...]) -> _Judged:
    if missed:
        return _Judged(False, f"output {missed[0]} could not be compared, at least {limit:g} dB")
    ratios = [
        (record.sqnr_db, record.sqnr_interval, record.name)
        for record in list_judged(outputs)
        if record.sqnr_db is not None
    ]
    sqnr, interval, name = min(ratios, key=lambda each: _low(each[0], each[1], confident))
    passed = _least(sqnr, interval, limit, confident)
    text = f"{sqnr:.2f} dB{spell_interval(interval)}"
    text = f"{text} on {name}, {_spell_scope(confident)}at least {limit:g} dB"
    return _Judged(passed, text, sqnr, interval, "dB")


def _judge_size(found: Verdict, limit: float, confident: bool, missed: tuple[str, ...]) -> _Judged:
    sizes = f"{found.quantized_bytes:,} of {found.float_bytes:,} bytes"
    ratio = found.size_ratio
    return _Judged(ratio <= limit, f"{ratio:.3f} ({sizes}), at most {limit:g}", ratio)


def _judge_speedup(found: Verdict, limit: float, confident: bool, missed: tuple[str, ...]) -> _Judged:
    latency = found.latency
    passed = _least(latency.speedup, latency.speedup_interval, limit, confident)
    speedup = f"{latency.speedup:.2f} times as fast{spell_interval(latency.speedup_interval)}"
    text = f"{speedup} at batch {latency.batch}, {_spell_scope(confident)}at least {limit:g}"
    return _Judged(passed, text, latency.speedup, latency.speedup_interval)


def _judge_unfused(found: Verdict, limit: float, confident: bool, missed: tuple[str, ...]) -> _Judged:
    count = len(found.unfused)
    return _Judged(count <= limit, f"{count} QuantizeLinear and DequantizeLinear left, at most {limit}", count)


def _judge_steps(found: Verdict, limit: float, confident: bool, missed: tuple[str, ...]) -> _Judged:
    contract = found.contract
    if contract.mismatched:
        more = f" and {len(contract.mismatched) - 1} more" if len(contract.mismatched) > 1 else ""
        return _Judged(False, f"{contract.mismatched[0]}{more} is dequantized on another grid than it was quantized on")
    if not contract.tensors:
        return _Judged(True, f"no integer tensor to judge, at most {limit}")
    worst = contract.tensors[0]
    where = f" at {worst.tensor} ({worst.op})" if worst.steps else ""
    steps = "1 step" if worst.steps == 1 else f"{worst.steps} steps"
    text = f"{steps} between graph optimizations off and on{where}, at most {limit}"
    return _Judged(worst.steps <= limit, text, worst.steps)


def _judge_saturating(found: Verdict, limit: float, confident: bool, missed: tuple[str, ...]) -> _Judged:
    kernels, layers = found.saturation.kernels, found.saturation.layers
    if not kernels:
        return _Judged(True, f"no integer kernel to judge, at most {limit}")
    what = spell_worst(found.saturation.outputs)
    there = f" ({what} there)" if what else ""
    count = f"{len(layers)} of {kernels} integer kernels can saturate on x86 without VNNI{there}"
    return _Judged(len(layers) <= limit, f"{count}, at most {limit}", len(layers))


_GATES: dict[str, Callable[[Verdict, float, bool, tuple[str, ...]], _Judged]] = {
    "max_drop": _judge_drop,
    "min_agreement": _judge_agreement,
    "min_sqnr": _judge_sqnr,
    "max_size_ratio": _judge_size,
    "min_speedup": _judge_speedup,
    "max_unfused": _judge_unfused,
    "max_steps": _judge_steps,
    "max_saturating": _judge_saturating,
    "min_reference_sqnr": _judge_reference,
    "min_placed": _judge_placed,
}


def _most(value: float, interval: Interval | None, limit: float, confident: bool) -> bool:
    judged = interval[1] if confident and interval else value
    return bool(judged <= limit + ROUNDING * max(1.0, abs(limit)))


def _least(value: float, interval: Interval | None, limit: float, confident: bool) -> bool:
    judged = interval[0] if confident and interval else value
    return bool(judged >= limit - ROUNDING * max(1.0, abs(limit)))


def _low(value: float, interval: Interval | None, confident: bool) -> tuple[bool, float]:
    """A key that sorts outputs by the value that is judged, NaN first."""
    judged = interval[0] if confident and interval else value
    return not math.isnan(value), judged


def _spell_scope(confident: bool) -> str:
    return "the whole interval " if confident else ""
