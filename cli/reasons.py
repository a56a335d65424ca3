"""What of a file does not run on integers, or not as it might, by reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from onnxcalib.report import FloatRecord, UnfusedRecord, name_some

MOST_REASONS = 8  # of nodes that stay in float; some are of one node each


def describe_in_float(in_float: Sequence[FloatRecord], *, file: str = "report") -> list[str]:
    """The number of nodes that stay in float, and their names by reason; nothing where there is none.

    file: which has all of them.
    """
    reasons: dict[str, list[FloatRecord]] = defaultdict(list)
    for record in in_float:
        reasons[f"{record.op}: {record.reason}" if record.bytes else record.reason].append(record)
    lines = [f"left in float: {len(in_float)}{_spell_bytes(in_float)}"] if in_float else []
    lines += [
        f"  {reason}: {name_some([record.name for record in records])}{_spell_bytes(records)}"
        for reason, records in list(reasons.items())[:MOST_REASONS]
    ]
    more = len(reasons) - MOST_REASONS
    return [*lines, f"  and {more} other reasons, in the {file} under in_float"] if more > 0 else lines


def _spell_bytes(records: Sequence[FloatRecord]) -> str:
    total = sum(record.bytes for record in records)
    return f" ({total:,} bytes of weights)" if total else ""


def describe_unfused(unfused: Sequence[UnfusedRecord]) -> list[str]:
    """The number of Q/DQ that onnxruntime did not fuse, and their tensors by reason."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for record in unfused:
        reasons[f"{record.op}: {record.reason}"].append(record.tensor)
    lines = [f"unfused Q/DQ: {len(unfused)}"]
    return lines + [f"  {reason}: {name_some(tensors)}" for reason, tensors in reasons.items()]
