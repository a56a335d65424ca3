"""``onnxcalib calibrate``: reads options, calls the library, writes the ranges of activations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxcalib.config import EFFORT, PLAN, QuantizeConfig, load_config

from .exitstatus import report_faults
from .files import check_targets, list_read
from .options import SAMPLES_HELP, Config, Options, Quiet, Verbose, list_options, with_settings

OUTPUT_HELP = r"Where to write. \[default: MODEL with .ranges.json]"
_SETTINGS = tuple(each for each in list_options(QuantizeConfig) if each.option.panel not in (EFFORT, PLAN))


@with_settings(_SETTINGS)
def calibrate(
    *,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A trained float ONNX model.", show_default=False)],
    calib: Annotated[Path, typer.Option(help=f"Unlabelled samples: {SAMPLES_HELP}")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help=OUTPUT_HELP, show_default=False)] = None,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    options: Options,
) -> None:
    """Write the range of each activation of MODEL, to be read, edited and given to quantize --ranges.

    Example: onnxcalib calibrate model.onnx --calib images/ --range min-max -o ranges.json
    """
    with report_faults(verbose=verbose):
        settings = load_config(config, options)
        target = output or model.parent / f"{model.stem}.ranges.json"
        check_targets({"--output": target}, [model, calib, config, *list_read(settings)])
        from onnxcalib import pipeline

        from .progress import ProgressObserver

        with ProgressObserver(quiet=quiet) as observer:
            ranges = pipeline.calibrate(pipeline.prepare(model, calib, settings, observer=observer))
        ranges.save(target)
        if not quiet:
            count = len(ranges.activations) + len(ranges.requantized)
            print(f"{target}: the ranges of {count} activations; onnxcalib quantize --ranges {target} uses them")
