"""``onnxcalib plan``: reads options, calls the library, writes the bit plan and prints a table of its choices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxcalib.config import PLAN, QuantizeConfig, load_config
from onnxcalib.errors import OutputError
from onnxcalib.pages.script import check_installed

from .exitstatus import report_faults
from .files import STDOUT, check_folders, list_read, open_screen, prepare_outputs, write_texts
from .options import FLAG, SAMPLES_HELP, AllowCode, Config, Html, Options, Quiet, Verbose, list_options, with_settings

OUTPUT_HELP = r"Where to write; - is standard output. \[default: MODEL with .plan.json]"
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
    html: Html = None,
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
        _run(model, calib, target, settings, frontier=frontier, config=config, html=html, quiet=quiet)


def _run(
    model: Path,
    calib: Path,
    target: Path,
    settings: QuantizeConfig,
    *,
    frontier: bool,
    config: Path | None,
    html: Path | None,
    quiet: bool,
) -> None:
    planned = settings.planned or not frontier  # a curve needs no budget
    stem = target.name.removesuffix(".json").removesuffix(".plan")
    curve, plot = (target.parent / f"{stem}.frontier.{suffix}" for suffix in ("json", "png"))
    drawn = {"--frontier": curve, "the plot of --frontier": plot} if frontier else {}
    read = [calib, config, *list_read(settings)]
    if frontier and target == STDOUT:
        raise OutputError(f"--output: found {STDOUT} beside --frontier, which draws files beside it; name a file")
    outputs = {"--output": target if planned or not target.name else None, **drawn, "--html": html}
    prepare_outputs(outputs, read, models=[model], quiet=quiet, texts=["--output", "--html"])
    if html is not None:
        check_installed()
    files = [*([] if target == STDOUT else [target]), *((curve, plot) if frontier else ())]
    check_folders(settings, files, read)
    from onnxcalib import pipeline

    from . import planned as screens
    from .progress import ProgressObserver

    # Weights alone are measured twice, and a frontier beside a plan goes through all of it again.
    last = "" if settings.planned_alone or (planned and frontier) else "plan"
    with ProgressObserver(quiet=quiet, last=last) as observer:
        found = pipeline.plan(model, calib, settings, observer=observer) if planned else None
        traced = pipeline.frontier(model, calib, settings, observer=observer) if frontier else None
    contents: dict[Path, str | bytes] = {}
    if traced:
        from .plot import draw_frontier

        contents |= {curve: traced.to_json() + "\n", plot: draw_frontier(traced, model.name)}
    if found:
        contents[target] = found.to_json() + "\n"
    if html is not None:
        from onnxcalib.pages.page import draw_plan

        contents[html] = draw_plan(*(None if each is None else each.to_json() for each in (found, traced)))
    write_texts(contents)
    screen = open_screen(outputs.values())
    if found and not quiet:
        screens.print_plan(found, None if target == STDOUT else target, screen)
    if traced and not quiet:
        screens.print_frontier(traced, curve, plot, screen)
