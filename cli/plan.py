"""``onnxcalib plan``: options in, the library called, the bit plan written, the table of its choices printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from onnxcalib.bitplan import BitPlan, Totals
from onnxcalib.cli.exitstatus import report_faults
from onnxcalib.cli.files import check_targets, write_aside
from onnxcalib.cli.options import (
    DATA_HELP,
    Candidates,
    Channels,
    Config,
    Crop,
    Device,
    Effort,
    Encoding,
    Exclude,
    FirstLastBits,
    Layout,
    MaxBops,
    MaxLoss,
    MaxSize,
    Mean,
    Percentile,
    Quiet,
    Range,
    Resize,
    Samples,
    Seed,
    Std,
    Threads,
    Verbose,
)
from onnxcalib.cli.summary import open_console
from onnxcalib.config import load_config


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
    max_loss: MaxLoss = None,
    first_last_bits: FirstLastBits = None,
    range: Range = None,
    percentile: Percentile = None,
    encoding: Encoding = None,
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
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Choose the bits of every layer of MODEL within a budget, by what each loses and costs, for quantize --plan."""
    given = dict(locals())
    own = ("model", "calib", "output", "config", "quiet", "verbose")
    options = {name: value or None if name == "exclude" else value for name, value in given.items() if name not in own}
    with report_faults(verbose=verbose):
        settings = load_config(config, options)
        target = output or model.parent / f"{model.stem}.plan.json"
        check_targets({"--output": target}, [model, calib, config])
        from onnxcalib import pipeline
        from onnxcalib.cli.progress import ProgressObserver

        with ProgressObserver(quiet=quiet) as observer:
            found = pipeline.plan(model, calib, settings, observer=observer)
        write_aside(target, found.to_json() + "\n")
        if not quiet:
            print_plan(found, target)


def print_plan(plan: BitPlan, output: Path) -> None:
    """What each set loses at each of its candidates, the chosen one marked, and the totals, on stdout."""
    console = open_console()
    names = list(dict.fromkeys(name for each in plan.sets for name in each.loss))
    table = Table("layer", "bits", box=None, pad_edge=False)
    for name in names:
        table.add_column(f"loss {name}", justify="right")
    for each in plan.sets:
        losses = [f"{each.loss[name]:.2e}" if name in each.loss else "" for name in names]
        for layer in each.layers:
            table.add_row(layer, plan.layers[layer], *losses)
    console.print(table)
    console.print(f"all at 8 bits: {_spell(plan.eight_bit)}")
    console.print(f"this plan: {_spell(plan.totals)}, after {plan.rounds} round{'s' * (plan.rounds > 1)}")
    console.print(f"wrote {output}; onnxcalib quantize --plan {output} obeys it", soft_wrap=True)


def _spell(totals: Totals) -> str:
    losses = f"loss {totals.measured_loss:.2e} (sum of its layers' {totals.predicted_loss:.2e})"
    return f"{losses}, {totals.bytes:,} bytes, {totals.bops:.3g} bit operations"
