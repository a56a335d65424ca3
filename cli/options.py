"""Options that commands share, and how an option tells of the setting behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from onnxcalib.config import DataConfig, QuantizeConfig, ValidateConfig

SETTINGS, IMAGES, TEXTS, STEPS = "Settings", "Image files", "Texts", "Steps"
_FIELDS = {**ValidateConfig.model_fields, **QuantizeConfig.model_fields, **DataConfig.model_fields}


def setting(name: str, text: str, panel: str = SETTINGS, *, switch: bool = False, **more: Any) -> Any:
    """An option that is None unless given, so that a configuration file can set it; help shows the real default.

    switch: one that is on or off, of a setting whose default is neither.
    """
    default = _FIELDS[name].default
    shown = "from the model" if name in ("layout", "channels") else None if default is None else _spell(default)
    text = f"{text} [default: {shown}]" if shown else text
    spelling = name.replace("_", "-")
    forms = f"--{spelling}/--no-{spelling}" if switch or isinstance(default, bool) else f"--{spelling}"
    return typer.Option(forms, help=text.replace("[", r"\["), show_default=False, rich_help_panel=panel, **more)


def _spell(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    if not isinstance(default, tuple):
        return str(default)
    return ",".join(part if isinstance(part, str) else f"{part:g}" for part in default) or "none"


DATA_HELP = "a folder of images, .npy or .npz, one .npz or .npy, texts (.txt, .csv, .tsv, .jsonl), or ONNX test data."
Samples = Annotated[int | None, setting("samples", "Use only the first so many samples.")]
Threads = Annotated[int | None, setting("threads", "Threads to compute with.")]
Mean = Annotated[str | None, setting("mean", "x = (pixel / 255 - mean) / std.", IMAGES, metavar="R,G,B")]
Std = Annotated[str | None, setting("std", "As for --mean.", IMAGES, metavar="R,G,B")]
Resize = Annotated[int | None, setting("resize", "Length of the shorter side.", IMAGES)]
Crop = Annotated[str | None, setting("crop", "Size of the centre that is kept.", IMAGES, metavar="N|HxW")]
Layout = Annotated[str | None, setting("layout", "nchw or nhwc.", IMAGES, metavar="ORDER")]
Channels = Annotated[str | None, setting("channels", "rgb, bgr or gray.", IMAGES, metavar="ORDER")]
Tokenizer = Annotated[Path | None, setting("tokenizer", "The model's own tokenizer.json.", TEXTS, metavar="FILE")]
TextColumn = Annotated[
    str | None,
    setting("text_column", "Columns or keys of texts; numbers from 1 without a header.", TEXTS, metavar="NAME,..."),
]
Pairs = Annotated[bool | None, setting("pairs", "Two columns are one sample, not two.", TEXTS)]
MaxLength = Annotated[
    int | None, setting("max_length", "Tokens to which texts are cut. [default: the tokenizer's]", TEXTS)
]
Config = Annotated[Path | None, typer.Option(help="TOML file with any of the settings; options win.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print warnings and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show tracebacks.")]
FirstLastBits = Annotated[int | None, setting("first_last_bits", "Bits of the first and last layer.")]
BlockSize = Annotated[
    int | None, setting("block_size", "Inputs of a MatMul with a scale of their own, 32 or 128, where it reads float.")
]
EmbeddingBits = Annotated[
    int | None,
    setting("embedding_bits", "Bits of tables that a Gather looks up, 32, 8 or 4. [default: those of the weights]"),
]
Encoding = Annotated[
    str | None, setting("encoding", "runtime (fast in onnxruntime) or standard (plain 4-bit types).", metavar="NAME")
]
WeightRange = Annotated[
    str | None,
    setting("weight_range", "bounded (exact on any processor) or full (x86 with VNNI, ARM).", metavar="NAME"),
]
Range = Annotated[str | None, setting("range", "min-max, percentile, squared-error or entropy.", metavar="METHOD")]
Percentile = Annotated[float | None, setting("percentile", "What --range percentile keeps, in %.")]
Effort = Annotated[str | None, setting("effort", "fast, balanced or best.", metavar="NAME")]
Seed = Annotated[int | None, setting("seed", "Seed of all random choices.")]
Device = Annotated[
    str | None, setting("device", "auto, cpu or cuda: where layers are solved and learned.", metavar="NAME")
]
Exclude = Annotated[
    list[str] | None,
    setting("exclude", "Leave this node in float; also for a regular expression; may be given again.", metavar="NAME"),
]
Steps = Annotated[int | None, setting("steps", "AdaQuant steps a block, in place of those of --effort.")]
Views = Annotated[int | None, setting("views", "Shifted, mirrored copies of each image, likewise.")]
Pipeline = Annotated[
    str | None, setting("pipeline", "light (no reconstruction), default or advanced.", STEPS, metavar="NAME")
]
Reconstruct = Annotated[
    bool | None, setting("reconstruct", "Solve and learn layers, or calibrate and round only.", STEPS, switch=True)
]
Statistics = Annotated[
    bool | None, setting("statistics", "Tune means and deviations of layers' outputs.", STEPS, switch=True)
]
Biases = Annotated[bool | None, setting("biases", "Train biases end to end.", STEPS, switch=True)]
BUDGETS = "Bit plan"
Candidates = Annotated[
    str | None, setting("candidates", "Bits that layers may get, weights and inputs.", BUDGETS, metavar="W8A8,...")
]
MaxSize = Annotated[
    str | None,
    setting("max_size", "Most bytes of the file: 0.15 of the float one, 0.6@8-bit, or 300KB.", BUDGETS, metavar="SIZE"),
]
MaxBops = Annotated[
    str | None, setting("max_bops", "Most bit operations of a sample, likewise.", BUDGETS, metavar="BOPS")
]
MaxLatency = Annotated[
    str | None, setting("max_latency", "Most time of a run, likewise, or 12ms.", BUDGETS, metavar="TIME")
]
MaxLoss = Annotated[
    float | None, setting("max_loss", "Most divergence of the outputs, for the smallest file.", BUDGETS, metavar="LOSS")
]
MaxDrop = Annotated[
    float | None,
    setting("max_drop", "Most samples in % whose top class changes, for the smallest file.", BUDGETS, metavar="POINTS"),
]
Latencies = Annotated[
    Path | None,
    setting("latencies", "CSV of layer, configuration, milliseconds; else measured here.", BUDGETS, metavar="FILE"),
]
Jobs = Annotated[int | None, setting("jobs", "Worker processes that plan. [default: one a core]", BUDGETS)]
Scheduler = Annotated[
    str | None,
    setting("scheduler", "Plan on a Dask cluster: tcp://HOST:PORT of its scheduler.", BUDGETS, metavar="ADDRESS"),
]
CacheDir = Annotated[
    Path | None,
    setting("cache_dir", "Where what planning measured is kept. [default: the user's cache]", BUDGETS, metavar="DIR"),
]
