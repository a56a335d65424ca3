"""Options that commands share, and how an option tells of the setting behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from onnxcalib.config import DataConfig, QuantizeConfig, ValidateConfig

SETTINGS, IMAGES = "Settings", "Image files"
_FIELDS = {**ValidateConfig.model_fields, **QuantizeConfig.model_fields, **DataConfig.model_fields}


def setting(name: str, text: str, panel: str = SETTINGS, **more: Any) -> Any:
    """An option that is None unless given, so that a configuration file can set it; help shows the real default."""
    default = _FIELDS[name].default
    shown = "from the model" if name in ("layout", "channels") else None if default is None else _spell(default)
    text = f"{text} [default: {shown}]" if shown else text
    spelling = name.replace("_", "-")
    forms = f"--{spelling}/--no-{spelling}" if isinstance(default, bool) else f"--{spelling}"
    return typer.Option(forms, help=text.replace("[", r"\["), show_default=False, rich_help_panel=panel, **more)


def _spell(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return ",".join(f"{part:g}" for part in default) or "none" if isinstance(default, tuple) else str(default)


DATA_HELP = "a folder of images, .npy or .npz, one .npz or .npy, or ONNX test data."
Samples = Annotated[int | None, setting("samples", "Use only the first so many samples.")]
Threads = Annotated[int | None, setting("threads", "Threads to compute with.")]
Mean = Annotated[str | None, setting("mean", "x = (pixel / 255 - mean) / std.", IMAGES, metavar="R,G,B")]
Std = Annotated[str | None, setting("std", "As for --mean.", IMAGES, metavar="R,G,B")]
Resize = Annotated[int | None, setting("resize", "Length of the shorter side.", IMAGES)]
Crop = Annotated[str | None, setting("crop", "Size of the centre that is kept.", IMAGES, metavar="N|HxW")]
Layout = Annotated[str | None, setting("layout", "nchw or nhwc.", IMAGES, metavar="ORDER")]
Channels = Annotated[str | None, setting("channels", "rgb, bgr or gray.", IMAGES, metavar="ORDER")]
Config = Annotated[Path | None, typer.Option(help="TOML file with any of the settings; options win.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print warnings and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show tracebacks.")]
