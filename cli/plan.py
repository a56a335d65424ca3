"""``onnxcalib plan``: reads options, calls the library, writes the bit plan and prints a table of its choices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxcalib.config import PLAN, QuantizeConfig, load_config

from .exitstatus import report_faults
from .files import check_folders, list_read, prepare_outputs
from .options import FLAG, SAMPLES_HELP, AllowCode, Config, Options, Quiet, Verbose, list_options, with_settings

OUTPUT_HELP = r"Where to write. \[default: MODEL with .plan.json]"
FRONTIER_HELP = "Show the least loss of every size too; without a budget, instead of a plan."


@with_settings(list_options(QuantizeConfig, planning=True), first=PLAN)
def plan(
    *,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A trained float ONNX model.", show_default=False)],
    calib: Annotated[Path, typer.Option(help=f"Unlabelled samples: {SAMPLES_HELP}")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help=OUTPUT_HELP, show_default=False)] = None,
    frontier: Annotated[
        bool, typer.Option("--frontier", metavar=FLAG, help=FRONTIER_HELP, rich_help_panel=PLAN)
    ] = False,
    config: Config = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    options: Options,
) -> None:
    """Choose the bits of every layer of MODEL within a budget, by what each loses and costs, for quantize --plan.

    Example: onnxcalib plan model.onnx --calib images/ --max-size 0.2 -o plan.json
    """
    with report_faults(verbose=verbose):
        settings = load_config(config, options, allow_code=allow_code)
        target = output or model.parent / f"{model.stem}.plan.json"
        _run(model, calib, target, settings, frontier=frontier, config=config, quiet=quiet)


def _run(
    model: Path,
    calib: Path,
    target: Path,
    settings: QuantizeConfig,
    *,
    frontier: bool,
    config: Path | None,
    quiet: bool,
) -> None:
    planned = settings.planned or not frontier  # a curve needs no budget
    stem = target.name.removesuffix(".json").removesuffix(".plan")
    curve, plot = (target.parent / f"{stem}.frontier.{suffix}" for suffix in ("json", "png"))
    drawn = {"--frontier": curve, "the plot of --frontier": plot} if frontier else {}
    read = [calib, config, *list_read(settings)]
    prepare_outputs(
        {"--output": target if planned or not target.name else None, **drawn}, read, models=[model], quiet=quiet
    )
    check_folders(settings, [target, *((curve, plot) if frontier else ())], read)
    from onnxcalib import pipeline
    from onnxcalib.files.writing import write_together

    from . import summary
    from .progress import ProgressObserver

    with ProgressObserver(quiet=quiet) as observer:
        found = pipeline.plan(model, calib, settings, observer=observer) if planned else None
        traced = pipeline.frontier(model, calib, settings, observer=observer) if frontier else None
    contents: dict[Path, str | bytes] = {}
    if traced:
        from .plot import draw_frontier

        contents |= {curve: traced.to_json() + "\n", plot: draw_frontier(traced, model.name)}
    if found:
        contents[target] = found.to_json() + "\n"
    write_together(contents)
    if found and not quiet:
        summary.print_plan(found, target)
    if traced and not quiet:
        summary.print_frontier(traced, curve, plot)
