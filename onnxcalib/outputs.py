"""The outputs of a command before its work: what cannot be written is refused, and what killed runs left is removed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from .errors import ModelError
from .files.reading import check_file
from .files.scratch import sweep
from .files.writing import check_outputs
from .graph.load import stored_files
from .graph.save import remove_stale_data


def claim_outputs(
    outputs: Mapping[str, Path | None], read: Sequence[Path | None], models: Sequence[Path]
) -> list[Path]:
    """Refuse outputs that cannot be written, that the run reads or that are named twice.

    outputs: option -> file, or None where it was not given. models: those that the run reads, whose external data count
    too. Returns the files that killed runs had left beside the outputs, which are removed. Raises OutputError, and
    ModelError for a model that is no file.
    """
    files = [*models, *(path for path in read if path is not None)]
    targets = [path for path in outputs.values() if path is not None]
    for model in models:
        check_file(model, ModelError, give="an ONNX file is needed; check the path")
        # External data are files that are there; a large model takes a while to be read for them.
        if any(map(os.path.lexists, targets)):
            with suppress(ModelError):  # the job tells what is wrong with a model
                files += stored_files(model)
    check_outputs(outputs, files)
    removed = sweep(*(path.parent for path in targets))
    return removed + [file for path in targets for file in remove_stale_data(path)]
