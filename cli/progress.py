"""Progress of a run on stderr: a bar on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from onnxcalib.config import QuantizeConfig
from onnxcalib.errors import escape_controls
from onnxcalib.pages.content import spell_seconds
from onnxcalib.report import BlockRecord, Observer

from .console import WIDEST, PlainConsole, print_lines
from .remaining import ONE_PASS, Remaining, time_stages
from .table import find_mark, shorten

BAR, LEAST_TEXT = 10, 8  # columns of the bar, and of what is told beside it
LONGER = 4  # columns by which the time that is left may become longer until the next event
# Without a terminal, a line comes so many seconds after the last one, by how long the run goes on already.
EVERY = {60.0: 10.0, 600.0: 30.0, float("inf"): 60.0}


class ProgressObserver(Observer):
    """Tells notes, warnings and progress, or with ``quiet`` warnings alone, until the end of its ``with``.

    config: of ``quantize``, from which it is known how long stages take that the run tells to expect; otherwise the
    time that is left is told of the current stage alone, but for the ``last`` one. A stage is named once it has
    something to tell.
    """

    def __init__(self, *, quiet: bool = False, config: QuantizeConfig | None = None, last: str = "") -> None:
        self._console = PlainConsole(stderr=True)
        self._console.width = min(self._console.width, WIDEST)
        self._quiet = quiet
        self._remaining, self._config = Remaining(last), config
        self._stage, self._kind, self._what = "", "", ""  # kind: what is counted, such as blocks; what: the last one
        self._done = self._total = 0
        self._named = False
        self._start = self._last = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._ended = threading.Event()
        if self._console.is_screen and not quiet:
            self._bar = Progress(
                BarColumn(bar_width=BAR),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                _Left(self),
                TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
                console=self._console,
                transient=True,
            )

    def __enter__(self) -> ProgressObserver:
        if self._bar:
            self._bar.start()
        elif not self._quiet:
            threading.Thread(target=self._tell_regularly, daemon=True, name="progress").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._bar:
            self._bar.stop()

    def stage(self, name: str) -> None:
        self._remaining.begin(name)
        self._stage, self._kind, self._what, self._named = name, "", "", False
        self._done = self._total = 0
        self._show()

    def expect(self, stages: Sequence[str]) -> None:
        if self._config is not None:
            self._remaining.expect(time_stages(stages, self._config))

    def progress(self, done: int, total: int) -> None:
        if self._kind and self._done < self._total:  # blocks or layers are told in place of what each does
            return
        if done <= self._done or self._kind or not self._total:  # another pass of the stage
            self._remaining.count(whole=self._stage in ONE_PASS)
        self._kind, self._what, self._done, self._total = "", "", done, total
        self._remaining.advance(done, total)
        self._show()

    def note(self, text: str) -> None:
        if not self._quiet:
            if not self._named and self._stage:
                self._console.print(f"{self._stage} ...")
            self._named = True
            print_lines(self._console, [f"  {text}"])

    def warn(self, text: str) -> None:
        print_lines(self._console, [f"warning: {text}"])

    def blocks(self, total: int) -> None:
        self._done, self._total = 0, total
        self._kind, self._what = "block", ""
        self._remaining.count(whole=True)
        self._show()

    def block(self, record: BlockRecord) -> None:
        self._advance("block", describe_block(record))

    def planned(self, layer: str) -> None:
        self._advance("layer", layer)

    def _advance(self, kind: str, text: str) -> None:
        self._done += 1
        self._kind, self._what = kind, text
        self._remaining.advance(self._done, max(self._done, self._total))
        self._show()

    def _show(self) -> None:
        """Bring the bar up to date."""
        if self._bar:
            text = escape_controls(f"{self._stage}: {self._what}" if self._what else self._stage)
            beside = BAR + len(f" {self._total}/{self._total} {self.spell_left()} ") + LONGER
            room = max(LEAST_TEXT, self._console.width - beside)
            text = shorten(text, room, find_mark(self._console), room // 3)
            if self._task is not None and self._bar.tasks[-1].total == (self._total or None):
                self._bar.update(self._task, description=text, completed=self._done)
                return
            if self._task is not None:  # an unknown total cannot be given to one that has another
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(text, completed=self._done, total=self._total or None)

    def left(self) -> float | None:
        """Seconds that the run still takes; None while nobody knows."""
        return self._remaining.run_left()

    def spell_left(self) -> str:
        """About how long the run still takes, or what is known of the stage; empty where nothing is."""
        if (left := self.left()) is not None:
            return f"about {spell_seconds(left)} left"
        left = self._remaining.counted_left()
        return "" if left is None else f"about {spell_seconds(left)} of this stage left"

    def tell(self) -> None:
        """Print how far the run is, where the last line, or the start, is long enough ago."""
        now = time.monotonic()
        every = next(seconds for most, seconds in EVERY.items() if now - self._start <= most)
        if now - self._last < every or not self._stage:
            return
        self._last = now
        counted = f"{self._kind} {self._done} of {self._total}".strip() if self._total else ""
        what = " ".join(filter(None, (counted, self._what)))
        parts = [what, self.spell_left() or f"{spell_seconds(now - self._start)} so far"]
        self._console.print(f"{self._stage}: {', '.join(filter(None, parts))}")

    def _tell_regularly(self) -> None:
        while not self._ended.wait(1.0):
            self.tell()


class _Left(ProgressColumn):
    """The time that is left, which goes on between two events."""

    def __init__(self, observer: ProgressObserver) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._observer = observer

    def render(self, task: Task) -> Text:
        return Text(self._observer.spell_left())


def describe_block(record: BlockRecord) -> str:
    """``name: loss before -> after``, and the outcome where it is not a plain reconstruction."""
    text = record.name
    if record.loss_before is not None and record.loss_after is not None:
        text += f": loss {record.loss_before:.3g} -> {record.loss_after:.3g}"
    return text if record.outcome == "reconstructed" else f"{text} ({record.outcome})"
