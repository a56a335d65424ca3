"""What a command reads and writes: outputs never replace inputs, and what killed runs left is removed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from onnxcalib.config import QuantizeConfig, ValidateConfig
from onnxcalib.errors import OutputError, escape_controls
from onnxcalib.files.writing import follow_links
from onnxcalib.targets import is_name


def prepare_outputs(
    outputs: Mapping[str, Path | None], read: Sequence[Path | None], *, models: Sequence[Path], quiet: bool
) -> None:
    """As ``claim_outputs``; what was removed is printed on stderr."""
    from onnxcalib.outputs import claim_outputs

    for path in claim_outputs(outputs, read, models):
        if not quiet:
            print(f"removed {escape_controls(str(path))}, which a run that was killed had left", file=sys.stderr)


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
