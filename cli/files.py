"""What a command reads and writes: outputs never replace inputs, and what killed runs left is removed."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxcalib.config import QuantizeConfig, ValidateConfig
from onnxcalib.errors import OutputError, escape_controls
from onnxcalib.files.writing import follow_links
from onnxcalib.targets import is_name

from .console import open_console
from .main import Stream

if TYPE_CHECKING:
    from rich.console import Console

STDOUT = Path("-")  # standard output in place of a file


def prepare_outputs(
    outputs: Mapping[str, Path | None],
    read: Sequence[Path | None],
    *,
    models: Sequence[Path],
    quiet: bool,
    texts: Collection[str] = (),
) -> None:
    """As ``claim_outputs``; what was removed is printed on stderr.

    texts: the options of a text, one of which may give standard output by ``-``. Raises OutputError where two do.
    """
    from onnxcalib.outputs import claim_outputs

    streamed = [option for option in texts if outputs.get(option) == STDOUT]
    if len(streamed) > 1:
        raise OutputError(
            f"{STDOUT}: is standard output for both {streamed[0]} and {streamed[1]}, which takes one of them; name a"
            " file for the other"
        )
    files = {option: path for option, path in outputs.items() if option not in streamed}
    for path in claim_outputs(files, read, models):
        if not quiet:
            print(f"removed {escape_controls(str(path))}, which a run that was killed had left", file=sys.stderr)


def open_screen(outputs: Iterable[Path | None]) -> Console:
    """Where a run prints its tables: stderr where an output of it is standard output, which then has that alone."""
    return open_console(stderr=STDOUT in outputs)


def write_texts(contents: Mapping[Path, str | bytes]) -> None:
    """Write files, all or none, and behind them what goes to standard output. Raises OutputError."""
    from onnxcalib.files.writing import write_together

    write_together({path: content for path, content in contents.items() if path != STDOUT})
    if STDOUT in contents:
        text = contents[STDOUT]
        assert isinstance(text, str)
        if isinstance(sys.stdout, Stream):
            sys.stdout.write_record(text)
        else:
            sys.stdout.write(text)


def check_folders(settings: QuantizeConfig, outputs: Sequence[Path], read: Sequence[Path | None]) -> None:
    """Raise OutputError for a folder of settings that would lie in one that the run reads, or in place of an output."""
    for name in ("cache_dir", "work_dir"):
        if (folder := getattr(settings, name)) is not None:
            _check_folder(name, folder, outputs, read)


def _check_folder(name: str, folder: str, outputs: Sequence[Path], read: Sequence[Path | None]) -> None:
    try:
        followed = follow_links(Path(folder))
        around = (followed, *followed.parents)
        inside = next((each for each in read if each is not None and follow_links(each) in around), None)
        same = any(followed == follow_links(path) for path in outputs)
    except (OSError, ValueError):  # no path of a file; what reads it, or writes there, says so
        return
    if inside is not None and inside.is_dir():
        raise OutputError(
            f"{name}: {folder} lies in {inside}, which this run reads; that folder stays as it is; choose another"
        )
    if same:
        raise OutputError(f"{name}: {folder} is an output of this run; choose another folder")


def list_read(settings: QuantizeConfig | ValidateConfig) -> list[Path]:
    """The files that settings name, the one that holds a metric included."""
    named = [getattr(settings, "latencies", None), settings.data.tokenizer]
    if settings.target is not None and not is_name(settings.target):
        named.append(settings.target)
    if isinstance(settings, ValidateConfig) and settings.metric is not None:
        module = settings.metric.partition(":")[0].replace(".", "/")
        named += [f"{module}.py", f"{module}/__init__.py"]
    return [Path(name) for name in named if name is not None]
