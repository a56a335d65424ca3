"""``onnxcalib validate``: options in, the library called, reports written, a verdict printed, its exit status."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxcalib.cli.exitstatus import ExitStatus, report_faults
from onnxcalib.cli.files import check_targets, list_read, write_aside
from onnxcalib.cli.options import (
    DATA_HELP,
    Channels,
    Config,
    Crop,
    Layout,
    MaxLength,
    Mean,
    Pairs,
    Quiet,
    Resize,
    Samples,
    Std,
    TextColumn,
    Threads,
    Tokenizer,
    Verbose,
    setting,
)
from onnxcalib.config import DataConfig, ValidateConfig, load_config

GATES, REPORTS = "Gates", "Reports"


FloatModel = Annotated[Path, typer.Argument(metavar="FLOAT", help="The float ONNX model.", show_default=False)]
QuantizedModel = Annotated[Path, typer.Argument(metavar="QUANTIZED", help="The model made of it.", show_default=False)]
Data = Annotated[Path, typer.Option(help=f"Samples that neither has seen: {DATA_HELP}")]
Labels = Annotated[
    Path | None,
    typer.Option(
        help="Classes: .csv or .json of file and class; .npy, .npz or one a line (.txt, .csv) in the samples' order;"
        " without it those of sub-folders named by class, or of a labels array in .npz."
    ),
]
MaxDrop = Annotated[
    float | None, setting("max_drop", "Most that accuracy may drop, in points of 100.", GATES, metavar="POINTS")
]
MinAgreement = Annotated[
    float | None, setting("min_agreement", "Least share of equal top classes, in %.", GATES, metavar="PERCENT")
]
MinSqnr = Annotated[float | None, setting("min_sqnr", "Least SQNR of every output, in dB.", GATES, metavar="DB")]
MaxSizeRatio = Annotated[
    float | None, setting("max_size_ratio", "Most bytes of the file, of the float one's.", GATES, metavar="RATIO")
]
MinSpeedup = Annotated[
    float | None, setting("min_speedup", "Least speed, of the float model's, one thread.", GATES, metavar="RATIO")
]
MaxUnfused = Annotated[
    int | None, setting("max_unfused", "Most Q/DQ that onnxruntime leaves standing.", GATES, metavar="COUNT")
]
MaxSteps = Annotated[
    int | None,
    setting("max_steps", "Most steps that graph optimizations may move a layer's output.", GATES, metavar="COUNT"),
]
MaxSaturating = Annotated[
    int | None,
    setting("max_saturating", "Most integer kernels that can saturate on x86 without VNNI.", GATES, metavar="COUNT"),
]
Confident = Annotated[bool | None, setting("confident", "Ask that the whole 95% interval clear its gate.", GATES)]
Metric = Annotated[
    str | None,
    setting("metric", "Your own: a function of outputs and labels, higher is better.", metavar="MODULE:FUNCTION"),
]
Batch = Annotated[int | None, setting("batch", "Samples in a run that is timed.")]
Explain = Annotated[bool, typer.Option("--explain", help="Find the layers that the loss comes from.")]
Json = Annotated[Path | None, typer.Option(help="Write everything measured.", rich_help_panel=REPORTS)]
Junit = Annotated[
    Path | None, typer.Option(help="Write the gates as test cases, for CI servers.", rich_help_panel=REPORTS)
]
Markdown = Annotated[
    Path | None, typer.Option(help="Write tables for a pull request's comment.", rich_help_panel=REPORTS)
]


def validate(
    *,
    float_model: FloatModel,
    quantized_model: QuantizedModel,
    data: Data,
    labels: Labels = None,
    max_drop: MaxDrop = None,
    min_agreement: MinAgreement = None,
    min_sqnr: MinSqnr = None,
    max_size_ratio: MaxSizeRatio = None,
    min_speedup: MinSpeedup = None,
    max_unfused: MaxUnfused = None,
    max_steps: MaxSteps = None,
    max_saturating: MaxSaturating = None,
    confident: Confident = None,
    metric: Metric = None,
    samples: Samples = None,
    batch: Batch = None,
    threads: Threads = None,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
    crop: Crop = None,
    layout: Layout = None,
    channels: Channels = None,
    tokenizer: Tokenizer = None,
    text_column: TextColumn = None,
    pairs: Pairs = None,
    max_length: MaxLength = None,
    config: Config = None,
    explain: Explain = False,
    json: Json = None,
    junit: Junit = None,
    markdown: Markdown = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare QUANTIZED with FLOAT on samples, and exit with 3 where a gate does not hold."""
    given = dict(locals())
    with report_faults(verbose=verbose):
        settings = load_config(config, {name: given[name] for name in _NAMES}, ValidateConfig)
        reports = {"--json": json, "--junit": junit, "--markdown": markdown}
        check_targets(reports, [float_model, quantized_model, data, labels, config, *list_read(settings)])
        models = float_model, quantized_model
        passed = _run(models, data, labels, settings, explain=explain, quiet=quiet, reports=reports)
    raise typer.Exit(ExitStatus.OK if passed else ExitStatus.GATE)


_NAMES = tuple(name for name in (*ValidateConfig.model_fields, *DataConfig.model_fields) if name != "data")


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
    from onnxcalib.cli.progress import ProgressObserver
    from onnxcalib.cli.verdict import print_verdict
    from onnxcalib.validation import render
    from onnxcalib.validation.run import validate as run_validation

    with ProgressObserver(quiet=quiet) as observer:
        verdict = run_validation(*models, data, settings, labels=labels, explain=explain, observer=observer)
    writers = {
        "--json": lambda: verdict.to_json() + "\n",
        "--junit": lambda: render.to_junit(verdict),
        "--markdown": lambda: render.to_markdown(verdict),
    }
    texts = {path: writers[option]() for option, path in reports.items() if path is not None}
    for path, text in texts.items():
        write_aside(path, text)
    if not quiet or not verdict.passed:
        print_verdict(verdict)
    return verdict.passed
