"""``onnxcalib inspect``: reads a file, prints what is in it, writes the record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxcalib.config import REPORTS

from .exitstatus import report_faults
from .files import open_screen, prepare_outputs, write_texts
from .options import Quiet, Verbose

MODEL_HELP = "An ONNX file, float or quantized, by whichever tool."


def inspect(
    *,
    model: Annotated[Path, typer.Argument(metavar="FILE", help=MODEL_HELP, show_default=False)],
    json: Annotated[
        Path | None, typer.Option(help="Write all of it to this file; - is standard output.", rich_help_panel=REPORTS)
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Print what is in FILE, what onnxruntime runs on integers, and what quantize would do with a float model.

    Example: onnxcalib inspect model.onnx
    """
    with report_faults(verbose=verbose):
        outputs = {"--json": json}
        prepare_outputs(outputs, [], models=[model], quiet=quiet, texts=[*outputs])
        from onnxcalib.inspection.run import inspect as read

        contents = read(model)
        if json is not None:
            write_texts({json: contents.to_json() + "\n"})
        if not quiet:
            from .contents import print_contents

            print_contents(contents, open_screen(outputs.values()))
