"""Samples from an iterable: read once, item by item, and kept in files from which the jobs read them again.

One item is alive at a time. Memory holds no values, only a record for each group of neighbours of one shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import find_nearest
from ..errors import DataError, first_line
from ..spec import InputSpec, spell_shape
from .arrays import LABELS, Part, find_labels, is_array, to_array
from .checked import CheckedSamples, check_part
from .spool import Spool
from .states import may_lack
from .steps import as_steps

WHERE = "data"
EXTRA = ""  # stands for the array behind the inputs of a tuple, among the names that were not read


class Items:
    """The items of a source, pulled one at a time; ``number`` is that of the item pulled last, from 0.

    Raises DataError where the source itself raises, with that exception as the cause.
    """

    def __init__(self, source: Any) -> None:
        """Raises DataError for a source that has no items."""
        self.number = -1
        self._peeked: list[Any] = []
        self._items = self._guard(lambda: _iterate(source))
        self._single_use = self._items is source or hasattr(source, "get_next")

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._peeked:
            return self._peeked.pop()
        item = self._guard(lambda: next(self._items))
        self.number += 1
        return item

    def peek(self) -> Any:
        """The first item, which the next call of ``next`` gives again. Raises DataError where there is none."""
        try:
            self._peeked.append(next(self))
        except StopIteration:
            advice = "give at least one sample"
            if self._single_use:
                advice = "an iterator can be read only once, and this one may have been read before; make a new one"
            raise DataError(f"{WHERE}: found no items; {advice}") from None
        return self._peeked[0]

    def _guard(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (StopIteration, DataError):
            raise
        except Exception as error:  # the caller's own code, which may raise anything
            text = first_line(error)
            raise DataError(
                f"{WHERE}: item {self.number + 1}: the iterable raised {type(error).__name__}: {text}; mend what yields"
                " the samples"
            ) from error


def _iterate(source: Any) -> Iterator[Any]:
    if callable(getattr(source, "get_next", None)):  # onnxruntime's CalibrationDataReader
        return _read_until_none(source.get_next)
    if not hasattr(source, "__iter__") and hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return (source[index] for index in range(len(source)))  # torch's Dataset, which need not raise IndexError
    if isinstance(source, (bytes, bytearray)) or not hasattr(source, "__iter__"):
        raise DataError(
            f"{WHERE}: found {type(source).__name__}; give a path, an array, a dict of arrays, a list of texts, or an"
            " iterable of samples"
        )
    return iter(source)


def _read_until_none(get_next: Callable[[], Any]) -> Iterator[Any]:
    item = get_next()
    while item is not None:
        yield item
        del item  # before the next one is made, so that one is alive
        item = get_next()


def check_texts(items: Items) -> Iterator[str]:
    """The items, all of which must be texts."""
    for item in items:
        if not isinstance(item, str):
            raise DataError(
                f"{WHERE}: item {items.number}: found {type(item).__name__} among texts; give texts alone, or arrays"
                " alone"
            )
        yield item


class ItemReader:
    """Turns items into checked samples, and remembers what it passed over.

    An item is a mapping from input names to arrays, a tuple or list of arrays in the order of the inputs, or the one
    input's array itself. Its arrays hold several samples on their first axis, or one sample without that axis. Where
    inputs are states, an item is a sequence, or holds several: see ``as_steps`` for ``axis``.
    """

    def __init__(self, inputs: Sequence[InputSpec], axis: int = 0) -> None:
        self._inputs, self._axis = inputs, axis
        self._stepwise = any(spec.state for spec in inputs)
        self._wanted = [spec.name for spec in inputs]
        self._needed = [spec.name for spec in inputs if not may_lack(spec)]
        # Of tuples and single arrays, which have no names.
        self._in_order = self._needed if self._stepwise else self._wanted
        self._unread: dict[str, None] = {}  # in the order in which they were found
        self._told: set[str] = set()

    def read(self, item: Any, number: int) -> CheckedSamples:
        """The samples of an item, in arrays that may share its memory. Raises DataError."""
        where = f"{WHERE}: item {number}"
        if isinstance(item, Mapping):
            return self._check(self._name_by_key(item, where), where, self._find_labels(item, where))
        if isinstance(item, (tuple, list)) and (len(self._in_order) > 1 or any(map(_holds_arrays, item))):
            values, extra = self._name_in_order(item, where)
            checked = self._check(values, where)
            if extra:
                self._pass_over_labels(extra[0], checked, where)
            return checked
        if len(self._in_order) > 1:
            raise DataError(
                f"{where}: found one {type(item).__name__}; the model has inputs {', '.join(self._in_order)}; yield"
                " dictionaries with these keys, or a tuple in this order"
            )
        return self._check({self._in_order[0]: item}, where)

    def tell(self) -> tuple[str, ...]:
        """Lines about what was not read, without what an earlier call has told."""
        new = [name for name in self._unread if name not in self._told]
        self._told.update(new)
        names = [repr(name) for name in new if name != EXTRA]
        lines = []
        if names:
            lines.append(
                f"{WHERE}: not read from the items: {', '.join(names)}; the model's inputs are"
                f" {', '.join(self._wanted)}"
            )
        if EXTRA in new:
            lines.append(
                f"{WHERE}: items hold one array more than the model has inputs; it looks like labels and is not read;"
                f" to have labels read, yield {{{self._wanted[0]!r}: ..., 'label': ...}}"
            )
        return tuple(lines)

    def _name_by_key(self, item: Mapping[Any, Any], where: str) -> dict[str, Any]:
        had = [str(name) for name in item]
        for name in self._needed:
            if name not in item:
                close = find_nearest(name, [key for key in had if key not in self._wanted])
                hint = f" rename {close!r} to {name!r}" if close else " add it, or rename the key that holds it"
                raise DataError(
                    f"{where}: no array for input {name!r}, found {', '.join(had) or 'none'}; the model's inputs are"
                    f" {', '.join(self._wanted)};{hint}"
                )
        self._unread |= dict.fromkeys(name for name in had if name not in self._wanted and name not in LABELS)
        return {name: item[name] for name in self._wanted if name in item}

    def _find_labels(self, item: Mapping[Any, Any], where: str) -> Any:
        name = find_labels(item, self._inputs)
        return None if name is None else item[name]

    def _name_in_order(self, item: Sequence[Any], where: str) -> tuple[dict[str, Any], Sequence[Any]]:
        """The arrays by input, and the one behind them if there is one more."""
        names = self._wanted if len(item) == len(self._wanted) else self._in_order
        count = len(names)
        found = f"{where}: found a {type(item).__name__} of {len(item)}"
        if any(isinstance(each, Mapping) for each in item):
            raise DataError(f"{found} with a dictionary in it; yield the dictionary itself")
        if not count <= len(item) <= count + 1:
            raise DataError(
                f"{found}; the model's inputs are {', '.join(names)}; yield one array for each, of one sample or"
                " of samples stacked on the first axis"
            )
        return dict(zip(names, item, strict=False)), item[count:]

    def _pass_over_labels(self, value: Any, checked: CheckedSamples, where: str) -> None:
        """Note that labels are not read. Raises DataError for a value that is not one integer a sample."""
        array = to_array(value, f"{where}: array {len(self._inputs)}")
        rows = checked.rows
        of_samples = array.shape in ((rows,), (rows, 1)) or (rows == 1 and array.shape == ())
        if array.dtype.kind not in "iu" or not of_samples:
            raise DataError(
                f"{where}: found {len(self._inputs) + 1} arrays, the last being {array.dtype} of shape"
                f" {spell_shape(array.shape)}; the model's inputs are {', '.join(self._wanted)}; yield one array for"
                " each"
            )
        self._unread[EXTRA] = None

    def _check(self, values: Mapping[str, Any], where: str, labels: Any = None) -> CheckedSamples:
        arrays = {spec.name: _to_input(values[spec.name], spec, where) for spec in self._inputs if spec.name in values}
        read_labels = None if labels is None else lambda: to_array(labels, f"{where}: labels")
        part = Part(where, arrays, labels=read_labels)
        return check_part(as_steps(part, self._inputs, self._axis) if self._stepwise else part, self._inputs)


def _holds_arrays(value: Any) -> bool:
    return (is_array(value) and getattr(value, "ndim", 1) > 0) or isinstance(value, Mapping)


def _to_input(value: Any, spec: InputSpec, where: str) -> np.ndarray:
    where = f"{where}: input {spec.name!r}"
    dtype = np.dtype(spec.dtype)
    listed = isinstance(value, (list, tuple))
    if listed and any(map(_holds_arrays, value)):
        # Without a tensor format, torch's default_collate turns a batch of lists into a list along the wrong axis.
        raise DataError(
            f"{where}: found a list of {type(value[0]).__name__}, whose first axis may count samples or tokens; give"
            " one array: stack the samples, or call set_format('torch') on the data set"
        )
    array = to_array(value, where)
    if array.dtype.kind in "OUSMm" or dtype.kind == "O":
        found = f"{array.dtype}, which are no numbers" if array.dtype.kind in "OUSMm" else str(array.dtype)
        raise DataError(
            f"{where}: found {found}; the model takes {dtype}; items hold numbers alone; convert them, or leave the"
            " item out"
        )
    return _fit_list(array, dtype) if listed else array


def _fit_list(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Integers of Python have no width, so that they fit any type that holds their values."""
    if not array.size:
        return array.astype(dtype)
    if array.dtype.kind in "iu" and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if limits.min <= array.min() and array.max() <= limits.max:
            return array.astype(dtype)
    return array


def spool_items(
    items: Items, inputs: Sequence[InputSpec], scratch: Path, limit: int | None, axis: int = 0
) -> Iterator[Part]:
    """Parts of neighbouring items of one shape, whose values are files in ``scratch``.

    Values are stored in the model's types. No item is pulled once there are ``limit`` samples, or sequences where
    inputs are states. Raises DataError.
    """
    reader, group, samples = ItemReader(inputs, axis), None, 0
    with Spool(scratch, inputs) as spool:
        while limit is None or samples < limit:
            try:
                checked = reader.read(next(items), items.number)
            except StopIteration:
                break
            if group is None or checked.shapes != group.shapes:
                if group is not None:
                    yield spool.finish(group, reader.tell())
                group = spool.start(checked, items.number)
            spool.write(checked)
            group.add(checked, items.number)
            samples += len(checked.part.lengths) or checked.rows
            del checked  # before the next item is made, so that one is alive
        if group is not None:
            yield spool.finish(group, reader.tell())
