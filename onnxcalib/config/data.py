"""How files become samples: the settings of images and texts."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from ..values import (
    read_limit,
    read_shape,
    split_columns,
    split_numbers,
    split_shapes,
    split_sides,
    split_size,
    split_states,
)
from .fields import EXPERT, IMAGES, SEQUENCES, TEXTS, File, Option, Settings, Switch

# Pixels of 8 bits have a deviation of 0.5 at most once they are divided by 255; 1 and more stand for a range of a
# model's own. Down from 0.0001 the least step of a pixel is above 39, which no model takes.
LEAST_STD, MOST_STD = 0.0001, 10
UNIT: Literal["0..1"] = "0..1"  # the range of pixels that are divided by 255
_SCALES = {1: "pixel / 255", 255: "pixels from 0 to 255"}
_RESCALE = {1: "divide it by 255, or give pixel_range 0..255", 255: "give it as training does"}
MOST_SIDE = 2**14  # pixels of a side: the largest inputs that models are exported with have some 4,000
MOST_TOKENS = 2**20  # tokens of a text: the longest contexts of language models
MOST_PIXELS = 178_956_970  # of an image: more are refused by Pillow
# Below so many samples those held out would be missed where they are used, and would say little where they are not.
HOLD_OUT_FROM = 64
MOST_RATE, MOST_WINDOW = 10**6, 2**24  # of audio: values a second, and of a step
MOST_NAME = 1_000  # characters of a column's name
_LEAST_SIZE, _MOST_SIZE, SIZES = 1e3, 1e12, "from 1KB to 1000GB"  # of files and lines


def _check_size(value: Any) -> str:
    """A size in bytes as text. Raises ValueError."""
    text = str(value).strip()
    try:
        limit = read_limit(text)
    except ValueError:
        limit = None
    if limit is None or limit.of is not None or not _LEAST_SIZE <= limit.number <= _MOST_SIZE:
        raise ValueError(f"must be a size {SIZES}, such as 4GB or 500MB")
    return text


def _most_pixel(info: ValidationInfo) -> int:
    """The largest pixel on the scale of mean and std."""
    return 1 if info.data.get("pixel_range", UNIT) == UNIT else 255


Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Side = Annotated[int, Field(strict=True, ge=1, le=MOST_SIDE)]
_size_option = partial(
    Option, IMAGES, metavar="N|HxW", form="`N`, `HxW` or `[H, W]`", bounds=f"each from 1 to {MOST_SIDE:,}"
)
Column = Annotated[str, Field(min_length=1, max_length=MOST_NAME)]
Size = Annotated[str, BeforeValidator(_check_size)]


class DataConfig(Settings):
    """How files become a model's input: images by x = (pixel / 255 - mean) / std, after resizing and cropping.

    mean and std are in the order r, g, b whatever ``channels`` says; crop and letterbox are (height, width), and so is
    resize where it has two sides.
    """

    table: ClassVar[str] = "data"

    pixel_range: Annotated[
        Literal["0..1", "0..255"],
        Field(
            description="Range of pixels before mean and std, which are on the same scale: 0..255 divides by no 255."
        ),
        Option(IMAGES),
    ] = UNIT
    mean: Annotated[
        tuple[Number, ...],
        BeforeValidator(split_numbers),
        Field(description="Mean that images are normalised with: x = (pixel / 255 - mean) / std."),
        Option(
            IMAGES,
            metavar="R,G,B",
            form="one number, or three: r, g, b",
            bounds="each from -1 to 1, or from -255 to 255",
        ),
    ] = (0.0,)
    std: Annotated[
        tuple[Number, ...],
        BeforeValidator(split_numbers),
        Field(description="Standard deviation that images are normalised with, written as the mean is."),
        Option(
            IMAGES,
            metavar="R,G,B",
            form="one number, or three: r, g, b",
            bounds=f"each from {LEAST_STD:g} to {MOST_STD}, or to {255 * MOST_STD:,}",
        ),
    ] = (1.0,)
    resize: Annotated[
        Annotated[tuple[Side, ...], Field(min_length=1, max_length=2)] | None,
        BeforeValidator(split_sides),
        Field(description="Length to which the shorter side of an image is resized, or height and width, in pixels."),
        _size_option(unset="the size stays"),
    ] = None
    crop: Annotated[
        tuple[Side, Side] | None,
        BeforeValidator(split_size),
        Field(description="Size of the centre of an image that is kept, in pixels."),
        _size_option(unset="all of it"),
    ] = None
    letterbox: Annotated[
        tuple[Side, Side] | None,
        BeforeValidator(split_size),
        Field(description="Size into which a whole image is fitted, between bars, in place of resize and crop."),
        _size_option(unset="no bars"),
    ] = None
    fill: Annotated[
        int,
        Field(strict=True, ge=0, le=255, description="Pixel value of the bars of letterbox."),
        Option(IMAGES),
    ] = 114
    multiple_of: Annotated[
        Side | None,
        Field(
            description="Number of which both sides are made multiples: by resizing, or by narrower bars of letterbox."
            " Sizes may differ then."
        ),
        Option(IMAGES, unset="sides stay"),
    ] = None
    interpolation: Annotated[
        Literal["bilinear", "bicubic", "opencv"],
        Field(
            description="How images are resized; opencv is its INTER_LINEAR, which does not average where it shrinks."
        ),
        Option(IMAGES),
    ] = "bilinear"
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
        tuple[Column, ...],
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
        Annotated[int, Field(strict=True, ge=1, le=MOST_TOKENS)] | None,
        Field(description="Number of tokens to which texts are truncated."),
        Option(TEXTS, unset="the tokenizer's, or what the model fixes"),
    ] = None
    sequence_length: Annotated[
        Annotated[int, Field(strict=True, ge=2, le=MOST_TOKENS)] | None,
        Field(
            description="Tokens of a sequence, where texts are one stream that is cut into samples, as language models"
            " read it."
        ),
        Option(TEXTS, unset="each text is a sample"),
    ] = None
    past: Annotated[
        Literal["empty", "filled"],
        Field(
            description="Past of a decoder where the samples give none; filled runs the float model over the first half"
            " of each sequence, and takes the second half as the sample."
        ),
        Option(TEXTS),
    ] = "empty"
    state: Annotated[
        tuple[str, ...],
        BeforeValidator(split_states),
        Field(
            description="Output whose value is the input of the next step, for models with states: samples are then"
            " sequences, run step by step. A * stands for the same text in both names."
        ),
        Option(
            SEQUENCES,
            metavar="OUT:IN",
            form="OUT:IN, or a list of these",
            unset="every sample by itself",
            repeated=True,
        ),
    ] = ()
    sequence_axis: Annotated[
        int,
        Field(
            strict=True,
            ge=0,
            le=1,
            description="Axis of arrays that counts the steps of a sequence: with 0 an array is a sequence, with 1 its"
            " first axis counts sequences.",
        ),
        Option(SEQUENCES, metavar="0|1"),
    ] = 0
    sample_rate: Annotated[
        Annotated[int, Field(strict=True, ge=1, le=MOST_RATE)] | None,
        Field(description="Values a second that the model takes of audio; files of another rate are resampled."),
        Option(SEQUENCES, metavar="HZ", unset="that of the files"),
    ] = None
    window: Annotated[
        Annotated[int, Field(strict=True, ge=1, le=MOST_WINDOW)] | None,
        Field(description="Values of audio that the model reads in a step, those of earlier steps included."),
        Option(SEQUENCES, unset="what the model fixes"),
    ] = None
    hop: Annotated[
        Annotated[int, Field(strict=True, ge=1, le=MOST_WINDOW)] | None,
        Field(
            description="Values of audio from one window to the next; a larger window has earlier ones in front, zeros"
            " at the start."
        ),
        Option(SEQUENCES, unset="the window"),
    ] = None
    shape: Annotated[
        tuple[str, ...],
        BeforeValidator(split_shapes),
        Field(
            description="Fixed dimensions of the model's inputs, and so of samples and of the file that is written: of"
            " all of them, or NAME=SHAPE of one."
        ),
        Option(
            EXPERT,
            metavar="SHAPE",
            form="a shape, NAME=SHAPE, or a list of these",
            unset="the model's",
            repeated=True,
        ),
    ] = ()
    max_unpacked: Annotated[
        Size,
        Field(description="Most that the samples of .npz and .pb files may take unpacked, in temporary files."),
        Option(EXPERT, metavar="SIZE", form="size", bounds=SIZES),
    ] = "4GB"
    max_pixels: Annotated[
        int,
        Field(strict=True, ge=1, le=MOST_PIXELS, description="Most pixels of an image, before and after resizing."),
        Option(EXPERT),
    ] = 2**26
    max_line: Annotated[
        Size,
        Field(description="Longest line, or row of several lines, of a file of texts."),
        Option(EXPERT, metavar="SIZE", form="size", bounds=SIZES),
    ] = "1MB"

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """``shape`` as dimensions by input; the name of all inputs is empty."""
        return dict(map(read_shape, self.shape))

    @property
    def unpacked_bytes(self) -> int:
        """``max_unpacked`` in bytes."""
        return int(read_limit(self.max_unpacked).number)

    @property
    def line_bytes(self) -> int:
        """``max_line`` in bytes."""
        return int(read_limit(self.max_line).number)

    @field_validator("mean", "std")
    @classmethod
    def _check_length(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(value) not in (1, 3):
            raise ValueError(f"has {len(value)} numbers; must be one number, or three as 'r,g,b'")
        return value

    @field_validator("mean")
    @classmethod
    def _check_mean(cls, value: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        most = _most_pixel(info)
        if max(abs(number) for number in value) > most:
            raise ValueError(f"must be on the scale of {_SCALES[most]}, between -{most} and {most}; {_RESCALE[most]}")
        return value

    @field_validator("std")
    @classmethod
    def _check_std(cls, value: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if min(value) <= 0:
            raise ValueError("must be greater than 0")
        most = _most_pixel(info)
        if min(value) < LEAST_STD or max(value) > MOST_STD * most:
            limits = f"from {LEAST_STD:g} to {MOST_STD * most:,}"
            raise ValueError(f"must be on the scale of {_SCALES[most]}, {limits}; {_RESCALE[most]}")
        return value

    @field_validator("letterbox")
    @classmethod
    def _check_letterbox(cls, value: tuple[int, int] | None, info: ValidationInfo) -> tuple[int, int] | None:
        beside = [name for name in ("resize", "crop") if value and info.data.get(name) is not None]
        if beside:
            raise ValueError(f"is given beside {beside[0]}, and fits the image alone; give one of them")
        return value

    @field_validator("multiple_of")
    @classmethod
    def _check_multiple(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and info.data.get("crop") is not None:
            raise ValueError("is given beside crop, which sets the size; give one of them")
        return value

    @field_validator("sequence_length")
    @classmethod
    def _check_sequence(cls, value: int | None, info: ValidationInfo) -> int | None:
        beside = [name for name in ("pairs", "max_length") if value and info.data.get(name)]
        if beside:
            raise ValueError(f"is given beside {beside[0]}, which is for texts that are samples; give one of them")
        return value

    @field_validator("state")
    @classmethod
    def _check_state(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if value and info.data.get("past") == "filled":
            raise ValueError("is given beside past 'filled', which makes the past of texts; give one of them")
        if value and any(info.data.get(name) for name in TEXT_SETTINGS):
            raise ValueError("is given beside settings of texts; sequences are arrays; give one of them")
        return value

    @field_validator("sequence_axis")
    @classmethod
    def _check_sequence_axis(cls, value: int, info: ValidationInfo) -> int:
        if value and not info.data.get("state"):
            raise ValueError("is for sequences of models with states; give state too")
        return value

    @field_validator("hop")
    @classmethod
    def _check_hop(cls, value: int | None, info: ValidationInfo) -> int | None:
        window = info.data.get("window")
        if value and window and value > window:
            raise ValueError(f"is larger than the window of {window}, so that some values are never read; lower it")
        return value

    @field_validator("text_column")
    @classmethod
    def _check_columns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("names a column twice; name each once")
        return value


# Fields of DataConfig by the kind of samples that they are for.
TEXT_SETTINGS = ("tokenizer", "text_column", "pairs", "max_length", "sequence_length")
AUDIO_SETTINGS = ("sample_rate", "window", "hop")
IMAGE_SETTINGS = (
    "pixel_range", "mean", "std", "resize", "crop", "letterbox", "fill", "multiple_of", "interpolation", "layout",
    "channels",
)  # fmt: skip
