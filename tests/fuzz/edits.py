"""Changes of files: of their bytes, of the fields of a protobuf message, of the values of JSON, of what a path is."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import Message
from hypothesis import strategies as st

from tests.fuzz.case import Edit, edit

LONG, DEEP = 5_000, 20_000
# Values of numbers that formats hold, and few programs expect.
INTEGERS = (0, 1, -1, 2, 7, 99, 255, 2**15, 2**31 - 1, -(2**31), 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63), 2**64)
FLOATS = (0.0, -0.0, -1.0, 0.5, 1e-45, 1e38, -1e38, 1e308, float("nan"), float("inf"), float("-inf"))
# Texts of "~" and a name stand for long ones, so that saved cases are small.
TEXTS = (
    "",
    " ",
    "x",
    "-",
    "~long",
    "\x1b[31mred",
    "a\nb",
    "a\0b",
    "../outside",
    "/",
    ".",
    "ä漢",
    "nan",
    "%s",
    "[bold]",
    "y",
)
STRANGE = {
    "~long text": '"' + "x" * LONG + '"',
    "~long": "x" * LONG,
    "~digits": "1" * LONG,
    "~deep list": "[" * DEEP + "]" * DEEP,
    "~deep table": '{"a":' * DEEP + "1" + "}" * DEEP,
}
# Values as JSON and TOML write them.
VALUES = (
    *("null", "true", "false", "0", "-1", "1", "1.5", "2147483648", "18446744073709551616", "1e400", "-1e400", "1e38"),
    *("NaN", "nan", "Infinity", "inf", "~digits", '""', '"x"', '"nan"', '"1"', '"a\\u0000b"', '"\\u001b[31mred"'),
    *("[1e400, 0]", '"float"'),
    *('"\\n"', '"\\ud800"', '"../x"', '"W4A4"', "~long text", "[]", "[[]]", "[0]", "[1, 2]", '["x"]', "{}", '{"a": 1}'),
    *("~deep list", "~deep table", "1979-05-27", "'''x'''", "0x10", "1_000", "01", "}", '"ä漢"', "'/etc'"),
)  # fmt: skip


def spell(text: str) -> str:
    """The text with long parts in place of their names."""
    for name, part in STRANGE.items():
        text = text.replace(name, part)
    return text


@edit
def flip(path: Path, offset: int, mask: int) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[offset % len(data)] ^= mask
    path.write_bytes(data)


@edit
def truncate(path: Path, size: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: size % (len(data) + 1)])


@edit
def insert(path: Path, offset: int, text: str) -> None:
    """Insert the bytes of a text of latin-1."""
    data = path.read_bytes()
    at = offset % (len(data) + 1)
    path.write_bytes(data[:at] + spell(text).encode("latin-1") + data[at:])


@edit
def splice(path: Path, source: int, target: int, size: int) -> None:
    """Copy a piece of the file over another."""
    data = bytearray(path.read_bytes())
    piece = data[source % (len(data) + 1) :][:size]
    at = target % (len(data) + 1)
    data[at : at + size] = piece
    path.write_bytes(data)


@edit
def write(path: Path, text: str) -> None:
    """Replace the file by a text, of which characters below 256 are bytes."""
    path.write_text(spell(text), encoding="utf-8", errors="surrogatepass", newline="")


@edit
def write_bytes(path: Path, hexadecimal: str) -> None:
    path.write_bytes(bytes.fromhex(hexadecimal))


@edit
def pad(path: Path, size: int) -> None:
    """Append zeros, as a hole in the file."""
    os.truncate(path, path.stat().st_size + size)


def several(change: st.SearchStrategy[Edit], most: int) -> st.SearchStrategy[tuple[Edit, ...]]:
    """One change or more, none of them twice, as two that are alike may undo each other."""
    return st.lists(change, min_size=1, max_size=most, unique_by=repr).map(tuple)


def change_bytes(file: str) -> st.SearchStrategy[Edit]:
    offsets, masks = st.integers(0, 2**16), st.integers(1, 255)
    texts = st.sampled_from(
        ("\0", "\xff" * 8, "\x00" * 64, "\n", "x" * 99, "\x1b[31m", "\x7f\xff\xff\xff", "PK\x05\x06", "~long")
    )
    sizes = st.sampled_from((1, 4, 16, 64, 999))
    pairs = st.tuples(offsets, offsets, sizes).filter(lambda each: each[0] != each[1])
    return st.one_of(
        st.builds(Edit, st.just("flip"), st.just(file), st.tuples(offsets, masks)),
        st.builds(Edit, st.just("truncate"), st.just(file), st.tuples(offsets)),
        st.builds(Edit, st.just("insert"), st.just(file), st.tuples(offsets, texts)),
        st.builds(Edit, st.just("splice"), st.just(file), pairs),
    )


def list_sites(message: Message, *, unset: bool) -> Iterator[tuple[Message, Any, int | None]]:
    """(message, field, element or None) of all fields below a message; ``unset``: single fields without a value too."""
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        inner = field.message_type is not None
        if field.is_repeated:
            for i in range(len(value)):
                yield message, field, i
                if inner:
                    yield from list_sites(value[i], unset=unset)
        elif message.HasField(field.name) or (unset and not inner):
            yield message, field, None
            if inner:
                yield from list_sites(value, unset=unset)


@edit
def set_field(path: Path, kind: str, site: int, choice: int, unset: bool) -> None:
    """Give a field of a message, which is no message itself, another value of its type."""
    message = _read(path, kind)
    sites = [each for each in list_sites(message, unset=unset) if each[1].message_type is None]
    if sites:
        owner, field, element = sites[site % len(sites)]
        values = _values_of(field, message)
        for value in (*values[choice % len(values) :], 0):  # fields of 32 bits refuse some
            try:
                if element is None:
                    setattr(owner, field.name, value)
                else:
                    getattr(owner, field.name)[element] = value
                break
            except (ValueError, TypeError):
                continue
    path.write_bytes(message.SerializeToString())


def _values_of(field: Any, message: Message) -> list[Any]:
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return list(FLOATS)
    if field.cpp_type == field.CPPTYPE_ENUM:
        return [value.number for value in field.enum_type.values]
    if field.cpp_type != field.CPPTYPE_STRING:
        return list(INTEGERS)
    if field.type == field.TYPE_BYTES:
        return [b"", b"x", b"\xff" * 16, b"y", b"\0" * 4096]
    names = [
        getattr(owner, f.name) for owner, f, i in list_sites(message, unset=False) if f.name == "op_type" and i is None
    ]
    return [*map(spell, TEXTS), *sorted(set(names)), "w1", "h", "r", "Loop", "Einsum", "NonZero"]


@edit
def reshape_field(path: Path, kind: str, site: int, how: str) -> None:
    """Drop, double or move to the front an element of a repeated field, or clear a single one."""
    message = _read(path, kind)
    sites = [each for each in list_sites(message, unset=False) if each[0] is not message or each[2] is not None]
    if sites:
        owner, field, element = sites[site % len(sites)]
        if element is None:
            owner.ClearField(field.name)
        else:
            values = getattr(owner, field.name)
            one = values[element]
            rest = [*values[:element], *values[element + 1 :]]
            changed = {"drop": rest, "double": [*values, one], "front": [one, *rest]}[how]
            copies = [_copy(each) for each in changed]
            owner.ClearField(field.name)
            getattr(owner, field.name).extend(copies)
    path.write_bytes(message.SerializeToString())


def _read(path: Path, kind: str) -> Message:
    message: Message = getattr(onnx, kind)()
    message.ParseFromString(path.read_bytes())
    return message


def _copy(value: Any) -> Any:
    if not isinstance(value, Message):
        return value
    copy = type(value)()
    copy.CopyFrom(value)
    return copy


def change_fields(file: str, kind: str) -> st.SearchStrategy[Edit]:
    sites, choices = st.integers(0, 999), st.integers(0, 99)
    hows = st.sampled_from(("drop", "double", "front"))
    sets = st.tuples(st.just(kind), sites, choices, st.sampled_from((False, False, True)))
    return st.one_of(
        st.builds(Edit, st.just("set_field"), st.just(file), sets),
        st.builds(Edit, st.just("reshape_field"), st.just(file), st.tuples(st.just(kind), sites, hows)),
    )


@edit
def set_json(path: Path, site: int, text: str) -> None:
    """Put text in place of a value of a JSON file, at any depth."""
    holder, marker = [json.loads(path.read_text())], "@here@"
    sites = list(_list_values(holder))
    owner, key = sites[site % len(sites)]
    owner[key] = marker
    path.write_text(json.dumps(holder[0]).replace(f'"{marker}"', spell(text)))


@edit
def rename_json(path: Path, site: int, name: str | None) -> None:
    """Rename a key of a JSON file at any depth, or drop it."""
    data = json.loads(path.read_text())
    sites = [(owner, key) for owner, key in _list_values([data]) if isinstance(owner, dict)]
    owner, key = sites[site % len(sites)]
    value = owner.pop(key)
    if name is not None:
        owner[spell(name)] = value
    path.write_text(json.dumps(data))


def _list_values(owner: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(owner) if isinstance(owner, dict) else range(len(owner)):
        yield owner, key
        if isinstance(owner[key], (dict, list)):
            yield from _list_values(owner[key])


def change_json(file: str) -> st.SearchStrategy[Edit]:
    sites, names = st.integers(0, 199), st.sampled_from((None, *TEXTS))
    return st.one_of(
        st.builds(Edit, st.just("set_json"), st.just(file), st.tuples(sites, st.sampled_from(VALUES))),
        st.builds(Edit, st.just("rename_json"), st.just(file), st.tuples(sites, names)),
    )


@edit
def become(path: Path, kind: str) -> None:
    """Put something that is no regular file in place of a file or folder, or nothing."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            here = os.open(path.parent, os.O_RDONLY)
            one.bind(f"/proc/self/fd/{here}/{path.name}")  # names of sockets are short
            os.close(here)
    elif kind == "folder":
        path.mkdir()
    elif kind != "nothing":
        targets = {
            "loop": path.name,
            "zeros": "/dev/zero",
            "null": "/dev/null",
            "dangling": "nowhere",
            "memory": "/proc/self/mem",
        }
        path.symlink_to(targets[kind])


@edit
def link(path: Path, target: str, hard: bool) -> None:
    """A new link to another file of the case."""
    if hard:
        os.link(path.parent / target, path)
    else:
        path.symlink_to(target)


@edit
def allow(path: Path, mode: int) -> None:
    path.chmod(mode)


@edit
def move(path: Path, name: str) -> None:
    path.rename(path.parent / spell(name))


@edit
def nest(path: Path, depth: int) -> None:
    """Folders in one another, below a folder that may not be there yet."""
    (path / "/".join("d" * depth)).mkdir(parents=True)
