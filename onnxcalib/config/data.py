"""How files become samples: the settings of images and texts."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from ..values import split_columns, split_numbers, split_size
from .fields import IMAGES, TEXTS, Count, File, Finite, Option, Settings, Switch

_NUMBERS = "one number, or three: r, g, b"


class DataConfig(Settings):
    """How files become a model's input: images by x = (pixel / 255 - mean) / std, after resizing and cropping.

    mean and std are in the order r, g, b whatever ``channels`` says; crop is (height, width).
    """

    table: ClassVar[str] = "data"

    mean: Annotated[
        tuple[Finite, ...],
        BeforeValidator(split_numbers),
        Field(description="Mean that images are normalised with: x = (pixel / 255 - mean) / std."),
        Option(IMAGES, metavar="R,G,B", form=_NUMBERS),
    ] = (0.0,)
    std: Annotated[
        tuple[Finite, ...],
        BeforeValidator(split_numbers),
        Field(description="Standard deviation that images are normalised with, written as the mean is."),
        Option(IMAGES, metavar="R,G,B", form=_NUMBERS),
    ] = (1.0,)
    resize: Annotated[
        Count | None,
        Field(description="Length to which the shorter side of an image is resized, in pixels."),
        Option(IMAGES, unset="the size stays"),
    ] = None
    crop: Annotated[
        tuple[Count, Count] | None,
        BeforeValidator(split_size),
        Field(description="Size of the centre of an image that is kept, in pixels."),
        Option(IMAGES, metavar="N|HxW", form="`N`, `HxW` or `[H, W]`", unset="all of it"),
    ] = None
    layout: Annotated[
        Literal["nchw", "nhwc"] | None,
        Field(description="Order of the axes of the model's input."),
        Option(IMAGES, unset="from the model"),
    ] = None
    channels: Annotated[
        Literal["rgb", "bgr", "gray"] | None,
        Field(description="Colours of the model's input, in their order."),
        Option(IMAGES, unset="from the model"),
    ] = None
    tokenizer: Annotated[
        File | None,
        Field(description="The model's own tokenizer.json, which turns texts into tokens."),
        Option(TEXTS, metavar="FILE", form="file"),
    ] = None
    text_column: Annotated[
        tuple[str, ...],
        BeforeValidator(split_columns),
        Field(description="Columns or keys that hold texts, by name, or by number from 1 in a file without a header."),
        Option(TEXTS, metavar="NAME,...", form="names or numbers", unset="text or a like name, or the only column"),
    ] = ()
    pairs: Annotated[
        Switch,
        Field(description="Make one sample of the two texts of a row; otherwise each text is a sample."),
        Option(TEXTS),
    ] = False
    max_length: Annotated[
        Count | None,
        Field(description="Number of tokens to which texts are truncated."),
        Option(TEXTS, unset="the tokenizer's, or what the model fixes"),
    ] = None

    @field_validator("mean", "std")
    @classmethod
    def _check_length(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(value) not in (1, 3):
            raise ValueError(f"has {len(value)} numbers; must be one number, or three as 'r,g,b'")
        return value

    @field_validator("mean")
    @classmethod
    def _check_mean(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if max(abs(number) for number in value) > 1:
            raise ValueError("must be on the scale of pixel / 255, between -1 and 1; divide it by 255")
        return value

    @field_validator("std")
    @classmethod
    def _check_std(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if min(value) <= 0:
            raise ValueError("must be greater than 0")
        return value


# Fields of DataConfig by the kind of samples that they are for.
TEXT_SETTINGS = ("tokenizer", "text_column", "pairs", "max_length")
IMAGE_SETTINGS = tuple(name for name in DataConfig.model_fields if name not in TEXT_SETTINGS)
