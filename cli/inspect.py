"""``onnxcalib inspect``: reads a file, prints what is in it, writes the record."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from onnxcalib.config import REPORTS
from onnxcalib.pages.script import check_installed

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
    html: Annotated[
        Path | None, typer.Option(help="Write all of it to this file, as a page to look at.", rich_help_panel=REPORTS)
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Print what is in FILE, what onnxruntime runs on integers, and what quantize would do with a float model.

    Example: onnxcalib inspect model.onnx
    """
    with report_faults(verbose=verbose):
        outputs = {"--json": json, "--html": html}
        prepare_outputs(outputs, [], models=[model], quiet=quiet, texts=[*outputs])
        if html is not None:
            check_installed()
        with _uncollected():
            from onnxcalib.inspection.run import inspect as read

            contents = read(model)
        text = contents.to_json()
        texts = {} if json is None else {json: text + "\n"}
        if html is not None:
            from onnxcalib.pages.page import draw_contents

            texts[html] = draw_contents(text)
        write_texts(texts)
        if not quiet:
            from .contents import print_contents

            print_contents(contents, open_screen(outputs.values()))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's search for cycles, which goes through all that packages hold again and again, and finds none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
