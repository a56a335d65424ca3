"""Judge what was measured by the gates that were asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from ..config import ValidateConfig
from ..errors import ConfigError
from ..verdict import GateRecord, Interval, Verdict


def judge(found: Verdict, config: ValidateConfig, unlike: Iterable[str] = ()) -> tuple[GateRecord, ...]:
    """One record for every gate of ``config``, in its order; unlike: outputs of unlike shapes.

    What is not a number passes no gate. With ``confident`` the end of the interval that is nearer to the limit is
    judged in place of the measure itself. Raises ConfigError where a gate asks for what was not measured.
    """
    asked = {name: getattr(config, name) for name in _GATES}
    return tuple(
        GateRecord(name, *_GATES[name](found, limit, config.confident, tuple(unlike)))
        for name, limit in asked.items()
        if limit is not None
    )


def _judge_drop(found: Verdict, limit: float, confident: bool, unlike: tuple[str, ...]) -> tuple[bool, str]:
    if not found.scores:
        raise ConfigError(
            "max_drop: found no labels; accuracy needs the classes of the samples; give --labels, or --min-agreement or"
            " --min-sqnr in its place"
        )
    score = found.scores[0]
    unit = " points" if score.name.startswith("top-") else ""
    if confident and score.drop_interval is None and not math.isnan(score.drop):
        raise ConfigError(
            f"confident: found one number for all samples from metric {score.name}, which has no interval; return one"
            " number for each sample, or leave --confident out"
        )
    passed = _most(score.drop, score.drop_interval, limit, confident)
    change = f"{score.name} {score.float_score:.2f} to {score.quantized_score:.2f}, a drop of {score.drop:.2f}{unit}"
    return passed, f"{change}{_spell_interval(score.drop_interval)}, {_spell_scope(confident)}at most {limit:g}"


def _judge_agreement(found: Verdict, limit: float, confident: bool, unlike: tuple[str, ...]) -> tuple[bool, str]:
    records = [record for record in found.outputs if record.agreement is not None]
    if not records:
        raise ConfigError(
            "min_agreement: found no output that is class scores, (samples, classes), or whole numbers; agreement needs"
            " one; use --min-sqnr, or --metric with --max-drop"
        )
    if unlike:
        return False, f"output {unlike[0]} could not be compared, at least {limit:g}%"
    worst = min(records, key=lambda record: _low(record.agreement, record.agreement_interval, confident))
    interval = tuple(100 * end for end in worst.agreement_interval)
    passed = _least(100 * worst.agreement, interval, limit, confident)
    share = f"{100 * worst.agreement:.2f}%{_spell_interval(interval)}"
    return passed, f"{share} on {worst.name}, {_spell_scope(confident)}at least {limit:g}%"


def _judge_sqnr(found: Verdict, limit: float, confident: bool, unlike: tuple[str, ...]) -> tuple[bool, str]:
    if unlike:
        return False, f"output {unlike[0]} could not be compared, at least {limit:g} dB"
    records = [record for record in found.outputs if record.sqnr_db is not None]
    if not records:
        raise ConfigError("min_sqnr: found no output of floats; SQNR needs one; use --min-agreement")
    worst = min(records, key=lambda record: _low(record.sqnr_db, record.sqnr_interval, confident))
    passed = _least(worst.sqnr_db, worst.sqnr_interval, limit, confident)
    sqnr = f"{worst.sqnr_db:.2f} dB{_spell_interval(worst.sqnr_interval)}"
    return passed, f"{sqnr} on {worst.name}, {_spell_scope(confident)}at least {limit:g} dB"


def _judge_size(found: Verdict, limit: float, confident: bool, unlike: tuple[str, ...]) -> tuple[bool, str]:
    sizes = f"{found.quantized_bytes:,} of {found.float_bytes:,} bytes"
    return found.size_ratio <= limit, f"{found.size_ratio:.3f} ({sizes}), at most {limit:g}"


def _judge_speedup(found: Verdict, limit: float, confident: bool, unlike: tuple[str, ...]) -> tuple[bool, str]:
    latency = found.latency
    passed = _least(latency.speedup, latency.speedup_interval, limit, confident)
    speedup = f"{latency.speedup:.2f} times as fast{_spell_interval(latency.speedup_interval)}"
    return passed, f"{speedup} at batch {latency.batch}, {_spell_scope(confident)}at least {limit:g}"


def _judge_unfused(found: Verdict, limit: int, confident: bool, unlike: tuple[str, ...]) -> tuple[bool, str]:
    count = len(found.unfused)
    return count <= limit, f"{count} QuantizeLinear and DequantizeLinear left, at most {limit}"


def _judge_steps(found: Verdict, limit: int, confident: bool, unlike: tuple[str, ...]) -> tuple[bool, str]:
    contract = found.contract
    if contract.mismatched:
        more = f" and {len(contract.mismatched) - 1} more" if len(contract.mismatched) > 1 else ""
        return False, f"{contract.mismatched[0]}{more} is dequantized on another grid than it was quantized on"
    if not contract.tensors:
        return True, f"no tensor is quantized, at most {limit}"
    worst = contract.tensors[0]
    where = f" at {worst.tensor} ({worst.op})" if worst.steps else ""
    steps = "1 step" if worst.steps == 1 else f"{worst.steps} steps"
    return worst.steps <= limit, f"{steps} between graph optimizations off and on{where}, at most {limit}"


_GATES: dict[str, Callable[[Verdict, float, bool, tuple[str, ...]], tuple[bool, str]]] = {
    "max_drop": _judge_drop,
    "min_agreement": _judge_agreement,
    "min_sqnr": _judge_sqnr,
    "max_size_ratio": _judge_size,
    "min_speedup": _judge_speedup,
    "max_unfused": _judge_unfused,
    "max_steps": _judge_steps,
}


def _most(value: float, interval: Interval | None, limit: float, confident: bool) -> bool:
    return bool((interval[1] if confident and interval else value) <= limit)


def _least(value: float, interval: Interval | None, limit: float, confident: bool) -> bool:
    return bool((interval[0] if confident and interval else value) >= limit)


def _low(value: float, interval: Interval | None, confident: bool) -> tuple[bool, float]:
    """Sorts outputs by what is judged of them, NaN first."""
    judged = interval[0] if confident and interval else value
    return not math.isnan(value), judged


def _spell_interval(interval: Interval | None) -> str:
    return "" if interval is None else f" (95%: {interval[0]:.2f} to {interval[1]:.2f})"


def _spell_scope(confident: bool) -> str:
    return "the whole interval " if confident else ""
