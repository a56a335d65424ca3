"""``onnxcalib validate``: reads options, calls the library, writes reports, prints a verdict, ends with its status."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from onnxcalib.config import GATES, REPORTS, ValidateConfig, list_settings, load_config
from onnxcalib.errors import ConfigError
from onnxcalib.pages.script import check_installed

from .exitstatus import ExitStatus, report_faults
from .files import list_read, open_screen, prepare_outputs, write_texts
from .options import (
    FLAG,
    HTML_HELP,
    SAMPLES_HELP,
    AllowCode,
    Config,
    Options,
    Quiet,
    Verbose,
    list_options,
    with_settings,
)

FloatModel = Annotated[
    Path,
    typer.Argument(metavar="FLOAT", help="The float ONNX model; left out for --target alone.", show_default=False),
]
QuantizedModel = Annotated[
    Path | None, typer.Argument(metavar="QUANTIZED", help="The model that was made of it.", show_default=False)
]
Data = Annotated[
    Path | None, typer.Option(help=f"Samples that were not used to quantize: {SAMPLES_HELP}", show_default=False)
]
Labels = Annotated[
    Path | None,
    typer.Option(
        help="Classes of the samples: a .csv or .json file of file and class; or .npy, .npz, .txt or .csv with one"
        " class a sample, in their order. Without it they come from sub-folders named by class, or from a labels array"
        " in .npz."
    ),
]
Explain = Annotated[bool, typer.Option("--explain", metavar=FLAG, help="Find the layers that cause the loss.")]
Json = Annotated[
    Path | None,
    typer.Option(help="Write all measurements to this file; - is standard output.", rich_help_panel=REPORTS),
]
Junit = Annotated[
    Path | None,
    typer.Option(
        help="Write the gates as test cases to this file, for CI servers; - is standard output.",
        rich_help_panel=REPORTS,
    ),
]
Markdown = Annotated[
    Path | None,
    typer.Option(
        help="Write tables to this file, for the comment of a pull request; - is standard output.",
        rich_help_panel=REPORTS,
    ),
]


# What a file alone cannot tell: the other gates, and the runs that some of them need.
MEASURED = (
    *(each.name for each in list_settings(ValidateConfig) if each.option.panel == GATES and each.name != "target"),
    "reference",
)


@with_settings(list_options(ValidateConfig))
def validate(
    *,
    float_model: FloatModel,
    quantized_model: QuantizedModel = None,
    data: Data = None,
    labels: Labels = None,
    config: Config = None,
    allow_code: AllowCode = False,
    explain: Explain = False,
    json: Json = None,
    junit: Junit = None,
    markdown: Markdown = None,
    html: Annotated[Path | None, typer.Option(help=HTML_HELP, rich_help_panel=REPORTS)] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    options: Options,
) -> None:
    """Compare QUANTIZED with FLOAT on samples, and exit with 3 where a gate does not hold.

    With --target alone, the rules of a device are read off QUANTIZED, and nothing is run.

    Example: onnxcalib validate model.onnx small.onnx --data test/ --labels labels.csv --max-drop 1
    """
    with report_faults(verbose=verbose):
        settings = load_config(config, options, ValidateConfig, allow_code=allow_code)
        reports = {"--json": json, "--junit": junit, "--markdown": markdown, "--html": html}
        models = [each for each in (float_model, quantized_model) if each is not None]
        read = [data, labels, config, *list_read(settings)]
        alone = settings.target is not None and quantized_model is None and data is None
        if alone:
            _refuse_measured(settings, options, labels=labels, explain=explain)
        elif quantized_model is None or data is None:
            missing = "--data" if quantized_model else "QUANTIZED"
            raise ConfigError(f"{missing}: missing; FLOAT, QUANTIZED and --data are needed, or one file and --target")
        prepare_outputs(reports, read, models=models, quiet=quiet, texts=[*reports])
        if html is not None:
            check_installed()
        if quantized_model is None or data is None:
            passed = _lint(float_model, settings.target or "", quiet=quiet, reports=reports)
        else:
            pair = float_model, quantized_model
            passed = _run(pair, data, labels, settings, explain=explain, quiet=quiet, reports=reports)
    raise typer.Exit(ExitStatus.OK if passed else ExitStatus.GATE)


def _refuse_measured(settings: ValidateConfig, options: Options, *, labels: Path | None, explain: bool) -> None:
    """Raise ConfigError for what only a comparison with the float model tells, and for options that bear on it.

    Other settings of a TOML file may stand there for the runs with data.
    """
    names = [name for name in MEASURED if name in settings.model_fields_set]
    names += [name for name in options if name not in ("target", *names)]
    asked = [f"--{name.replace('_', '-')}" for name in names]
    asked += ["--labels"] * (labels is not None) + ["--explain"] * explain
    if asked:
        raise ConfigError(
            f"{asked[0]}: found one model and no --data; only --target can be judged by a file alone; give FLOAT and"
            " --data too"
        )


def _lint(model: Path, target: str, *, quiet: bool, reports: dict[str, Path | None]) -> bool:
    from onnxcalib.lint import check_target
    from onnxcalib.validation import render_lint

    from .lint import print_lint

    record = check_target(model, target)
    writers = {
        "--json": lambda: render_lint.to_json(record) + "\n",
        "--junit": lambda: render_lint.to_junit(record),
        "--markdown": lambda: render_lint.to_markdown(record),
        "--html": lambda: _draw(render_lint.to_json(record)),
    }
    _write(reports, writers)
    if not quiet or not record.passed:
        print_lint(record, open_screen(reports.values()))
    return record.passed


def _run(
    models: tuple[Path, Path],
    data: Path,
    labels: Path | None,
    settings: ValidateConfig,
    *,
    explain: bool,
    quiet: bool,
    reports: dict[str, Path | None],
) -> bool:
    from onnxcalib.validation import render
    from onnxcalib.validation.run import validate as run_validation

    from .progress import ProgressObserver
    from .verdict import print_gates, print_verdict

    with ProgressObserver(quiet=quiet, last="explain") as observer:
        verdict = run_validation(*models, data, settings, labels=labels, explain=explain, observer=observer)
    writers = {
        "--json": lambda: verdict.to_json() + "\n",
        "--junit": lambda: render.to_junit(verdict),
        "--markdown": lambda: render.to_markdown(verdict),
        "--html": lambda: _draw(verdict.to_json()),
    }
    _write(reports, writers)
    screen = open_screen(reports.values())
    if not quiet:
        print_verdict(verdict, screen)
    elif not verdict.passed:
        print_gates(screen, verdict, failed=True)
    return verdict.passed


def _draw(text: str) -> str:
    from onnxcalib.pages.page import draw_verdict

    return draw_verdict(text)


def _write(reports: Mapping[str, Path | None], writers: Mapping[str, Callable[[], str]]) -> None:
    """Write the reports that were asked for, all or none: option -> its file, and what makes its text."""
    write_texts({path: writers[option]() for option, path in reports.items() if path is not None})
