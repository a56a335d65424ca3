"""Write files whole or not at all, and never over a file that the command reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnxcalib.config import QuantizeConfig, ValidateConfig
from onnxcalib.errors import OutputError


def check_targets(targets: Mapping[str, Path | None], sources: Sequence[Path | None]) -> None:
    """Refuse targets that cannot be written, that the run reads, or that are named twice, before any work is done.

    targets: option -> file, or None where the option was not given. Raises OutputError.
    """
    from onnxcalib.pipeline import check_output

    wanted = {option: path for option, path in targets.items() if path is not None}
    read = [source for source in sources if source is not None]
    for option, path in wanted.items():
        check_output(path, *read)
        others = [other for other, file in wanted.items() if other != option and file.resolve() == path.resolve()]
        if others:
            raise OutputError(
                f"{path}: is the file of both {option} and {others[0]}; one would replace the other; give one of them"
                " another name"
            )


def list_read(settings: QuantizeConfig | ValidateConfig) -> list[Path]:
    """The files that settings name."""
    named = (getattr(settings, "latencies", None), settings.data.tokenizer)
    return [Path(name) for name in named if name is not None]
