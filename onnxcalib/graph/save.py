"""Write a model and the files that belong to it, all or none of them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path

from onnx import ModelProto, TensorProto
from onnx.external_data_helper import set_external_data

from ..files.scratch import claimed
from ..files.writing import Aside, Content, replacing
from .stream import model_bytes, model_pieces, tensor_pieces
from .values import PAGE_BYTES, PIECE_BYTES, find_place, has_outside, is_outside, read_pieces
from .weightless import copy_without_initializers, held_bytes

# A protobuf message holds no more than 2 GB, of which other fields than tensor data need some.
MOST_BYTES = 2**31 - 2**24
# Smaller tensors stay in the model, where shape inference needs them; onnx.save's own threshold.
LEAST_EXTERNAL_BYTES = 1024
MOST_FINGERPRINTS = 16  # that a process remembers
_fingerprints: dict[str, str] = {}
# Hexadecimal digits of a digest in the name of a file of tensors, and bytes of the model's name that stand before them.
DIGITS, LONGEST_NAME = 16, 200


def save_model(
    model: ModelProto,
    path: Path,
    *,
    beside: Mapping[Path, Content] | None = None,
    most_bytes: int | None = None,
    lasting: bool = True,
) -> None:
    """Write the model to ``path``, and its tensors to a file beside it if it is larger than ``most_bytes``.

    That file is named by its content, ``path`` + ``.DIGEST.data``, so that the model of before keeps its own until the
    new one, which is renamed last, is in its place. beside: other files that belong to the model and change with it.
    most_bytes: None is MOST_BYTES. lasting: wait until the disk has the files. The model is left as it is. Any failure
    removes what was written; failures of the file system raise OutputError.
    """
    path = Path(path)
    try:
        with replacing(lasting=lasting) as files:
            for other, content in (beside or {}).items():
                files.write(other, content)
            if model_bytes(model) > (MOST_BYTES if most_bytes is None else most_bytes):
                light = _move_out(model, files.open(path.with_name(_name_data(path, "0" * DIGITS))))
                files.write(path, light.SerializeToString())
            else:
                file = files.open(path)
                for piece in model_pieces(model):
                    file.write(piece)
    finally:
        remove_stale_data(path)


def remove_stale_data(path: Path) -> list[Path]:
    """Remove the tensors of earlier models of this name, which a killed run may have left, and return these files.

    A file whose name any model of the folder holds stays, as does one that another run has written and still holds: its
    model has no name yet.
    """
    path = Path(path)
    pattern = re.compile(rf"{re.escape(_cut_name(path))}\.[0-9a-f]{{{DIGITS}}}\.data")
    removed = []
    with suppress(OSError):  # what cannot be read or removed stays
        entries = list(os.scandir(path.parent))
        models = {path, *(Path(entry.path) for entry in entries if entry.name.endswith(".onnx"))}
        for stale in [Path(entry.path) for entry in entries if pattern.fullmatch(entry.name)]:
            with claimed(stale) as free:
                if free and not any(_holds(each, os.fsencode(stale.name)) for each in models if each.is_file()):
                    stale.unlink(missing_ok=True)
                    removed.append(stale)
    return removed


def _holds(path: Path, name: bytes) -> bool:
    """Whether a file has these bytes; it is read piece by piece. Raises OSError."""
    end = b""
    with open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            if name in end + piece:
                return True
            end = (end + piece)[-len(name) :]
    return False


def _name_data(path: Path, digest: str) -> str:
    """The name of the file of a model's tensors."""
    return f"{_cut_name(path)}.{digest}.data"


def _cut_name(path: Path) -> str:
    """The name of a model, cut where it is long, as names of files have 255 bytes at most."""
    return os.fsdecode(os.fsencode(path.name)[:LONGEST_NAME])


def fingerprint(model: ModelProto) -> str:
    """SHA-256 of the graph and its weights, in hexadecimal; the same for one model however its file is laid out.

    That of a model whose weights lie in files is known from the first time on, while these files stay as they are.
    """
    if not has_outside(model):
        return _hash(model)
    files = sorted({find_place(tensor).file for tensor in model.graph.initializer if is_outside(tensor)})
    facts = [(file.stat().st_ino, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()]
    key = hashlib.sha256(model.SerializeToString(deterministic=True) + repr(facts).encode()).hexdigest()
    if key not in _fingerprints:
        if len(_fingerprints) >= MOST_FINGERPRINTS:
            _fingerprints.clear()
        _fingerprints[key] = _hash(model)
    return _fingerprints[key]


def _hash(model: ModelProto) -> str:
    digest = hashlib.sha256(copy_without_initializers(model).SerializeToString(deterministic=True))
    for tensor in model.graph.initializer:
        for piece in tensor_pieces(tensor):
            digest.update(piece)
    return digest.hexdigest()


def _move_out(model: ModelProto, data: Aside) -> ModelProto:
    """A copy of the model whose larger initializers are references into ``data``, to which it writes their bytes."""
    light, digest, position = copy_without_initializers(model), hashlib.sha256(), 0
    moved: list[tuple[TensorProto, int, int]] = []
    for tensor in model.graph.initializer:
        reference = light.graph.initializer.add()
        if tensor.data_type == TensorProto.STRING or held_bytes(tensor) < LEAST_EXTERNAL_BYTES:
            reference.CopyFrom(tensor)
            continue
        begin = position + -position % PAGE_BYTES
        for piece in chain((bytes(begin - position),), read_pieces(tensor)):
            data.write(piece)
            digest.update(piece)
            position += len(piece)
        moved.append((reference, begin, position - begin))
        reference.name, reference.data_type, reference.doc_string = tensor.name, tensor.data_type, tensor.doc_string
        reference.dims.extend(tensor.dims)
    data.target = data.target.with_name(data.target.name.replace("0" * DIGITS, digest.hexdigest()[:DIGITS]))
    for reference, offset, length in moved:
        reference.raw_data = b""
        set_external_data(reference, data.target.name, offset, length)
        reference.ClearField("raw_data")
    return light
