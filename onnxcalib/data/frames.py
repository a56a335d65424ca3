"""Where an image lies in a model's input: how far it is scaled, what of it is cut off, and what is filled up."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import DataConfig

Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class Frame:
    """resized: the size to which an image is scaled. size: that of the input.

    offset: pixels from the input's top and left to the scaled image's: above 0 where there are bars, below 0 where the
    image is cut.
    """

    resized: Size
    size: Size
    offset: Size


def place_image(height: int, width: int, config: DataConfig) -> Frame:
    """The frame of an image of this size; a crop may be larger than the image, which the caller refuses."""
    if config.letterbox is not None:
        ratio = min(config.letterbox[0] / height, config.letterbox[1] / width)
        resized = max(1, round(height * ratio)), max(1, round(width * ratio))
        size = config.letterbox
        if config.multiple_of is not None:  # no more bars than that needs
            size = _round(resized, config.multiple_of, up=True)
        return Frame(resized, size, ((size[0] - resized[0]) // 2, (size[1] - resized[1]) // 2))
    resized = _resize(height, width, config.resize)
    if config.multiple_of is not None:
        resized = _round(resized, config.multiple_of, up=False)
    size = config.crop or resized
    return Frame(resized, size, (-((resized[0] - size[0]) // 2), -((resized[1] - size[1]) // 2)))


def _resize(height: int, width: int, sides: tuple[int, ...] | None) -> Size:
    """Both sides as given, or the shorter one, with the longer one in proportion."""
    if sides is None:
        return height, width
    if len(sides) == 2:
        return sides[0], sides[1]
    side, short = sides[0], min(height, width)
    return (side, side * width // short) if height == short else (side * height // short, side)


def _round(size: Size, multiple: int, *, up: bool) -> Size:
    """Each side as a multiple: the next one, or the nearest one above 0."""
    if up:
        return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple
    return max(1, round(size[0] / multiple)) * multiple, max(1, round(size[1] / multiple)) * multiple
