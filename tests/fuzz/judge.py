"""What is wrong with how a case ended, and under which heading it is counted."""

from __future__ import annotations

import os
import re

from tests.fuzz.bases import BASES, OUTPUTS
from tests.fuzz.case import Case, Outcome
from tests.fuzz.harness import LIMIT, MOST_MEMORY

ENDS = {0: "accepted", 1: "refused", 2: "usage", 3: "gate"}
BAD = (
    "traceback",
    "unexpected",
    "status",
    "signal",
    "hang",
    "memory",
    "changed inputs",
    "left files",
    "no meaning",
    "lines",
)
_TRACEBACKS = ("Traceback (most recent call last)", "panicked", "Exception ignored", "core dumped")
_APOLOGIES = re.compile("unexpected [A-Z]|please report|internal error", re.IGNORECASE)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NOT_A_NUMBER = re.compile(r"(?<![\w.])[-+]?nan(?![\w.])", re.IGNORECASE)


def judge(case: Case, outcome: Outcome) -> dict[str, str]:
    """Heading -> what was found, of all that is wrong; nothing where a case ended as it must."""
    found = {**_judge_end(outcome), **_judge_files(case, outcome), **_judge_text(case, outcome)}
    if outcome.status in (0, 3):
        found |= _judge_meaning(case, outcome)
    return found


def _judge_end(outcome: Outcome) -> dict[str, str]:
    found = {}
    if outcome.signal is not None:
        found["signal"] = f"ended by signal {outcome.signal}"
    if outcome.hung or outcome.seconds > LIMIT:
        found["hang"] = f"took {outcome.seconds:.0f} s"
    if outcome.memory > MOST_MEMORY:
        found["memory"] = f"took {outcome.memory / 1e9:.1f} GB above the usual"
    if outcome.status is not None and outcome.status not in ENDS:
        found["status"] = f"ended with {outcome.status}"
    return found


def _judge_files(case: Case, outcome: Outcome) -> dict[str, str]:
    found = {}
    done = outcome.status in (0, 3)
    given = {os.path.normpath(option.partition("=")[2]) for option in case.options if not case.refused}
    changed = [name for name in outcome.changed if not (done and name in {*OUTPUTS, *given})]
    if changed:
        found["changed inputs"] = f"changed {', '.join(changed)}"
    left = [*outcome.left, *(name for name in outcome.appeared if not done or "onnxcalib-" in name)]
    if left:
        found["left files"] = f"left {', '.join(left)}"
    return found


def _judge_text(case: Case, outcome: Outcome) -> dict[str, str]:
    found = {}
    text = outcome.stdout + outcome.stderr
    if any(each in text for each in _TRACEBACKS) and "--verbose" not in case.options:
        found["traceback"] = text.strip().splitlines()[-1]
    if match := _APOLOGIES.search(text):
        found["unexpected"] = text[match.start() : match.start() + 200]
    if match := _CONTROLS.search(text):
        found["lines"] = f"control character {match[0]!r} in {text[max(match.start() - 40, 0) : match.end() + 20]!r}"
    errors = [line for line in outcome.stderr.splitlines() if line.startswith("error:")]
    silent = any(name.startswith("stderr") for name, *_ in case.around)
    if outcome.status in (1, 2) and len(errors) != 1 and not silent:
        found["lines"] = f"{len(errors)} lines of stderr start with 'error:'"
    return found


def _judge_meaning(case: Case, outcome: Outcome) -> dict[str, str]:
    if case.refused:
        return {"no meaning": "accepted what can have no meaning"}
    command = BASES[case.base].command
    if "-o" in command and not {*case.options} & {"--help", "--version"}:
        if not outcome.appeared and not outcome.changed:
            return {"no meaning": "wrote nothing"}
    # What inspect says of quantize may tell that a weight is none, and tables begin with names, which may be anything.
    lines = outcome.stdout.splitlines()
    shown = "\n".join(line for line in lines if not line.lower().startswith(("quantize ", "nan ")))
    if outcome.status == 0 and (match := _NOT_A_NUMBER.search(shown)):
        return {"no meaning": f"printed {match[0]} in {shown[max(match.start() - 60, 0) : match.end() + 20]!r}"}
    return {}
