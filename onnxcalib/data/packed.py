"""Texts as one stream of tokens, cut into sequences of one length: what a language model is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..errors import DataError

PIECE_CHARACTERS = 2**16  # encoded at once; where pieces meet, no token spans both


def pack_texts(
    where: str, texts: Iterator[str], encode: Callable[[str, bool], Any], length: int, *, limit: int | None
) -> np.ndarray:
    """Sequences of ``length`` tokens, int64 (sequences, length), at most ``limit``.

    encode: gives the encoding of a text, with the tokenizer's own tokens around it or without.

    Each text ends with a line feed, so that the lines of a file are read as they stand. A sequence begins with the
    tokens that the tokenizer puts in front of a text, where it does, and goes on where the one before ended. What is
    left at the end fills no sequence and is dropped. Raises DataError where nothing fills one.
    """
    start = _find_start(encode)
    room = length - len(start)
    if room < 1:
        raise DataError(
            f"sequence_length: found {length}; {len(start)} are the tokenizer's own, so that none is left for text;"
            " give more"
        )
    found: list[np.ndarray] = []
    count = 0
    for piece in _join(texts):
        ids = np.array(encode(piece, False).ids, np.int64)
        found.append(ids)
        count += len(ids)
        if limit is not None and count >= limit * room:
            break
    sequences = min(count // room, limit or count)
    if not sequences:
        raise DataError(
            f"{where}: found {count} tokens of text; a sequence takes {room}; give more text, or a smaller"
            " --sequence-length"
        )
    stream = np.concatenate(found)[: sequences * room].reshape(sequences, room)
    return np.concatenate([np.tile(np.array(start, np.int64), (sequences, 1)), stream], axis=1)


def _find_start(encode: Callable[[str, bool], Any]) -> list[int]:
    """The tokens that the tokenizer puts in front of a text, such as that of a beginning."""
    code = encode("a", True)
    own = next((at for at, special in enumerate(code.special_tokens_mask) if not special), 0)
    return list(code.ids[:own])


def _join(texts: Iterator[str]) -> Iterator[str]:
    """Pieces of many texts, each text with a line feed behind it."""
    piece: list[str] = []
    characters = 0
    for text in texts:
        piece.append(text + "\n")
        characters += len(text) + 1
        if characters >= PIECE_CHARACTERS:
            yield "".join(piece)
            piece, characters = [], 0
    if piece:
        yield "".join(piece)
