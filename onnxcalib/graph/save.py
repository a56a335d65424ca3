"""Write a model so that a failure leaves nothing behind: to a temporary file, which is then renamed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from onnx import ModelProto, TensorProto, numpy_helper
from onnx.external_data_helper import set_external_data

from ..errors import OutputError
from .weightless import copy_fields, copy_without_initializers, held_bytes

# A protobuf message holds no more than 2 GB, of which other fields than tensor data need some.
MOST_BYTES = 2**31 - 2**24
# Smaller tensors stay in the model, where shape inference needs them; onnx.save's own threshold.
LEAST_EXTERNAL_BYTES = 1024
# A memory page of common processors: tensors begin at one, so that readers can map the file into memory.
PAGE_BYTES = 4096


def save_model(model: ModelProto, path: Path, *, most_bytes: int = MOST_BYTES, lasting: bool = True) -> None:
    """Write the model to ``path``, and its tensors to ``path`` + ``.data`` if it is larger than ``most_bytes``.

    lasting: wait until the disk has the file. The model is left as it is. Any failure removes the temporary files;
    failures of the file system raise OutputError.
    """
    path = Path(path)
    data_path = path.with_name(path.name + ".data")
    temporary, temporary_data = _temporary(path), _temporary(data_path)
    try:
        if model_bytes(model) > most_bytes:
            with _opened(temporary_data, lasting) as file:
                model = _move_out(model, file, data_path.name)
        with _opened(temporary, lasting) as file:
            file.write(model.SerializeToString())
        if temporary_data.exists():
            os.replace(temporary_data, data_path)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); room and the right to write are needed;"
            " choose another output"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
        temporary_data.unlink(missing_ok=True)


def check_output(path: Path, *sources: Path) -> None:
    """Raise OutputError, before any work is done, for a path that cannot be written or that holds what a run reads.

    sources: the files and folders that the run reads; nothing in these folders is written either.
    """
    path = Path(path)
    if any(_is_same(path, Path(source)) for source in sources):
        raise OutputError(f"{path}: is read by this run; what is read is never overwritten; choose another output")
    for folder in map(Path, sources):
        if folder.is_dir() and folder.resolve() in path.resolve().parents:
            raise OutputError(
                f"{path}: lies in {folder}, which this run reads; that folder stays as it is; choose another"
            )
    if path.is_dir():
        raise OutputError(f"{path}: is a directory; a file name is needed; add one to it")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: is no regular file; it would be replaced; choose another output")
    folder = path.parent
    if not folder.exists():
        raise OutputError(f"{path}: the folder {folder} does not exist; an existing one is needed; make it first")
    if not folder.is_dir():
        raise OutputError(f"{path}: {folder} is no folder; an existing one is needed; choose another output")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: the folder {folder} is not writable; choose another output")


def model_bytes(model: ModelProto) -> int:
    """Size of the model as a file, its tensor data included, in bytes; works above the 2 GB of one message too."""
    bare = copy_without_initializers(model)
    tensors = sum(1 + _varint_bytes(size) + size for size in (_tensor_bytes(t) for t in model.graph.initializer))
    graph = int(bare.graph.ByteSize())
    return int(bare.ByteSize()) + tensors + _varint_bytes(graph + tensors) - _varint_bytes(graph)


def _tensor_bytes(tensor: TensorProto) -> int:
    """As ``ByteSize``, which takes three times the memory of the data."""
    if not tensor.HasField("raw_data"):
        return int(tensor.ByteSize())
    light = TensorProto()
    copy_fields(tensor, light, but="raw_data")
    data = len(tensor.raw_data)
    return int(light.ByteSize()) + 1 + _varint_bytes(data) + data


def _varint_bytes(length: int) -> int:
    """Number of bytes in which protobuf writes the length of a field."""
    return max(1, -(-length.bit_length() // 7))


def fingerprint(model: ModelProto) -> str:
    """SHA-256 of the graph and its weights, in hexadecimal; the same for one model however its file is laid out."""
    digest = hashlib.sha256(copy_without_initializers(model).SerializeToString(deterministic=True))
    for tensor in model.graph.initializer:
        digest.update(tensor.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _is_same(path: Path, source: Path) -> bool:
    try:
        return path.samefile(source)
    except OSError:
        return path.resolve() == source.resolve()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def _opened(path: Path, lasting: bool) -> Iterator[BinaryIO]:
    with open(path, "wb") as file:
        yield file
        file.flush()
        if lasting:
            os.fsync(file.fileno())  # a full disk raises here at the latest, and not after the rename


def _move_out(model: ModelProto, file: BinaryIO, location: str) -> ModelProto:
    """A copy of the model whose larger initializers are references into ``file``, to which it writes their bytes."""
    light = copy_without_initializers(model)
    for tensor in model.graph.initializer:
        reference = light.graph.initializer.add()
        if tensor.data_type == TensorProto.STRING or held_bytes(tensor) < LEAST_EXTERNAL_BYTES:
            reference.CopyFrom(tensor)
            continue
        raw = tensor.raw_data or numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
        file.write(b"\0" * (-file.tell() % PAGE_BYTES))
        reference.name, reference.data_type, reference.doc_string = tensor.name, tensor.data_type, tensor.doc_string
        reference.dims.extend(tensor.dims)
        reference.raw_data = b""
        set_external_data(reference, location, file.tell(), len(raw))
        reference.ClearField("raw_data")
        file.write(raw)
    return light


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: aside first, then renamed into place. Raises OutputError."""
    temporary = _temporary(path)
    try:
        if isinstance(content, str):
            content = content.encode("utf-8", errors="replace")  # file names may be no Unicode
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}; give another path") from None
    finally:
        temporary.unlink(missing_ok=True)
