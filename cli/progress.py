"""Progress of a run on stderr: a bar on a terminal, short plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from onnxcalib.errors import escape_controls
from onnxcalib.report import BlockRecord, Observer

from .console import PlainConsole


class ProgressObserver(Observer):
    """Prints stages, notes and blocks, or with ``quiet`` warnings alone; the end of its ``with`` ends the bar."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = PlainConsole(stderr=True)
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._done = self._total = 0
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

    def note(self, text: str) -> None:
        self._print(f"  {text}")

    def warn(self, text: str) -> None:
        self._console.print(f"warning: {text}")

    def blocks(self, total: int) -> None:
        self._done, self._total = 0, total
        if self._bar:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task("blocks", total=total)

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

    def _print(self, text: str) -> None:
        if not self._quiet:
            self._console.print(text)


def describe_block(record: BlockRecord) -> str:
    """``name: loss before -> after``, and the outcome where it is not a plain reconstruction."""
    text = record.name
    if record.loss_before is not None and record.loss_after is not None:
        text += f": {record.loss_before:.3g} -> {record.loss_after:.3g}"
    return text if record.outcome == "reconstructed" else f"{text} ({record.outcome})"
