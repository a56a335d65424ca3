"""Which views of its samples a run stores beside them: images that are shifted, or texts whose tokens are exchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from ..data.images import image_axes
from ..data.padding import TOKEN_IDS
from ..graph.index import Index
from ..graph.layout import count_inputs
from ..numeric.views import draw_token_views, draw_views
from .column_choice import MOST_INPUTS
from .padding_mask import find_real
from .prepared import Prepared
from .state import Views

# Texts of so many tokens for each input of the widest layer need no views. (MiniLM-L6, 4-bit weights: ...)
ENOUGH_TOKENS = 16
AT_ONCE = 32  # texts that are read together


@dataclass(frozen=True)
class ImageViews:
    """axes: of rows and of columns."""

    count: int
    axes: tuple[int, int]

    def draw(self, feeds: Mapping[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        return {name: draw_views(value, self.axes, generator) for name, value in feeds.items()}


@dataclass(frozen=True)
class TextViews:
    """others: the tokens of all texts, as often as they are there. kept: those that no view exchanges."""

    count: int
    others: np.ndarray
    kept: np.ndarray

    def draw(self, feeds: Mapping[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        tokens = feeds[TOKEN_IDS]
        exchanged = _real_tokens(feeds) & ~np.isin(tokens, self.kept)
        return {**feeds, TOKEN_IDS: draw_token_views(tokens, exchanged, self.others, generator)}


def stores_views(prepared: Prepared) -> bool:
    """Whether views are stored, as far as the settings tell."""
    samples, config = prepared.samples, prepared.config
    given = config.views is not None or samples.images or samples.texts is not None
    return given and bool(_count_views(prepared))


def choose_views(prepared: Prepared) -> Views | None:
    """The views to store: of image files and of texts, and of arrays only if the settings ask for views."""
    if not stores_views(prepared):
        return None
    samples, config = prepared.samples, prepared.config
    found: Views | None
    values = samples.read(range(samples.fixed_batch or 1))
    if _holds_tokens(values):
        found, what = _of_texts(prepared), "text"
    else:
        axes = image_axes(next(iter(values.values())).shape, config.data) if len(values) == 1 else None
        if axes is None:
            reason = "one input of images is needed, of 4 dimensions and 1 or 3 channels, or one of tokens, input_ids"
            prepared.run.leave_out("views", reason)
            prepared.run.warn(f"views: none were made; {reason}")
            return None
        found, what = ImageViews(_count_views(prepared), axes), "image"
    if found is not None:
        prepared.run.observer.note(f"{found.count} view{'s' * (found.count > 1)} of each {what} beside itself")
    return found


def _count_views(prepared: Prepared) -> int:
    """Views of each sample by the settings. Texts that calibrate weights alone have none of their own accord.

    The next tokens that a language model gives behind tokens without sense are not what it is used for.
    """
    config, scheme, texts = prepared.config, prepared.scheme, prepared.samples.texts is not None
    alone = texts and config.views is None and all(layer.reads_float for layer in scheme.layers)
    return 0 if alone else config.count_views(scheme.least_weight_bits, texts=texts)


def _holds_tokens(feeds: Mapping[str, Any]) -> bool:
    tokens = feeds.get(TOKEN_IDS)
    return tokens is not None and tokens.ndim == 2 and tokens.dtype.kind in "iu"


def _real_tokens(feeds: Mapping[str, Any]) -> np.ndarray:
    """Which of the tokens are no padding, bool (samples, tokens)."""
    real = find_real(feeds)
    return np.ones(feeds[TOKEN_IDS].shape, bool) if real is None else real


def _of_texts(prepared: Prepared) -> TextViews | None:
    """Views of texts; without a number from the settings no more than it takes to have ENOUGH_TOKENS."""
    samples, count = prepared.samples, _count_views(prepared)
    batches = map(samples.read, samples.split(AT_ONCE))
    texts = [row[real] for feeds in batches for row, real in zip(feeds[TOKEN_IDS], _real_tokens(feeds), strict=True)]
    # Those with which a tokenizer starts and ends every text.
    kept = reduce(np.intersect1d, texts)
    tokens = np.concatenate(texts)
    if prepared.config.views is None:
        count = min(count, -(-ENOUGH_TOKENS * _widest(prepared) // len(tokens)) - 1)
    return TextViews(count, tokens[~np.isin(tokens, kept)], kept) if count > 0 else None


def _widest(prepared: Prepared) -> int:
    """The most inputs of a layer that is solved."""
    index = Index(prepared.model.graph)
    counts = [count_inputs(index.initializers[layer.weight].dims, layer) for layer in prepared.scheme.layers]
    return max((count for count in counts if count <= MOST_INPUTS), default=0)
