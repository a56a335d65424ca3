"""``onnxcalib calibrate``: reads options, calls the library, writes the ranges of activations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxcalib.config import load_config

from .console import open_console, print_lines
from .exitstatus import report_faults
from .files import STDOUT, check_folders, list_read, prepare_outputs, write_texts
from .options import SAMPLES_HELP, AllowCode, Config, Options, Quiet, Verbose, list_calibration_options, with_settings

OUTPUT_HELP = r"Where to write; - is standard output. \[default: MODEL with .ranges.json]"
HISTOGRAMS_HELP = "Histograms to choose ranges from, without a pass over the samples: a file of --save-histograms."
SAVE_HELP = "Where to write the histograms of all activations, for another --range or another machine."
PLAN_HELP = "Bit plan to calibrate for: a file that onnxcalib plan wrote."


@with_settings(list_calibration_options())
def calibrate(
    *,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A trained float ONNX model.", show_default=False)],
    calib: Annotated[Path, typer.Option(help=f"Unlabelled samples: {SAMPLES_HELP}")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help=OUTPUT_HELP, show_default=False)] = None,
    plan: Annotated[Path | None, typer.Option(help=PLAN_HELP, metavar="FILE")] = None,
    histograms: Annotated[Path | None, typer.Option(help=HISTOGRAMS_HELP, metavar="FILE")] = None,
    save_histograms: Annotated[Path | None, typer.Option(help=SAVE_HELP, metavar="FILE")] = None,
    config: Config = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    options: Options,
) -> None:
    """Write the range of each activation of MODEL, to be read, edited and given to quantize --ranges.

    Example: onnxcalib calibrate model.onnx --calib images/ --range min-max -o ranges.json
    """
    with report_faults(verbose=verbose):
        settings = load_config(config, options, allow_code=allow_code)
        target = output or model.parent / f"{model.stem}.ranges.json"
        read = [calib, config, plan, histograms, *list_read(settings)]
        outputs = {"--output": target, "--save-histograms": save_histograms}
        prepare_outputs(outputs, read, models=[model], quiet=quiet, texts=["--output"])
        check_folders(settings, [path for path in outputs.values() if path is not None and path != STDOUT], read)
        from onnxcalib import pipeline

        from .progress import ProgressObserver

        with ProgressObserver(quiet=quiet) as observer:
            prepared = pipeline.prepare(model, calib, settings, plan=plan, observer=observer)
            ranges = pipeline.calibrate(prepared, histograms=histograms, save_histograms=save_histograms)
        if target == STDOUT:
            write_texts({target: ranges.to_json() + "\n"})
        else:
            ranges.save(target)
        if not quiet and target != STDOUT:
            count = len(ranges.activations) + len(ranges.requantized)
            text = f"{target}: the ranges of {count} activations; onnxcalib quantize --ranges {target} uses them"
            print_lines(open_console(), [text])
