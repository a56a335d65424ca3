"""Views of images: shifted and mirrored copies, with which a layer's moments are estimated better from few samples."""

from __future__ import annotations

import numpy as np

# A view is shifted by at most 1 / SHIFT of its image's rows and columns.
SHIFT = 8


def draw_views(images: np.ndarray, axes: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """One view of each image: shifted at random, the gap filled by reflection, and mirrored in half of the cases.

    images (N, ...); axes: of rows and of columns. An axis of fewer than SHIFT pixels is not shifted.
    """
    views = np.empty_like(images)
    for image, view in zip(images, views, strict=True):
        for axis in axes:
            image = _shift(image, axis - 1, generator)
        view[...] = np.flip(image, axes[1] - 1) if generator.integers(2) else image
    return views


def _shift(image: np.ndarray, axis: int, generator: np.random.Generator) -> np.ndarray:
    size = image.shape[axis]
    most = size // SHIFT
    start = int(generator.integers(-most, most + 1))
    # Pixel -1 is pixel 1 again, and so on, as in ONNX's reflect mode of Pad.
    pixels = np.abs(np.arange(start, start + size))
    return image.take(np.where(pixels < size, pixels, 2 * (size - 1) - pixels), axis)
