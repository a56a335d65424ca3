"""``onnxcalib quantize``: options in, the library called, the model and the report written, a table printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxcalib.cli.exitstatus import report_faults
from onnxcalib.cli.files import check_targets, list_read, write_aside
from onnxcalib.cli.options import (
    BUDGETS,
    DATA_HELP,
    Biases,
    BlockSize,
    CacheDir,
    Candidates,
    Channels,
    Config,
    Crop,
    Device,
    Effort,
    EmbeddingBits,
    Encoding,
    Exclude,
    FirstLastBits,
    Jobs,
    Latencies,
    Layout,
    MaxBops,
    MaxDrop,
    MaxLatency,
    MaxLength,
    MaxLoss,
    MaxSize,
    Mean,
    Pairs,
    Percentile,
    Pipeline,
    Quiet,
    Range,
    Reconstruct,
    Resize,
    Samples,
    Scheduler,
    Seed,
    Statistics,
    Std,
    Steps,
    TextColumn,
    Threads,
    Tokenizer,
    Verbose,
    Views,
    WeightRange,
    setting,
)
from onnxcalib.config import DataConfig, QuantizeConfig, load_config

OUTPUT_HELP = r"Where to write. \[default: MODEL with .quantized.onnx]"


def quantize(
    *,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A trained float ONNX model.", show_default=False)],
    calib: Annotated[Path, typer.Option(help=f"Unlabelled samples: {DATA_HELP}")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help=OUTPUT_HELP, show_default=False)] = None,
    weight_bits: Annotated[int | None, setting("weight_bits", "Bits of the weights, 8 or 4.")] = None,
    activation_bits: Annotated[int | None, setting("activation_bits", "Bits of what layers read, 8, 4 or 32.")] = None,
    first_last_bits: FirstLastBits = None,
    block_size: BlockSize = None,
    embedding_bits: EmbeddingBits = None,
    candidates: Candidates = None,
    max_size: MaxSize = None,
    max_bops: MaxBops = None,
    max_latency: MaxLatency = None,
    max_loss: MaxLoss = None,
    max_drop: MaxDrop = None,
    latencies: Latencies = None,
    jobs: Jobs = None,
    scheduler: Scheduler = None,
    cache_dir: CacheDir = None,
    plan: Annotated[Path | None, typer.Option(help="A bit plan.", rich_help_panel=BUDGETS, metavar="FILE")] = None,
    range: Range = None,
    percentile: Percentile = None,
    encoding: Encoding = None,
    weight_range: WeightRange = None,
    pipeline: Pipeline = None,
    reconstruct: Reconstruct = None,
    statistics: Statistics = None,
    biases: Biases = None,
    effort: Effort = None,
    steps: Steps = None,
    views: Views = None,
    samples: Samples = None,
    seed: Seed = None,
    threads: Threads = None,
    device: Device = None,
    exclude: Exclude = None,
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
    report: Annotated[Path | None, typer.Option(help="Write all measurements to this JSON file.")] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write MODEL with 8-bit or 4-bit layers, as QuantizeLinear/DequantizeLinear pairs that onnxruntime fuses."""
    given = dict(locals())
    options = {name: given[name] or None if name == "exclude" else given[name] for name in _NAMES}
    with report_faults(verbose=verbose):
        settings = load_config(config, options)
        target = output or model.parent / f"{model.stem}.quantized.onnx"
        check_targets({"--output": target, "--report": report}, [model, calib, config, plan, *list_read(settings)])
        _run(model, calib, target, settings, plan=plan, report=report, quiet=quiet)


# Settings of single layers are for files alone.
_NAMES = tuple(
    name for name in (*QuantizeConfig.model_fields, *DataConfig.model_fields) if name not in ("data", "layers")
)


def _run(model: Path, calib: Path, output: Path, settings: QuantizeConfig, *, plan, report, quiet: bool) -> None:
    from onnxcalib import pipeline
    from onnxcalib.cli.progress import ProgressObserver

    with ProgressObserver(quiet=quiet) as observer:
        result = pipeline.quantize(model, calib, settings, plan=plan, observer=observer)
    result.save(output)
    if report:
        write_aside(report, result.report.to_json() + "\n")
    if not quiet:
        from onnxcalib.cli.summary import print_summary

        print_summary(result.report, output)
