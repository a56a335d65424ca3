"""How samples of a model's inputs can be given: the rules by which each kind of files is taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..config import DataConfig
from ..errors import DataError
from ..spec import InputSpec
from .audio import find_input
from .images import choose_format
from .states import may_lack
from .textfiles import SUFFIXES as TEXTS
from .tokenized import check_inputs


def list_ways(inputs: Sequence[InputSpec]) -> tuple[str, ...]:
    """What ``--calib`` may be for a model with these inputs, in words."""
    needed = [spec for spec in inputs if not may_lack(spec)]
    ways = [*_list_images(needed), *_list_texts(inputs), *_list_audio(needed)]
    names = ", ".join(spec.name for spec in needed)
    if len(needed) == 1:
        ways.append(f"an array of samples as .npy or .npz, or a folder of them ({names})")
    else:
        ways.append(f"a .npz with the arrays {names}, or a folder with a sub-folder of .npy for each")
    return (*ways, "in Python, arrays or any iterable of samples")


def _list_images(needed: Sequence[InputSpec]) -> list[str]:
    try:
        form = choose_format(needed, DataConfig(), "")
    except DataError:
        return []
    size = "" if None in (form.height, form.width) else f" with --resize and --crop {form.height}x{form.width}"
    values = "--mean and --std, " if form.dtype.kind == "f" else ""
    return [f"a folder of images (png, jpg, jpeg, bmp, webp){size}; {values}as in training, {form.channels} by default"]


def _list_texts(inputs: Sequence[InputSpec]) -> list[str]:
    try:
        check_inputs(Path(), inputs)
    except DataError:
        return []
    return [f"texts ({', '.join(each.removeprefix('.') for each in TEXTS)}) with --tokenizer tokenizer.json"]


def _list_audio(needed: Sequence[InputSpec]) -> list[str]:
    try:
        spec = find_input(needed, "")
    except DataError:
        return []
    window = spec.shape[-1] if spec.shape else None
    return ["a folder of .wav recordings" + (f", in windows of {window} values" if window else "")]
