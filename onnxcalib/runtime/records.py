"""Turn records of numbers, texts and arrays into JSON and bytes, and back: what is read runs no code.

The types of a record say what is read: a tree that does not fit them raises ValueError.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, BinaryIO, get_args, get_origin, get_type_hints

import numpy as np

from ..graph.values import PART_VALUES
from ..graph.weight_file import FileIntegers, put_parts

# Kinds of numbers that an array may have: booleans, signed and unsigned integers, and floats, of 8 bytes at most.
KINDS, MOST_ITEM_BYTES = "biuf", 8
# Large integers may lie in a file.
Array = np.ndarray | FileIntegers
_PLAIN = (bool, int, float, str, types.NoneType)


def flatten(value: Any, kind: Any, arrays: list[Array]) -> Any:
    """The tree of a value of the type ``kind``, for JSON; its arrays are added to ``arrays``.

    Types may be bool, int, float, str, None, np.ndarray, data classes and named tuples of these types, tuples and dicts
    of one type, and unions with None. Raises TypeError for any other.
    """
    if kind == Array and isinstance(value, FileIntegers):
        arrays.append(value)
        return len(arrays) - 1
    if kind in (np.ndarray, Array) and isinstance(value, (np.ndarray, np.generic)):
        value = np.asarray(value)
        if value.dtype.kind not in KINDS or value.dtype.itemsize > MOST_ITEM_BYTES or not value.dtype.isnative:
            raise TypeError(f"an array of {value.dtype} is not kept")
        arrays.append(value)
        return len(arrays) - 1
    if kind in _PLAIN and _is_plain(value, kind):
        return value
    if members := _members(kind, value):
        return [flatten(getattr(value, name), member, arrays) for name, member in members.items()]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        return None if value is None else flatten(value, _some(arguments), arrays)
    if origin is tuple and isinstance(value, tuple):
        return [flatten(each, arguments[0], arrays) for each in value]
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return [[flatten(part, of, arrays) for part, of in zip(pair, arguments, strict=True)] for pair in value.items()]
    raise TypeError(f"{type(value).__name__} is not kept as {kind}")


def restore(tree: Any, kind: Any, arrays: list[Array]) -> Any:
    """The value of which ``flatten`` made this tree and these arrays. Raises ValueError where they do not fit."""
    if kind in (np.ndarray, Array):
        if type(tree) is int and 0 <= tree < len(arrays):
            found = arrays[tree]
            return found.read() if kind is np.ndarray and isinstance(found, FileIntegers) else found
        raise ValueError(f"found {tree!r}, and no number of an array")
    if kind in _PLAIN:
        if _is_plain(tree, kind):
            return tree
        raise ValueError(f"found {type(tree).__name__}, and no {kind.__name__}")
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        return None if tree is None else restore(tree, _some(arguments), arrays)
    if not isinstance(tree, list):
        raise ValueError(f"found {type(tree).__name__}, and no list")
    if members := _members(kind):
        return kind(*(restore(part, of, arrays) for part, of in zip(tree, members.values(), strict=True)))
    if origin is tuple:
        return tuple(restore(each, arguments[0], arrays) for each in tree)
    return dict(_restore_pair(pair, arguments, arrays) for pair in tree)


def describe_array(array: Array) -> list[Any]:
    """The type, the shape and the order of an array: what ``read_array`` needs beside its bytes."""
    if isinstance(array, FileIntegers):
        return [np.dtype(np.int8).str, list(array.shape), "C"]
    return [array.dtype.str, list(array.shape), "F" if _is_transposed(array) else "C"]


def spell_array(array: np.ndarray) -> memoryview:
    """The bytes of an array, in the order that ``describe_array`` says."""
    ordered = np.ascontiguousarray(array.T if _is_transposed(array) else array)
    return ordered.reshape(-1).view(np.uint8).data


def spell_parts(array: Array) -> Iterator[memoryview]:
    """As ``spell_array``; those of integers in a file come part by part."""
    if isinstance(array, FileIntegers):
        yield from (part.data for part in array.read_parts())
    else:
        yield spell_array(array)


def count_bytes(description: Any) -> int:
    """The number of bytes of an array. Raises ValueError where this is no description of one."""
    match description:
        case [str(name), [*shape], "C" | "F"] if name in _types():
            if all(type(side) is int and 0 <= side < 2**48 for side in shape):
                return math.prod(int(side) for side in shape) * _types()[name].itemsize
    raise ValueError(f"{description!r} describes no array")


def read_array(description: Any, file: BinaryIO) -> tuple[np.ndarray, bytes]:
    """Read the next array of a file, and return its bytes too. Raises ValueError where the file ends before."""
    size = count_bytes(description)
    name, shape, order = description
    data = file.read(size)
    if len(data) != size:
        raise ValueError("the file ends within an array")
    return np.ndarray(shape, _types()[name], data, order=order).copy("K"), data


def read_kept(description: Any, file: BinaryIO, see: Callable[[bytes], object]) -> Array:
    """As ``read_array``, with ``see`` for the bytes; large integers of a large model go by parts to the run's file."""
    name, shape, order = description
    if (name, order) != (np.dtype(np.int8).str, "C"):
        array, data = read_array(description, file)
        see(data)
        return array

    def read_parts() -> Iterator[np.ndarray]:
        size = count_bytes(description)
        for start in range(0, max(size, 1), PART_VALUES):
            data = file.read(min(size - start, PART_VALUES))
            if len(data) < min(size - start, PART_VALUES):
                raise ValueError("the file ends within an array")
            see(data)
            yield np.frombuffer(data, np.int8)

    return put_parts(read_parts(), shape, 8 * np.dtype(np.int8).itemsize)


def _is_transposed(array: np.ndarray) -> bool:
    """Whether an array lies in memory by columns; sums over it may depend on it."""
    return array.flags.f_contiguous and not array.flags.c_contiguous


@cache
def _types() -> dict[str, np.dtype[Any]]:
    names = [np.dtype(code).str for code in "?bBhHiIqQefd"]
    return {name: np.dtype(name) for name in names}


def _is_plain(value: Any, kind: type) -> bool:
    """Whether a value is of the kind; a whole number may stand for a float, and a boolean for no number."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _members(kind: Any, value: Any = None) -> dict[str, Any]:
    """Name -> type of the members of a data class or named tuple; none for other types, and for a value of another."""
    if not isinstance(kind, type) or not (value is None or isinstance(value, kind)):
        return {}
    return dict(_hints(kind)) if is_dataclass(kind) or hasattr(kind, "_fields") else {}


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    hints = get_type_hints(kind, localns={"np": np})  # modules may import numpy for their types alone
    names = [each.name for each in fields(kind)] if is_dataclass(kind) else list(hints)
    return {name: hints[name] for name in names}


def _some(arguments: tuple[Any, ...]) -> Any:
    """The type beside None in a union."""
    (kind,) = (each for each in arguments if each is not types.NoneType)
    return kind


def _restore_pair(pair: Any, kinds: tuple[Any, ...], arrays: list[Array]) -> tuple[Any, Any]:
    if not isinstance(pair, list) or len(pair) != len(kinds):
        raise ValueError(f"found {type(pair).__name__}, and no pair")
    key, value = (restore(part, of, arrays) for part, of in zip(pair, kinds, strict=True))
    return key, value
