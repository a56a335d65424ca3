"""``onnxcalib quantize``: reads options, calls the library, writes the model and the report, prints a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from onnxcalib.config import EXPERT, PLAN, QuantizeConfig, load_config
from onnxcalib.pages.script import check_installed

from .exitstatus import ExitStatus, report_faults
from .files import STDOUT, check_folders, list_read, open_screen, prepare_outputs, write_texts
from .options import SAMPLES_HELP, AllowCode, Config, Html, Options, Quiet, Verbose, list_options, with_settings

OUTPUT_HELP = r"Where to write. \[default: MODEL with .quantized.onnx]"
PLAN_HELP = "Bit plan to use: a file that onnxcalib plan wrote."
TEST_HELP = r"Samples to measure the result on. \[default: a quarter of --calib, held out, from 64 samples on]"
RANGES_HELP = "Ranges of activations to use: a file that onnxcalib calibrate wrote."


@with_settings(list_options(QuantizeConfig))
def quantize(
    *,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A trained float ONNX model.", show_default=False)],
    calib: Annotated[Path, typer.Option(help=f"Unlabelled samples: {SAMPLES_HELP}")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help=OUTPUT_HELP, show_default=False)] = None,
    plan: Annotated[Path | None, typer.Option(help=PLAN_HELP, rich_help_panel=PLAN, metavar="FILE")] = None,
    ranges: Annotated[Path | None, typer.Option(help=RANGES_HELP, rich_help_panel=EXPERT, metavar="FILE")] = None,
    test: Annotated[Path | None, typer.Option(help=TEST_HELP, show_default=False)] = None,
    config: Config = None,
    allow_code: AllowCode = False,
    report: Annotated[
        Path | None, typer.Option(help="Write all measurements to this JSON file; - is standard output.")
    ] = None,
    html: Html = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    options: Options,
) -> None:
    """Write MODEL with layers of 8, 4, 3 or 2 bits, as QuantizeLinear/DequantizeLinear pairs that onnxruntime fuses.

    Example: onnxcalib quantize model.onnx --calib images/ --weight-bits 4 -o small.onnx
    """
    with report_faults(verbose=verbose):
        settings = load_config(config, options, allow_code=allow_code)
        target = output or model.parent / f"{model.stem}.quantized.onnx"
        read = [calib, test, config, plan, ranges, *list_read(settings)]
        reports = {"report": report, "html": html}
        outputs = {"--output": target, "--report": report, "--html": html}
        prepare_outputs(outputs, read, models=[model], quiet=quiet, texts=["--report", "--html"])
        if html is not None:
            check_installed()
        check_folders(settings, [target], read)
        given = {"plan": plan, "ranges": ranges, "test": test}
        kept = _run(model, calib, target, settings, given=given, reports=reports, quiet=quiet)
    raise typer.Exit(ExitStatus.OK if kept else ExitStatus.GATE)


def _run(
    model: Path,
    calib: Path,
    output: Path,
    settings: QuantizeConfig,
    *,
    given: Mapping[str, Path | None],
    reports: Mapping[str, Path | None],
    quiet: bool,
) -> bool:
    """Whether the file keeps the rules of the target that the settings name. It is written all the same."""
    from onnxcalib import pipeline

    from .progress import ProgressObserver

    with ProgressObserver(quiet=quiet, config=settings) as observer:
        result = pipeline.quantize(model, calib, settings, **given, output=output, observer=observer)
    result.save(output, **{name: None if path == STDOUT else path for name, path in reports.items()})
    if STDOUT in reports.values():
        text = result.report.to_json()
        write_texts({STDOUT: text + "\n" if reports["report"] == STDOUT else _draw(text)})
    screen = open_screen(reports.values())
    if not quiet:
        from .summary import print_summary

        print_summary(result.report, output, screen)
    lint = result.report.lint
    if lint is not None and not (quiet and lint.passed):
        from .lint import print_lint

        print_lint(replace(lint, model=str(output)), screen)
    return lint is None or lint.passed


def _draw(text: str) -> str:
    from onnxcalib.pages.page import draw_report

    return draw_report(text)
