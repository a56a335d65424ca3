"""Image files as model inputs: resized, cropped or filled up, reordered and normalized on reading."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import UNIT, DataConfig
from ..errors import DataError, first_line
from ..files.reading import open_file
from ..spec import InputSpec
from .arrays import Part
from .frames import Frame, place_image
from .listing import list_names, shorten

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # as Pillow names those of SUFFIXES; it would decode 40 more
READ_BYTES = 2**20  # of a file at once
# The decoded pixels of a folder that are kept from one read to the next.
KEPT_BYTES = 64 * 2**20
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L")  # 16-bit gray files, which Pillow's convert() would clip


@dataclass(frozen=True)
class ImageFormat:
    """How an image becomes an input; height and width are None where the model takes any."""

    input: str
    dtype: np.dtype
    layout: str
    channels: str
    height: int | None
    width: int | None
    config: DataConfig


@dataclass
class PixelRoom:
    """The bytes of decoded pixels that the images of a folder may still keep."""

    left: int

    def take(self, size: int) -> bool:
        """Whether so many are left; these are taken."""
        fits = size <= self.left
        self.left -= size if fits else 0
        return fits


class ImageFile:
    """One image file as an array of one sample, decoded when it is read, and kept as pixels where there is room."""

    def __init__(self, path: Path, form: ImageFormat, kept: PixelRoom | None = None) -> None:
        self._path, self._form = path, form
        self._kept = kept or PixelRoom(0)
        self._pixels: np.ndarray | None = None
        self._frame = place_image(*_read_size(path, form.config.max_pixels), form.config)
        self.size = self._frame.size
        _check_pixels(path, self._frame.resized, form.config.max_pixels, " after resizing")
        if min(self._frame.resized[axis] - self.size[axis] for axis in (0, 1)) < 0 and form.config.letterbox is None:
            raise DataError(
                f"{path}: found {_spell(self._frame.resized)} pixels (height x width); --crop needs"
                f" {_spell(self.size)} or more; lower it, or enlarge the images with --resize"
            )
        _check_pixels(path, self.size, form.config.max_pixels, " with bars")
        depth = 1 if form.channels == "gray" else 3
        self.shape = (depth, *self.size) if form.layout == "nchw" else (*self.size, depth)
        self.dtype = form.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        values: np.ndarray = self._decode()[index]
        return values

    def digest(self) -> bytes:
        """SHA-256 of the file, and how its pixels become values. Raises DataError."""
        with open_file(self._path, DataError, give="give an image") as file:
            found = hashlib.sha256()
            while data := file.read(READ_BYTES):
                found.update(data)
        return found.digest() + repr(self._form).encode()

    def _decode(self) -> np.ndarray:
        """x = (pixel / 255 - mean) / std, without 255 if ``pixel_range`` says so; pixels for a uint8 input."""
        form, config = self._form, self._form.config
        pixels = self._read_pixels().transpose(2, 0, 1)
        values = np.array(pixels, form.dtype if form.dtype.kind != "f" else np.float32, order="C")
        if form.dtype.kind == "f":
            mean, std = (np.asarray(v, np.float32).reshape(-1, 1, 1) for v in (config.mean, config.std))
            if config.pixel_range == UNIT:
                values /= np.float32(255)  # in place, as an image may be large
            values -= mean
            values /= std
        if form.channels == "bgr":
            values = values[::-1]
        if form.layout != "nchw":
            values = values.transpose(1, 2, 0)
        return np.ascontiguousarray(values, form.dtype)

    def _read_pixels(self) -> np.ndarray:
        """uint8 (height, width, 1 or 3), in their frame."""
        if self._pixels is not None:
            return self._pixels
        config = self._form.config
        pixels = _read_pixels(self._path, self._form.channels == "gray", self._frame.resized, config.interpolation)
        pixels = _fit(pixels, self._frame, config.fill)
        if self._kept.take(pixels.nbytes):
            self._pixels = pixels.copy()  # a view would keep all that was cut off
        return pixels


def open_images(paths: Sequence[Path], inputs: Sequence[InputSpec], config: DataConfig) -> Iterator[Part]:
    """A part for each file. Sizes are checked against the model and against the first file. Raises DataError."""
    form = choose_format(inputs, config, str(paths[0].parent))
    first, kept = None, PixelRoom(KEPT_BYTES)
    for path in paths:
        image = ImageFile(path, form, kept)
        _check_size(path, image.size, form)
        first = first or (path, image.size)
        if image.size != first[1] and config.multiple_of is None:
            raise DataError(
                f"{path}: found {_spell(image.size)} pixels (height x width) where {first[0].name} has"
                f" {_spell(first[1])}; all must have one size; use --resize and --crop, or --letterbox; with"
                " --multiple-of they may differ"
            )
        yield Part(str(path), {form.input: image}, file=path)


def choose_format(inputs: Sequence[InputSpec], config: DataConfig, where: str) -> ImageFormat:
    """The format of the model's input, where the configuration does not set it. Raises DataError."""
    if len(inputs) != 1:
        names = list_names(spec.name for spec in inputs)
        raise DataError(
            f"{where}: images feed one input; the model has inputs {names}; give .npz files with all of them"
        )
    spec = inputs[0]
    shape = (None,) * 4 if spec.shape is None else spec.shape
    if len(shape) != 4:
        raise DataError(
            f"{where}: images need a 4-D input; the model's input {spec.name!r} has {len(shape)} dimensions; "
            "give .npy files"
        )
    dtype = np.dtype(spec.dtype)
    if dtype.kind != "f" and dtype != np.uint8:
        raise DataError(
            f"{where}: images become floats or uint8; the model's input {spec.name!r} is {dtype}; give .npy"
        )
    if dtype == np.uint8 and (config.mean, config.std) != (DataConfig().mean, DataConfig().std):
        raise DataError(f"{where}: the model's input {spec.name!r} is uint8, so raw pixels; leave out --mean and --std")
    layout = config.layout or _infer_layout(shape)
    axis = 1 if layout == "nchw" else 3
    height, width = shape[2:] if layout == "nchw" else shape[1:3]
    channels = _choose_channels(shape[axis], config, f"{where}: the model's input {spec.name!r}", layout)
    return ImageFormat(spec.name, dtype, layout, channels, height, width, config)


