"""``onnxcalib plan``: options in, the library called, the bit plan written, the table of its choices printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from onnxcalib.bitplan import BitPlan, Frontier, Point, Totals
from onnxcalib.cli.exitstatus import report_faults
from onnxcalib.cli.files import check_targets, list_read, write_aside
from onnxcalib.cli.options import (
    BUDGETS,
    DATA_HELP,
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
    Quiet,
    Range,
    Resize,
    Samples,
    Scheduler,
    Seed,
    Std,
    TextColumn,
    Threads,
    Tokenizer,
    Verbose,
    WeightRange,
)
from onnxcalib.cli.summary import open_console, tabulate_sets
from onnxcalib.config import QuantizeConfig, load_config
from onnxcalib.validation.render import spell_number


def plan(
    *,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A trained float ONNX model.", show_default=False)],
    calib: Annotated[Path, typer.Option(help=f"Unlabelled samples: {DATA_HELP}")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help=r"Where to write. \[default: MODEL with .plan.json]", show_default=False),
    ] = None,
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
    first_last_bits: FirstLastBits = None,
    embedding_bits: EmbeddingBits = None,
    range: Range = None,
    percentile: Percentile = None,
    encoding: Encoding = None,
    weight_range: WeightRange = None,
    effort: Effort = None,
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
    frontier: Annotated[
        bool,
        typer.Option("--frontier", help="Show the least loss of every size too, or instead.", rich_help_panel=BUDGETS),
    ] = False,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Choose the bits of every layer of MODEL within a budget, by what each loses and costs, for quantize --plan."""
    given = dict(locals())
    own = ("model", "calib", "output", "frontier", "config", "quiet", "verbose")
    options = {name: value or None if name == "exclude" else value for name, value in given.items() if name not in own}
    with report_faults(verbose=verbose):
        settings = load_config(config, options)
        target = output or model.parent / f"{model.stem}.plan.json"
        _run(model, calib, target, settings, frontier=frontier, config=config, quiet=quiet)


def _run(model: Path, calib: Path, target: Path, settings: QuantizeConfig, *, frontier: bool, config, quiet) -> None:
    planned = settings.planned or not frontier  # a curve needs no budget
    stem = target.name.removesuffix(".json").removesuffix(".plan")
    curve = target.with_name(f"{stem}.frontier.json")
    plot = curve.with_suffix(".png")
    drawn = {"--frontier": curve, "the plot of --frontier": plot} if frontier else {}
    check_targets(
        {"--output": target if planned else None, **drawn},
        [model, calib, config, *list_read(settings)],
    )
    from onnxcalib import pipeline
    from onnxcalib.cli.progress import ProgressObserver

    with ProgressObserver(quiet=quiet) as observer:
        found = pipeline.plan(model, calib, settings, observer=observer) if planned else None
        if found:
            write_aside(target, found.to_json() + "\n")
        traced = pipeline.frontier(model, calib, settings, observer=observer) if frontier else None
    if found and not quiet:
        print_plan(found, target)
    if traced:
        from onnxcalib.cli.plot import draw_frontier

        write_aside(curve, traced.to_json() + "\n")
        write_aside(plot, draw_frontier(traced, model.name))
        if not quiet:
            print_frontier(traced, curve, plot)


def print_plan(plan: BitPlan, output: Path) -> None:
    """What each set loses at each of its candidates, the bits chosen, and the totals, on stdout."""
    console = open_console()
    console.print(tabulate_sets(plan))
    console.print(f"all at 8 bits: {_spell(plan.eight_bit)}")
    console.print(f"this plan: {_spell(plan.totals)}, after {plan.rounds} round{'s' * (plan.rounds > 1)}")
    console.print(f"wrote {output}; onnxcalib quantize --plan {output} obeys it", soft_wrap=True)


def _spell(totals: Totals) -> str:
    parts = [f"loss {totals.measured_loss:.2e} (predicted {totals.predicted_loss:.2e})"]
    if totals.agreement is not None:
        parts.append(f"agreement {totals.agreement:.1f}%")
    parts += [f"{totals.bytes:,} bytes", f"{totals.bops:.3g} bit operations"]
    if totals.milliseconds is not None:
        parts.append(f"{totals.milliseconds:.4g} ms")
    return ", ".join(parts)


def print_frontier(frontier: Frontier, output: Path, plot: Path) -> None:
    """The curve, and the choices of one candidate everywhere, on stdout."""
    console = open_console()
    table = Table("choice", box=None, pad_edge=False)
    for name in ("bytes", "of float", "bit operations", "loss"):
        table.add_column(name, justify="right")

    def add(name: str, point: Point) -> None:
        share = point.bytes / frontier.float_bytes
        table.add_row(name, f"{point.bytes:,}", f"{share:.3f}", f"{point.bops:.3g}", spell_number(point.loss, ".2e"))

    for point in frontier.points:
        add("planned", point)
    for name, point in frontier.uniform.items():
        add(f"{name} everywhere", point)
    console.print(table)
    console.print(f"wrote {output} and {plot}", soft_wrap=True)
