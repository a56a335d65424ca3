"""External data: tensors whose bytes lie in files beside the model. Of a file, only a tensor's own bytes are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from onnx import TensorProto

from ..errors import ModelError
from ..files.reading import check_file
from .tensors import check_declared
from .values import (
    Place,
    bring_in,
    can_name,
    count_bytes,
    describe_state,
    is_large_model,
    may_go_outside,
    read_entries,
    refer,
)

# Tensors may share bytes, as tied weights do. They may name so many times the bytes that are on the disk, and so many
# more where files are small.
MOST_SHARING, FREE_BYTES = 4, 2**28
# Of a 64-bit number of bytes.
MOST_DIGITS = 20
GIVE = "external data lie in whole files in the model's folder; export or download the model again"


def find_data(tensor: TensorProto, model: Path) -> tuple[Path, int]:
    """The file that holds a tensor's data, and its size. Raises ModelError unless it lies in the model's folder."""
    location = read_entries(tensor).get("location", "")
    inside = os.path.normpath(location)
    parts = Path(inside).parts
    where = f"{model}: the data of tensor {tensor.name} are in {location[:100] or 'no file'}"
    if not parts or os.path.isabs(inside) or ".." in parts:
        raise ModelError(f"{where}, which is no path inside of the model's folder; {GIVE}")
    path = model.parent / inside
    try:
        linked = any((model.parent / Path(*parts[: depth + 1])).is_symlink() for depth in range(len(parts)))
        shared = path.stat().st_nlink > 1 and path.is_file()
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(f"{where}, which is missing; external data lie beside the model; put the file back") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{where}, which cannot be read ({getattr(error, 'strerror', error)}); {GIVE}") from None
    if linked or shared:  # onnx refuses both, as they may lead to any file of the machine
        raise ModelError(f"{where}, which is a link; {GIVE}")
    return path, check_file(path, ModelError, give=GIVE)


def read_external(tensors: Sequence[TensorProto], model: Path, weights: int, *, large: bool) -> None:
    """Read the data of all these tensors; raises ModelError before any is read, if one of them cannot be.

    weights: how many of the first are initializers of the graph, of which those of large models stay where they are.
    large: whether the model is known to be.
    """
    found = [_find_place(tensor, model) for tensor in tensors]
    places = [place for place, _ in found]
    named, stored = sum(place.length for place in places), sum({place.file: size for place, size in found}.values())
    if named > MOST_SHARING * stored + FREE_BYTES:
        raise ModelError(
            f"{model}: its tensors name {named:,} bytes of external data, but their files hold {stored:,}; tensors may"
            f" share bytes {MOST_SHARING} times; export the model again"
        )
    large = large or is_large_model(named)
    for number, (tensor, place) in enumerate(zip(tensors, places, strict=True)):
        if large and number < weights and may_go_outside(tensor) and can_name(place.file):
            refer(tensor, place)
        else:
            bring_in(tensor, place)


def _find_place(tensor: TensorProto, model: Path) -> tuple[Place, int]:
    """Where a tensor's data are, and the size of the whole file."""
    where = f"{model}: the external data of tensor {tensor.name}"
    check_declared(tensor, f"{model}: tensor {tensor.name}")
    if tensor.data_type == TensorProto.STRING:
        raise ModelError(f"{where} are text; numbers are needed; export the model again")
    file, size = find_data(tensor, model)
    state = describe_state(os.stat(file))
    entries = read_entries(tensor)
    for key in ("offset", "length"):
        value = entries.get(key, "0")
        if not (value.isascii() and value.isdigit() and len(value) < MOST_DIGITS):
            raise ModelError(f"{where} have {key} {value[:40]!r}; a number of bytes is needed; export the model again")
    # Without a length, or with 0, onnxruntime reads as many bytes as the shape needs.
    offset, needed = int(entries.get("offset", "0")), count_bytes(tensor)
    length = int(entries.get("length", "0")) or needed
    if length != needed:
        raise ModelError(
            f"{where} have length {length}; its shape and type need {needed} bytes; export the model again"
        )
    if offset + length > size:
        raise ModelError(f"{where} cannot be read from {file} (bytes {offset} to {offset + length} of {size}); {GIVE}")
    return Place(file.absolute(), offset, length, state), size
