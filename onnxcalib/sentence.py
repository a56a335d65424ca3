"""What a run measured, in one sentence of plain words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .bitplan import BitPlan
from .report import MeasuredOn, OutputRecord, Report, list_judged, list_rows
from .verdict import Verdict

FEW = 100  # answers: below, they are counted, as a percentage would promise more than they tell
LEAST_DIFFERENCE = 0.1  # percent of an output: below, it is told as such


def sum_up_report(report: Report) -> str:
    """How near the outputs are to the float model's, the size and the speed; nothing that was not measured."""
    size = report.quantized_bytes / report.float_bytes if report.float_bytes else None
    speed = None if report.speed is None else (report.speed.speedup, report.speed.interval)
    where = "" if report.measured_on is None else _spell_source(report.measured_on)
    outputs = _describe_outputs(report.outputs, report.measured_on.samples if report.measured_on else 0)
    return "; ".join([*_at(outputs, where), *_describe_cost(size, speed, known=bool(outputs))])


def sum_up_verdict(verdict: Verdict) -> str:
    """As of a report, of the samples that the models were compared on."""
    speed = verdict.latency.speedup, verdict.latency.speedup_interval
    outputs = _describe_outputs(verdict.outputs, verdict.samples)
    cost = _describe_cost(verdict.size_ratio, speed if verdict.fused else None, known=bool(outputs))
    return "; ".join([*outputs, *cost])


def sum_up_plan(plan: BitPlan) -> str:
    """The bits that layers have, and what the planned model measured while it was planned."""
    counts: dict[str, int] = {}
    for bits in plan.layers.values():
        counts[bits] = counts.get(bits, 0) + 1
    parts = [", ".join(f"{count} layer{'s' * (count > 1)} at {bits}" for bits, count in sorted(counts.items()))]
    totals, eight = plan.totals, plan.eight_bit
    if totals.agreement is not None:
        parts.append(
            f"{_spell_percent(totals.agreement)} of the answers are the float model's on the samples planned with"
        )
    if eight.bytes:
        parts.append(f"the file will be {totals.bytes / eight.bytes:.3f} of that with all layers at 8 bits")
    return "; ".join(parts)


def _describe_outputs(outputs: Sequence[OutputRecord], samples: int) -> list[str]:
    """The answers of the output that has fewest of the float model's, and how far numbers are off at most."""
    rows = list_rows(outputs)
    answering = [row for row in rows if row.agreement is not None]
    parts = []
    if answering:
        worst = min(answering, key=lambda row: row.agreement or 0.0)
        which = f" for {worst.name}, the worst of {len(answering)} outputs" if len(answering) > 1 else ""
        parts.append(_spell_answers(worst, samples) + which)
    judged = [row for row in list_judged(outputs) if row.agreement is None and row.sqnr_db is not None]
    if judged:
        parts.append(_spell_difference(judged, others=bool(answering)))
    return parts


def _spell_answers(record: OutputRecord, samples: int) -> str:
    share, count = record.agreement or 0.0, record.positions or samples
    if 0 < count < FEW:
        amount = f"{round(share * count)} of {count} answers"
    else:
        amount = f"{_spell_percent(100 * share)} of {f'{count:,}' if count else 'the'} answers"
    return f"{amount} are the float model's{_spell_ends(record.agreement_interval)}"


def _spell_ends(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return ""
    low, high = (100 * end for end in interval)
    return f" ({math.floor(10 * low) / 10:g} to {math.ceil(10 * high) / 10:g}% at 95% confidence)"


def _spell_difference(records: Iterable[OutputRecord], *, others: bool) -> str:
    """The error of the worst output as a share of its values, which says more to most than decibels."""
    worst = min(record.sqnr_db for record in records if record.sqnr_db is not None)
    subject = "other outputs" if others else "outputs"
    if worst == math.inf:
        return f"{subject} are exactly the float model's"
    if not math.isfinite(worst):
        return f"{subject} have values that are no finite numbers where the float model's are"
    percent = 100 * 10 ** (-worst / 20)
    amount = f"less than {LEAST_DIFFERENCE}" if percent < LEAST_DIFFERENCE else f"{percent:.2g}"
    return f"{subject} differ from the float model's by {amount}% ({worst:.1f} dB)"


def _spell_percent(percent: float) -> str:
    """Cut after one decimal, so that 99.96 does not become 100."""
    return f"{math.floor(round(10 * percent, 6)) / 10:g}%"


def _spell_source(found: MeasuredOn) -> str:
    return {
        "held out": "on samples held out",
        "test": "on the test samples",
    }.get(found.source, "on the samples that it was made from")


def _at(parts: list[str], where: str) -> list[str]:
    return [f"{where}, {parts[0]}", *parts[1:]] if parts and where else parts


def _describe_cost(size: float | None, speed: tuple[float, tuple[float, float]] | None, *, known: bool) -> list[str]:
    """known: the float model was named before."""
    whose = "its" if known else "the float model's"
    parts = [] if size is None else [f"the file is {size:.2g} of {whose} size"]
    if speed is not None and all(map(math.isfinite, (speed[0], *speed[1]))):
        times, (low, high) = speed
        if low <= 1 <= high:
            parts.append(f"it runs as fast as float here, as far as can be told ({low:.2f} to {high:.2f} times)")
        elif times > 1:
            parts.append(f"it runs {times:.2g} times as fast here")
        else:
            parts.append(f"it runs slower here, {times:.2g} times as fast")
    return parts