def image_axes(shape: Sequence[int], config: DataConfig) -> tuple[int, int] | None:
    """Axes of height and width where an input of this shape takes images; else None."""
    if len(shape) != 4:
        return None
    layout = config.layout or _infer_layout(shape)
    return ((2, 3) if layout == "nchw" else (1, 2)) if shape[1 if layout == "nchw" else 3] in (1, 3) else None


def _infer_layout(shape: Sequence[int | None]) -> str:
    return "nhwc" if shape[3] in (1, 3) and shape[1] not in (1, 3) else "nchw"


def _choose_channels(depth: int | None, config: DataConfig, where: str, layout: str) -> str:
    if depth not in (None, 1, 3):
        raise DataError(
            f"{where} has {depth} channels in layout {layout}; images have 1 or 3; change --layout or give .npy"
        )
    channels = config.channels or ("gray" if depth == 1 else "rgb")
    have = 1 if channels == "gray" else 3
    if depth not in (None, have):
        fitting = "gray" if depth == 1 else "rgb or bgr"
        raise DataError(f"{where} has {depth} channels; --channels {channels} gives {have}; use --channels {fitting}")
    for name in ("mean", "std"):
        count = len(getattr(config, name))
        if count not in (1, have):
            raise DataError(f"{where} takes {have} channel; --{name} has {count} numbers; give one")
    return channels


def _check_size(path: Path, size: tuple[int, int], form: ImageFormat) -> None:
    want = (form.height or size[0], form.width or size[1])
    if size != want:
        crop = str(want[0]) if want[0] == want[1] else _spell(want)
        raise DataError(
            f"{path}: found {_spell(size)} pixels (height x width); the model's input {form.input!r} takes"
            f" {_spell(want)}; use --resize {max(want)} --crop {crop}, --resize {_spell(want)} or --letterbox"
            f" {_spell(want)}, as the model's own preprocessing does"
        )


def _read_size(path: Path, most: int) -> tuple[int, int]:
    """(height, width) from the header, of at most so many pixels."""
    with _open_image(path) as image:
        size = image.height, image.width
    _check_pixels(path, size, most)
    return size


def _check_pixels(path: Path, size: tuple[int, int], most: int, when: str = "") -> None:
    if size[0] * size[1] > most:
        raise DataError(
            f"{path}: found {_spell(size)} pixels (height x width){when}; {most:,} in all are read; make it smaller, or"
            " raise --max-pixels"
        )


def _fit(pixels: np.ndarray, frame: Frame, fill: int) -> np.ndarray:
    """The scaled image (height, width, channels) in its frame, cut to it or with bars of ``fill``."""
    top, left = frame.offset
    if frame.resized[0] >= frame.size[0] and frame.resized[1] >= frame.size[1]:  # by one pixel too, at offset 0
        return pixels[-top : frame.size[0] - top, -left : frame.size[1] - left]
    filled = np.full((*frame.size, pixels.shape[2]), fill, np.uint8)
    filled[top : top + frame.resized[0], left : left + frame.resized[1]] = pixels
    return filled


def _read_pixels(path: Path, gray: bool, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """uint8 (height, width, 1 or 3), resized. EXIF rotation is not applied, since training pipelines do not either."""
    from PIL import Image

    with _open_image(path) as opened:
        image: Image.Image = opened
        if image.mode in DEEP_MODES:
            image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
        mode = "L" if gray else "RGB"
        image = image if image.mode == mode else image.convert(mode)
        if (image.height, image.width) != size:
            image = _resize(image, (size[1], size[0]), interpolation)
        pixels = np.asarray(image)
    return pixels[..., None] if gray else pixels


def _resize(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    """The image with this width and height. Pillow and torchvision average where they shrink, and OpenCV does not."""
    from PIL import Image

    if interpolation == "opencv":
        whole = (0, 0, *image.size)
        return image.transform(size, Image.Transform.EXTENT, whole, Image.Resampling.BILINEAR)
    return image.resize(size, Image.Resampling[interpolation.upper()])


@contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    """An image of FORMATS. Raises DataError for it, and for whatever goes wrong while it is open."""
    from PIL import Image, UnidentifiedImageError

    with open_file(path, DataError, give="give an image") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about sizes and transparency
        try:
            with Image.open(file, formats=FORMATS) as image:
                yield image
        except DataError:
            raise
        except UnidentifiedImageError:
            raise _refuse(path, "its content is no PNG, JPEG, BMP or WebP") from None
        except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to
            raise _refuse(path, shorten(first_line(error))) from None


def _refuse(path: Path, text: str) -> DataError:
    return DataError(f"{path}: not a readable image ({text}); replace it or take it out")


def _spell(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
