"""Progress of a run on stderr: a bar on a terminal, short plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from onnxcalib.errors import escape_controls
from onnxcalib.report import BlockRecord, Observer

from .console import PlainConsole

# Without a terminal a line on a pass comes after so many seconds, and again after as many.
LINE_SECONDS = 10.0


class ProgressObserver(Observer):
    """Prints stages, notes and blocks, or with ``quiet`` warnings alone; the end of its ``with`` ends the bar."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = PlainConsole(stderr=True)
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._done = self._total = 0
        self._stage, self._passed = "", 0  # of the pass that is told now: its stage, and what of it is done
        self._start = self._last = time.monotonic()
        if self._console.is_terminal and not quiet:
            self._bar = Progress(
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}", markup=False),
                console=self._console,
                transient=True,
            )

    def __enter__(self) -> ProgressObserver:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def stage(self, name: str) -> None:
        self._print(f"{name} ...")
        self._done = self._total = self._passed = 0
        self._stage, self._start = name, time.monotonic()
        self._last = self._start
        self._open_task(None, name)

    def progress(self, done: int, total: int) -> None:
        if self._done < self._total:  # blocks or layers are told in place of what each does
            return
        now = time.monotonic()
        if done <= self._passed:  # another pass of the stage
            self._start = self._last = now
            self._open_task(total, self._stage)
        self._passed = done
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif now - self._last >= LINE_SECONDS:
            self._last = now
            left = (now - self._start) / done * (total - done)
            self._print(f"  {self._stage}: {done}/{total} done, about {left:.0f} s left")

    def note(self, text: str) -> None:
        self._print(f"  {text}")

    def warn(self, text: str) -> None:
        self._console.print(f"warning: {text}")

    def blocks(self, total: int) -> None:
        self._done, self._total = 0, total
        self._open_task(total, "blocks")

    def block(self, record: BlockRecord) -> None:
        self._advance("block", describe_block(record))

    def planned(self, layer: str) -> None:
        self._advance("layer", layer)

    def _advance(self, kind: str, text: str) -> None:
        self._done += 1
        if self._bar and self._task is not None:
            self._bar.update(self._task, advance=1, description=escape_controls(text))
        else:
            self._print(f"  {kind} {self._done}/{self._total} {text}")

    def _open_task(self, total: int | None, text: str) -> None:
        if self._bar:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(escape_controls(text), total=total)

    def _print(self, text: str) -> None:
        if not self._quiet:
            self._console.print(text)


def describe_block(record: BlockRecord) -> str:
    """``name: loss before -> after``, and the outcome where it is not a plain reconstruction."""
    text = record.name
    if record.loss_before is not None and record.loss_after is not None:
        text += f": {record.loss_before:.3g} -> {record.loss_after:.3g}"
    return text if record.outcome == "reconstructed" else f"{text} ({record.outcome})"
