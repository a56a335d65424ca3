"""Strings, sequences, maps and missing values of onnxruntime as bytes, and back: what is read runs no code."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np

from .records import KINDS, describe_array, read_array, spell_array

_PLAIN = (bool, int, float, str)


def spell_value(value: Any) -> bytes:
    """The bytes of a value: the length of a tree in JSON, the tree, and the bytes of its arrays.

    Raises TypeError for what onnxruntime does not give.
    """
    arrays: list[np.ndarray] = []
    tree = _flatten(value, arrays)
    text = json.dumps([[describe_array(each) for each in arrays], tree]).encode()
    return b"".join([len(text).to_bytes(8), text, *map(spell_array, arrays)])


def read_value(data: bytes) -> Any:
    """The value of which ``spell_value`` made these bytes."""
    file = io.BytesIO(data)
    described, tree = json.loads(file.read(int.from_bytes(file.read(8))))
    return _restore(tree, [read_array(each, file)[0] for each in described])


def _flatten(value: Any, arrays: list[np.ndarray]) -> Any:
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in KINDS:
        arrays.append(value)
        return {"array": len(arrays) - 1}
    if isinstance(value, np.ndarray):
        return {"strings": [_flatten(each, arrays) for each in value.reshape(-1).tolist()], "shape": value.shape}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list):
        return [_flatten(each, arrays) for each in value]
    if isinstance(value, dict):
        return {"map": [[_flatten(each, arrays) for each in pair] for pair in value.items()]}
    raise TypeError(f"{type(value).__name__} is no value of onnxruntime")


def _restore(tree: Any, arrays: list[np.ndarray]) -> Any:
    match tree:
        case {"array": number}:
            return arrays[number]
        case {"strings": texts, "shape": shape}:
            found = np.empty(len(texts), object)
            found[:] = [_restore(each, arrays) for each in texts]
            return found.reshape(shape)
        case {"map": pairs}:
            return {_restore(key, arrays): _restore(value, arrays) for key, value in pairs}
        case list():
            return [_restore(each, arrays) for each in tree]
    return tree
