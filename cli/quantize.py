"""``onnxcalib quantize``: options in, the library called, the model and the report written, a table printed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxcalib.cli.exitstatus import report_faults
from onnxcalib.config import DataConfig, QuantizeConfig, load_config
from onnxcalib.errors import OutputError

SETTINGS, IMAGES, OUTPUT = "Settings", "Image files", "Output"


def _option(name: str, text: str, panel: str = SETTINGS, **more: Any) -> Any:
    """An option that is None unless given, so that a configuration file can set it; help shows the real default."""
    fields = {**QuantizeConfig.model_fields, **DataConfig.model_fields}
    default = fields[name].default
    shown = "from the model" if name in ("layout", "channels") else None if default is None else _spell(default)
    text = f"{text} [default: {shown}]" if shown else text
    spelling = name.replace("_", "-")
    forms = f"--{spelling}/--no-{spelling}" if isinstance(default, bool) else f"--{spelling}"
    return typer.Option(forms, help=text.replace("[", r"\["), show_default=False, rich_help_panel=panel, **more)


def _spell(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return ",".join(f"{part:g}" for part in default) or "none" if isinstance(default, tuple) else str(default)


def quantize(
    *,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A trained float ONNX model.", show_default=False)],
    calib: Annotated[
        Path,
        typer.Option(help="Unlabelled samples: a folder of images, .npy or .npz, one .npz or .npy, or ONNX test data."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help=r"Where to write. \[default: MODEL with .quantized.onnx]", show_default=False
        ),
    ] = None,
    weight_bits: Annotated[int | None, _option("weight_bits", "Bits of the weights, 8 or 4.")] = None,
    activation_bits: Annotated[int | None, _option("activation_bits", "Bits of what layers read, 8 or 4.")] = None,
    first_last_bits: Annotated[int | None, _option("first_last_bits", "Bits of the first and last layer.")] = None,
    range: Annotated[
        str | None, _option("range", "min-max, percentile, squared-error or entropy.", metavar="METHOD")
    ] = None,
    percentile: Annotated[float | None, _option("percentile", "What --range percentile keeps, in %.")] = None,
    encoding: Annotated[
        str | None,
        _option("encoding", "runtime (fast in onnxruntime) or standard (plain 4-bit types).", metavar="NAME"),
    ] = None,
    reconstruct: Annotated[bool | None, _option("reconstruct", "AdaQuant, or calibrate and round only.")] = None,
    steps: Annotated[int | None, _option("steps", "AdaQuant steps a block.")] = None,
    samples: Annotated[int | None, _option("samples", "Use only the first so many samples.")] = None,
    seed: Annotated[int | None, _option("seed", "Seed of all random choices.")] = None,
    threads: Annotated[int | None, _option("threads", "Threads to compute with.")] = None,
    exclude: Annotated[
        list[str] | None,
        _option(
            "exclude", "Leave this node in float; also for a regular expression; may be given again.", metavar="NAME"
        ),
    ] = None,
    mean: Annotated[str | None, _option("mean", "x = (pixel / 255 - mean) / std.", IMAGES, metavar="R,G,B")] = None,
    std: Annotated[str | None, _option("std", "As for --mean.", IMAGES, metavar="R,G,B")] = None,
    resize: Annotated[int | None, _option("resize", "Length of the shorter side.", IMAGES)] = None,
    crop: Annotated[str | None, _option("crop", "Size of the centre that is kept.", IMAGES, metavar="N|HxW")] = None,
    layout: Annotated[str | None, _option("layout", "nchw or nhwc.", IMAGES, metavar="ORDER")] = None,
    channels: Annotated[str | None, _option("channels", "rgb, bgr or gray.", IMAGES, metavar="ORDER")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of the settings; options win.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write all measurements to this JSON file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print warnings and errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show tracebacks.")] = False,
) -> None:
    """Write MODEL with 8-bit or 4-bit layers, as QuantizeLinear/DequantizeLinear pairs that onnxruntime fuses."""
    given = dict(locals())
    options = {name: given[name] or None if name == "exclude" else given[name] for name in _NAMES}
    with report_faults(verbose=verbose):
        settings = load_config(config, options)
        _run(model, calib, output or model.with_suffix(".quantized.onnx"), settings, report=report, quiet=quiet)


# Settings of single layers are for files alone.
_NAMES = tuple(
    name for name in (*QuantizeConfig.model_fields, *DataConfig.model_fields) if name not in ("data", "layers")
)


def _run(model: Path, calib: Path, output: Path, settings: QuantizeConfig, *, report: Path | None, quiet: bool) -> None:
    from onnxcalib import pipeline
    from onnxcalib.cli.progress import ProgressObserver

    pipeline.check_output(output, model)
    if report:
        if report.resolve() in (output.resolve(), calib.resolve()):
            raise OutputError(
                f"{report}: the report would replace another file of this run; give --report another name"
            )
        pipeline.check_output(report, model)
    with ProgressObserver(quiet=quiet) as observer:
        result = pipeline.quantize(model, calib, settings, observer=observer)
    result.save(output)
    if report:
        write_aside(report, result.report.to_json() + "\n")
    if not quiet:
        from onnxcalib.cli.summary import print_summary

        print_summary(result.report, output)


def write_aside(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises OutputError."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}; give another place") from None
    finally:
        aside.unlink(missing_ok=True)
