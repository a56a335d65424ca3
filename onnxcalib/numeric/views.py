"""Views of images: shifted and mirrored copies, which tell a layer's moments more closely than few samples do."""

from __future__ import annotations

import numpy as np

# A view is shifted by up to one in so many of its image's rows and columns.
SHIFT = 8


def draw_views(images: np.ndarray, axes: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """One view of each image: shifted, the gap filled by the reflection of that end, and half of them mirrored.

    images (N, ...); ``axes`` are those of rows and columns. A side below SHIFT is not shifted.
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
    # Row -1 is row 1 again, and so on, as the reflection of a pad.
    places = np.abs(np.arange(start, start + size))
    return image.take(np.where(places < size, places, 2 * (size - 1) - places), axis)
