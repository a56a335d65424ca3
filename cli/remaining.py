"""How long a run still takes, from what is known of its stages and from how fast it has been so far."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from onnxcalib.config import FULL_BITS, QuantizeConfig

ONE_PASS = ("explain",)  # stages of which one pass, over the layers, is nearly all
UNIT = "calibrate"  # the stage that others are compared with: passes of the float model over the samples
LEAST_SHARE = 0.03  # of what is counted: below, it says little on how long the whole takes
OVERDUE = 0.1  # of the time that a stage was given: so much is left at least until it ends
AT_ONCE = 0.05  # seconds in which nothing is computed: what is told so was done in an earlier run
# How often as long as calibration each stage takes: reconstruction took 4.0 at W8A8 and 11 at W4A4 on ResNet-20, 5.5
# and 4.6 at W8A8 on MobileNetV2 and MiniLM, and the verification 0.7 to 1.1.
SOLVED, VERIFIED, ROUNDED = 4.6, 1.0, 0.3
SOLVED_FEW_BITS = {"fast": 6.0, "balanced": 11.0, "best": 25.0}
TUNED = {"distill": 10.0, "statistics": 2.0, "biases": 10.0}
DISTILLED_FEW_BITS = 150.0  # of a model whose layers read few bits


def time_stages(stages: Sequence[str], config: QuantizeConfig) -> dict[str, float]:
    """Calibration and the stages of ``quantize`` behind it -> how often as long as that each takes."""
    few = max(config.weight_bits, config.activation_bits) < FULL_BITS
    solved = SOLVED if config.weight_bits >= FULL_BITS else SOLVED_FEW_BITS[config.effort]
    times = {
        "reconstruct": solved if config.does("reconstruct") else ROUNDED,
        "evaluate": 1.0,
        "verify": VERIFIED,
        **TUNED,
        "distill": DISTILLED_FEW_BITS if few else TUNED["distill"],
    }
    return {UNIT: 1.0, **{name: times[name] for name in stages if name in times}}


class Remaining:
    """Hears the stages of a run, and says how many seconds it still takes.

    last: the stage with which the run is as good as over; what is known of the whole of it is known of the run.
    """

    def __init__(self, last: str = "") -> None:
        self._expected: Mapping[str, float] = {}
        self._last_stage = last
        self._stage, self._unit = "", 0.0
        self._begun = self._counted = self._last = time.monotonic()
        self._share = self._first = self._next = 0.0
        self._whole = False

    def expect(self, times: Mapping[str, float]) -> None:
        """The current stage and what follows -> how often as long as calibration each takes; see ``time_stages``."""
        self._expected = times

    def begin(self, stage: str) -> None:
        if self._stage == UNIT and self._share:  # it was computed, and not known from an earlier run
            self._unit = time.monotonic() - self._begun
        names = list(self._expected)
        if self._stage in names and stage in names and names.index(stage) <= names.index(self._stage):
            self._expected = {}  # bodies of nodes go through all stages, and nobody knows how many are to come
        self._stage, self._begun = stage, time.monotonic()
        self.count(whole=False)

    def count(self, *, whole: bool) -> None:
        """What is told from here on is a share of the whole stage, as its blocks are, or of one of its passes."""
        self._counted = self._last = time.monotonic()
        self._share, self._first, self._whole = 0.0, 0.0, whole

    def advance(self, done: int, total: int) -> None:
        """So much of what is counted is done. A pass is timed from its first batch on, which has a session to open."""
        starts = not self._share and not self._whole
        self._share, self._next, self._last = done / total, min(1.0, (done + 1) / total), time.monotonic()
        if starts or self._last - self._counted < AT_ONCE:
            self._first, self._counted = self._share, self._last

    def counted_left(self) -> float | None:
        """Seconds that what is counted still takes, by how fast it was; None where too little is done."""
        done = self._share - self._first
        if done < LEAST_SHARE:
            return None
        now = time.monotonic()
        left = (self._last - self._counted) / done * (1 - self._share)
        slow = (now - self._counted) / (self._next - self._first) * (1 - self._next)  # were the next one done now
        return max(left - (now - self._last), slow, OVERDUE * left)

    def run_left(self) -> float | None:
        """Seconds that the run still takes; None while that is not known, as before calibration is on its way."""
        counted, spent = self.counted_left(), time.monotonic() - self._begun
        if self._stage == self._last_stage and self._whole:
            return counted
        unit = spent + counted if self._stage == UNIT and counted is not None else self._unit
        if not unit or self._stage not in self._expected:
            return None
        names = list(self._expected)
        later = sum(self._expected[name] for name in names[names.index(self._stage) + 1 :]) * unit
        given = self._expected[self._stage] * unit
        planned = max(given - spent, OVERDUE * given)
        if counted is None:
            return planned + later
        if not self._whole:
            return max(counted, planned) + later
        return self._share * counted + (1 - self._share) * planned + later
