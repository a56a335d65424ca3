"""Views of samples, with which a layer's moments are estimated better from few of them.

Images are shifted and mirrored, and tokens of texts are exchanged.

A view need not be a likely sample: the float model says what it should give.
"""

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


def draw_token_views(
    tokens: np.ndarray, exchanged: np.ndarray, others: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """One view of each text: a random share of its tokens, from none to all, is exchanged for random others.

    tokens (N, tokens); exchanged: which of them may be, bool of that shape. others (any,): those to draw from; one that
    is there several times is drawn as often.
    """
    share = generator.random((len(tokens), 1))
    chosen = exchanged & (generator.random(tokens.shape) < share)
    if not len(others):
        return tokens.copy()
    return np.where(chosen, others[generator.integers(len(others), size=tokens.shape)], tokens)
