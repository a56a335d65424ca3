"""What users are told of their samples: padding, how images become floats, settings that have no use, sequences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..config import AUDIO_SETTINGS, IMAGE_SETTINGS, TEXT_SETTINGS, UNIT, DataConfig
from ..spec import InputSpec
from .audio import Windows
from .checked import CheckedSamples, tell_one_sample
from .padding import MASK
from .scan import hold_images


def tell_parts(checked: Sequence[CheckedSamples], inputs: Sequence[InputSpec]) -> list[str]:
    """What looks wrong in the parts of samples, a line each."""
    texts = checked[0].part.texts
    notes = [note for part in checked for note in part.part.notes]
    if sum(part.rows for part in checked) == 1:
        notes += tell_one_sample(checked[0], inputs)
    return [*notes, *([texts.skipped] if texts is not None and texts.skipped else [])]


def tell_padding(where: str, reason: str, inputs: Sequence[InputSpec]) -> str:
    effect = "the model has no mask, so that it enters ranges, solving and losses"
    if any(spec.name == MASK for spec in inputs):
        effect = (
            "its mask keeps it out of what is measured and learned, wherever the graph shows which axes count tokens;"
            " convolutions over tokens mix it in; a model of any length needs none"
        )
    return f"{where}: padding is run: {reason}; {effect}"


def tell_normalization(config: DataConfig, part: CheckedSamples, where: str) -> tuple[list[str], bool]:
    """A line on how image files become floats, none for other samples; and whether the user chose it."""
    chosen = not config.model_fields_set.isdisjoint(("mean", "std", "pixel_range"))
    floats = all(np.dtype(array.dtype).kind == "f" for array in part.part.arrays.values())
    if not hold_images(part) or not floats:
        return [], chosen
    mean, std = (_spell_numbers(values) for values in (config.mean, config.std))
    pixel = "pixel / 255" if config.pixel_range == UNIT else "pixel"
    line = f"{where}: images are read as x = ({pixel} - {mean}) / {std}"
    if chosen:
        return [line], True
    return [
        f"{line}, the defaults; a model that was trained on normalised images needs its own --mean and --std; give"
        " these, or --mean 0 where the defaults are right"
    ], False


def _spell_numbers(values: Sequence[float]) -> str:
    text = ", ".join(f"{value:g}" for value in values)
    return text if len(values) == 1 else f"({text})"


def find_unused(config: DataConfig, part: CheckedSamples, where: str) -> list[str]:
    """One line for each kind of settings that these samples do not use."""
    default = DataConfig()
    given = {name for name in DataConfig.model_fields if getattr(config, name) != getattr(default, name)}
    notes = []
    if given.intersection(IMAGE_SETTINGS) and not hold_images(part):
        notes.append(f"{where}: mean, std, sizes and layout are for image files; these samples are used as they are")
    if given.intersection(AUDIO_SETTINGS) and not tell_audio(where, [part]):
        notes.append(f"{where}: sample_rate, window and hop are for audio files; these samples are used as they are")
    if given.intersection(TEXT_SETTINGS) and part.part.texts is None:
        notes.append(f"{where}: tokenizer, columns and lengths are for texts; these samples are used as they are")
    return notes


def tell_audio(where: str, checked: Sequence[CheckedSamples]) -> list[str]:
    """A line on how audio files became windows, and at which rate; none for other samples."""
    for array in checked[0].part.arrays.values():
        windows = getattr(array, "source", array)
        if isinstance(windows, Windows):
            rate, found = windows.files.rate, sorted(windows.files.found)
            others = [f"{each:,}" for each in found if each != rate]
            resampled = f", resampled from {' and '.join(others)} Hz" if others else ""
            early = windows.shape[-1] - windows.hop
            front = f", the first behind {early} zeros" if early else ""
            size = f"windows of {windows.shape[-1]} values, {windows.hop} new ones in each"
            return [f"{where}: audio at {rate:,} Hz{resampled}: {size}{front}"]
    return []


def tell_sequences(where: str, checked: Sequence[CheckedSamples], lengths: Sequence[int]) -> list[str]:
    """A line on the sequences, and whether the files of a folder are the steps of one; none for other samples."""
    if not lengths:
        return []
    least, most = min(lengths), max(lengths)
    count = f"{len(lengths)} sequences" if len(lengths) > 1 else "1 sequence"
    steps = f"{least}" if least == most else f"{least} to {most}"
    files = ", the files of a folder in natural order" if any(part.part.sequence for part in checked) else ""
    return [f"{where}: {count} of {steps} steps{files}"]
