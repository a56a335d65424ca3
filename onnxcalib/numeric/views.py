"""Views of samples, with which a layer's moments are estimated better from few of them, and mixtures to learn from.

Images are shifted and mirrored, and tokens of texts are exchanged. Two images are mixed.

A view need not be a likely sample: the float model says what it should give.
"""

from __future__ import annotations

import math

import numpy as np

# A view is shifted by at most 1 / SHIFT of its image's rows and columns.
SHIFT = 8
# Rows of a table among which neighbours are looked for, and rows whose neighbours are found at once.
MOST_ROWS, ROWS_AT_ONCE = 2**15, 256


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


def draw_mixtures(images: np.ndarray, axes: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Each image with another one of them: by a coin their weighted mean, or a rectangle of the other in it.

    images (N, ...), which stay as they are. The share is even between none and all. Sources: mix-up, Zhang et al. 2018;
    cut-mix, Yun et al. 2019.
    """
    mixtures = images.copy()
    for image, other in zip(mixtures, images[generator.permutation(len(images))], strict=True):
        share = generator.random()
        if generator.integers(2):
            image[...] = (1 - share) * image + share * other
        else:
            place = [slice(None)] * image.ndim
            for axis in axes:
                size = image.shape[axis - 1]
                length = round(size * math.sqrt(share))
                start = int(generator.integers(size - length + 1))
                place[axis - 1] = slice(start, start + length)
            image[tuple(place)] = other[tuple(place)]
    return mixtures


def draw_token_views(
    tokens: np.ndarray, exchanged: np.ndarray, known: np.ndarray, others: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """One view of each text: a random share of its tokens, from none to all, is exchanged for random others.

    tokens (N, tokens); exchanged: which of them may be, bool of that shape. known (any,): tokens in ascending order,
    and others (known, any): what may stand for each; tokens that are not known stay.
    """
    if not others.size:
        return tokens.copy()
    share = generator.random((len(tokens), 1))
    places = np.searchsorted(known, tokens).clip(max=len(known) - 1)
    chosen = exchanged & (known[places] == tokens) & (generator.random(tokens.shape) < share)
    drawn = others[places, generator.integers(others.shape[1], size=tokens.shape)]
    return np.where(chosen, drawn.astype(tokens.dtype), tokens)


def nearest_rows(table: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """For each of these rows (any,) of a table (entries, width) the ``count`` others nearest to it, (any, count).

    Nearness is the cosine of what is left without the mean row. Of a table of more than MOST_ROWS, evenly spread ones
    are looked at.
    """
    among = np.linspace(0, len(table) - 1, min(len(table), MOST_ROWS)).astype(int)
    mean = table[among].mean(axis=0)

    def point(chosen: np.ndarray) -> np.ndarray:
        found: np.ndarray = table[chosen] - mean
        found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return found

    directions, found = point(among), []
    for part in np.array_split(rows, -(-len(rows) // ROWS_AT_ONCE)):
        cosines = point(part) @ directions.T
        cosines[part[:, None] == among] = -2.0  # never itself
        found.append(among[np.argpartition(-cosines, count - 1, axis=1)[:, :count]])
    return np.concatenate(found)
