"""Which views of its samples a run stores beside them: images that are shifted, or texts whose tokens are exchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from onnx import ModelProto

from ..config import FULL_BITS
from ..data.images import image_axes
from ..data.padding import TOKEN_IDS
from ..graph.index import Index, attribute_of, is_op, known_constant
from ..graph.layout import count_inputs
from ..numeric.views import draw_token_views, draw_views, nearest_rows
from .column_choice import MOST_INPUTS
from .padding_mask import find_real
from .prepared import Prepared
from .state import Views

# Texts of so many tokens for each input of the widest layer need no views. (MiniLM-L6 at W4A8 in a simulation: 256
# sentences, 2.4 tokens an input, leave 15.3 dB of others, with a view of each 16.0.)
ENOUGH_TOKENS = 16
# Tokens that may stand for another one: those whose rows in the model's own table are nearest to its row. (A view of
# tokens from the other texts and from all of the table leaves 15.8 dB.)
NEIGHBOURS = 32
# Of so many bits of weights, or 8 of activations, views help models with layers of several groups.
FEW_BITS = 4
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
    """known (any,): the tokens that are exchanged, in ascending order; others (known, any): what may stand for each."""

    count: int
    known: np.ndarray
    others: np.ndarray

    def draw(self, feeds: Mapping[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        drawn = draw_token_views(feeds[TOKEN_IDS], _real_tokens(feeds), self.known, self.others, generator)
        return {**feeds, TOKEN_IDS: drawn}


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

    The next tokens that a language model gives behind tokens without sense are not what it is used for. Nor have models
    with layers of several groups and few bits, which gain nothing by views. (MobileNetV2 at W3A8, 256 images: 5.5 dB
    with none, 5.1 with two of each and fewer columns; at W4A4 its scores correlate by 0.78 with none and with two.)
    """
    config, scheme, texts = prepared.config, prepared.scheme, prepared.samples.texts is not None
    alone = texts and all(layer.reads_float for layer in scheme.layers)
    few = scheme.reads_fewer_bits(FULL_BITS) or scheme.least_weight_bits < FEW_BITS
    if config.views is None and (alone or (few and scheme.has_groups)):
        return 0
    return config.count_views(scheme.least_weight_bits, texts=texts)


def _holds_tokens(feeds: Mapping[str, Any]) -> bool:
    tokens = feeds.get(TOKEN_IDS)
    return tokens is not None and tokens.ndim == 2 and tokens.dtype.kind in "iu"


def _real_tokens(feeds: Mapping[str, Any]) -> np.ndarray:
    """Which of the tokens are no padding, bool (samples, tokens). A decoder's mask has its past in front."""
    real, shape = find_real(feeds), feeds[TOKEN_IDS].shape
    past = 0 if real is None else real.shape[1] - shape[1]
    return np.ones(shape, bool) if real is None or past < 0 else real[:, past:]


def _of_texts(prepared: Prepared) -> TextViews | None:
    """Views of texts; without a number from the settings no more than it takes to have ENOUGH_TOKENS."""
    samples, count = prepared.samples, _count_views(prepared)
    batches = map(samples.read, samples.split(AT_ONCE))
    texts = [row[real] for feeds in batches for row, real in zip(feeds[TOKEN_IDS], _real_tokens(feeds), strict=True)]
    # Those with which a tokenizer starts and ends every text.
    kept = reduce(np.intersect1d, texts)
    tokens = np.concatenate(texts)
    exchanged = tokens[~np.isin(tokens, kept)]
    if not exchanged.size:
        prepared.run.leave_out("views", "all texts have the same tokens, which stay as they are")
        return None
    if prepared.config.views is None:
        count = min(count, -(-ENOUGH_TOKENS * _widest(prepared) // len(tokens)) - 1)
    if count <= 0:
        return None
    known = np.unique(exchanged)
    table = _find_table(prepared.model)
    if table is None or len(table) <= NEIGHBOURS + 1 or known[-1] >= len(table):
        return TextViews(count, known, np.broadcast_to(exchanged, (len(known), len(exchanged))))
    return TextViews(count, known, nearest_rows(table, known, NEIGHBOURS))


def _find_table(model: ModelProto) -> np.ndarray | None:
    """The table of rows that the model looks tokens up in, None where it has none of its own."""
    index = Index(model.graph)
    for node in index.readers(TOKEN_IDS):
        if is_op(node, "Gather") and attribute_of(node, "axis", 0) == 0 and node.input[1] == TOKEN_IDS:
            table = known_constant(index, node.input[0]) if node.input[0] in index.initializers else None
            if table is not None and table.ndim == 2:
                return table
    return None


def _widest(prepared: Prepared) -> int:
    """The most inputs of a layer that is solved."""
    index = Index(prepared.model.graph)
    counts = [count_inputs(index.initializers[layer.weight].dims, layer) for layer in prepared.scheme.layers]
    return max((count for count in counts if count <= MOST_INPUTS), default=0)
