"""Malformed samples and labels: arrays, archives, images, texts, ONNX test data, and tables of classes."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz.bases import INPUTS, LABEL_FILES, SAMPLES, SHAPE, SIDE, WORDS
from tests.fuzz.case import Case, Edit, edit
from tests.fuzz.edits import change_bytes, change_fields, change_json, several, spell

# What may stand in the header of an .npy file: text of a dictionary, and whether it can have a meaning.
HEADERS = {
    "{'descr': '<f4', 'fortran_order': True, 'shape': (4, 8), }": True,
    "{'descr': '>f4', 'fortran_order': False, 'shape': (4, 8), }": True,
    "{'descr': '<f2', 'fortran_order': False, 'shape': (8, 8), }": True,
    "{'descr': '|u1', 'fortran_order': False, 'shape': (16, 8), }": True,
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 8), }": True,
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 2, 4), }": False,
    "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 8), }": False,
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 0), }": False,
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 8), }": False,
    "{'descr': '<f4', 'fortran_order': False, 'shape': (32), }": False,
    "{'descr': '<f4', 'fortran_order': False, 'shape': (), }": False,
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 8), }": False,
    "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999, 8), }": False,
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 8), }": False,
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4.0, 8), }": False,
    "{'descr': '<f4', 'fortran_order': False, 'shape': 'many', }": False,
    "{'descr': '|O', 'fortran_order': False, 'shape': (4, 8), }": False,
    "{'descr': '<U8', 'fortran_order': False, 'shape': (4, 1), }": False,
    "{'descr': '<c8', 'fortran_order': False, 'shape': (2, 8), }": False,
    "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (2, 8), }": False,
    "{'descr': '|V4', 'fortran_order': False, 'shape': (4, 8), }": False,
    "{'descr': [('a', '<f4'), ('b', '<f4')], 'fortran_order': False, 'shape': (2, 8), }": False,
    "{'descr': 'nonsense', 'fortran_order': False, 'shape': (4, 8), }": False,
    "{'descr': '<f99', 'fortran_order': False, 'shape': (4, 8), }": False,
    "{'descr': 7, 'fortran_order': 7, 'shape': 7}": False,
    "{'shape': (4, 8), }": False,
    "[]": False,
    "": False,
    "{" * 300: False,
    "(" * 9_000: False,
    "__import__('os').getpid()": False,
    "\x00\xff\xfe": False,
}
VERSIONS = ((1, 0), (2, 0), (3, 0), (9, 9), (0, 0))
# Arrays that a file may hold: dtype, shape, value of all elements (None: normal deviates), whether it has a meaning.
ARRAYS: Sequence[tuple[str, tuple[int, ...], float | None, bool]] = (
    ("<f4", SHAPE, float("nan"), False),
    ("<f4", SHAPE, float("inf"), False),
    ("<f8", SHAPE, 1e300, False),
    ("<f4", SHAPE, 3.4e38, True),
    ("<f4", SHAPE, 0.0, True),
    ("<f4", SHAPE, 1e-45, True),
    ("<f8", SHAPE, None, True),
    ("<f2", SHAPE, None, True),
    ("|b1", SHAPE, 1, True),
    ("<i8", SHAPE, 2**62, True),
    ("<f4", (1, INPUTS), None, True),
    ("<f4", (0, INPUTS), None, False),
    ("<f4", (SAMPLES, 0), None, False),
    ("<f4", (SAMPLES, INPUTS + 1), None, False),
    ("<f4", (SAMPLES,), None, False),
    ("<f4", (), None, False),
    ("<f4", (1,) * 32, None, False),
    ("<c16", SHAPE, None, False),
    ("<U3", SHAPE, None, False),
    ("|S3", SHAPE, None, False),
    ("|O", SHAPE, None, False),
    ("<M8[D]", SHAPE, 1, False),
    ("<i8", (SAMPLES,), -1, False),
    ("<f4", (SAMPLES,), 0.5, False),
    ("<i8", (SAMPLES,), 2**62, True),
    ("<i8", (SAMPLES, 1), 1, True),
    ("<i8", (SAMPLES + 1,), 1, True),
)
MEMBERS = (
    "x.npy",
    "y.npy",
    "labels.npy",
    "x",
    "../x.npy",
    "/x.npy",
    "x.npy/",
    "",
    "a\nb.npy",
    "~long.npy",
    "ä.npy",
)
ENTRY, DIRECTORY, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
PIXELS = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4, "P": 1, "1": 1, "I;16": 1, "I": 1, "F": 1, "LA": 2, "YCbCr": 3}
SIZES = ((SIDE, SIDE), (1, 1), (1, 5000), (SIDE, SIDE + 1), (500, 300))
CHUNKS = (b"zTXt", b"iCCP", b"tEXt", b"eXIf", b"PLTE", b"tRNS", b"IDAT", b"acTL", b"IEND", b"\x1b[3m")
CONTENTS = (
    "",
    " ",
    "\n",
    "\n" * 500,
    "\0",
    "a\0b\n",
    "\ufeff",
    "\ufefftext\nwe see",
    '"',
    '"""',
    'id,text\n1,"open',
    "id;text\n1;we",
    "id,text\n1\n2,we,more\n",
    "text\n" * 4,
    "text,text\nwe,see\n",
    "id\n1\n2\n",
    ",\n,\n",
    "id,text\r1,we\r",
    "id,text\n1,~long",
    '{"text": 1}\n',
    '{"text": null}\n',
    '{"text": ["we"]}\n',
    "[1]\n",
    "1\n",
    "null\n",
    '{"text": "we"',
    '{"text": "\\ud800"}\n',
    '{"other": "we"}\n',
    '{"text": "we", "text": "see"}\n',
    '{"text": NaN}\n',
    "~deep list",
    "~deep table",
    "\x1b[31mwe\n",
    "~long",
    "we\u2028see\x85you",
    "id\ttext\n1\twe\n",
    "99999999999999999999\n",
    "0\n1\n2\n3\n",
    "0.png,0\n",
    "0.png,0\n0.png,1\n",
    "9.png,1\n",
    "0.png,-1\n1.jpg,0\n2.bmp,0\n3.webp,0\n",
    "0.png,1e400\n",
    "0.png,99999999999999999999\n1.jpg,0\n2.bmp,0\n3.webp,0\n",
    "file,class\n",
    "0.png,nan\n1.jpg,0\n2.bmp,0\n3.webp,0\n",
    "../images/0.png,0\n",
    "0.png\n",
    "0.png,0,0\n1.jpg,0,0\n",
    "\x00,\x00\n",
)


@edit
def npy_header(path: Path, text: str, major: int, minor: int) -> None:
    """Put another header in front of an .npy file's data."""
    data = path.read_bytes()
    start = 10 + struct.unpack("<H", data[8:10])[0]
    size = struct.pack("<H" if major < 2 else "<I", len(text))
    path.write_bytes(b"\x93NUMPY" + bytes([major, minor]) + size + text.encode("latin-1") + data[start:])


@edit
def npy_array(path: Path, number: int) -> None:
    """Put one of ARRAYS in place of a file."""
    np.save(path, _make_array(number), allow_pickle=True)


def _make_array(number: int) -> np.ndarray:
    dtype, shape, value, _ = ARRAYS[number]
    normal = np.random.default_rng(0).normal(size=shape)
    return (normal if value is None else np.full(shape, value)).astype(dtype)


@edit
def npy_value(path: Path, site: int, value: float) -> None:
    """Put a value in one place of an array."""
    array = np.load(path)
    array.flat[site % array.size] = value
    np.save(path, array)


@edit
def zip_member(path: Path, name: str, number: int, method: int) -> None:
    """Add an array of ARRAYS to an archive, or with a number below zero some megabytes that shrink to nothing."""
    file = io.BytesIO()
    np.save(file, _make_array(number) if number >= 0 else np.zeros((1 << 20, -number), np.float32), allow_pickle=True)
    name = spell(name)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings(action="ignore"):  # a name that is there
        archive.writestr(zipfile.ZipInfo(name), file.getvalue(), compress_type=method)


@edit
def zip_field(path: Path, kind: str, which: int, offset: int, size: int, value: int) -> None:
    """Set a number in an entry, in the directory or in the end of an archive."""
    data = bytearray(path.read_bytes())
    start = -1
    for _ in range(which + 1):
        found = data.find({"entry": ENTRY, "directory": DIRECTORY, "end": END}[kind], start + 1)
        start = found if found >= 0 else start
    if start >= 0:
        data[start + offset : start + offset + size] = (value % 256**size).to_bytes(size, "little")
    path.write_bytes(data)


@edit
def png_header(path: Path, width: int, height: int, depth: int, colour: int, interlaced: int) -> None:
    """Put another IHDR, with a right checksum, into a PNG file."""
    data = path.read_bytes()
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])


@edit
def png_chunk(path: Path, kind: str, size: int) -> None:
    """Insert a chunk of zeros, which are compressed where the chunk's kind says so, behind a PNG's header."""
    body = b"x\0\0" + zlib.compress(b"\0" * size) if kind in ("zTXt", "iCCP") else b"\0" * size
    chunk = kind.encode("latin-1") + body
    data = path.read_bytes()
    path.write_bytes(
        data[:33] + struct.pack(">I", len(body)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    )


@edit
def jpeg_size(path: Path, width: int, height: int) -> None:
    """Set the size in a JPEG's header."""
    data = bytearray(path.read_bytes())
    at = data.find(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    path.write_bytes(data)


@edit
def save_image(path: Path, mode: str, size: Sequence[int], form: str) -> None:
    """Put a black image of any mode and format in place of a file."""
    image = Image.new(mode, tuple(size))
    try:
        image.save(path, format=form)
    except (OSError, ValueError, KeyError):  # a format without this mode
        image.convert("L").save(path, format="PNG")


def _build(generator: str, base: str, refused: bool, *edits: Edit) -> Case:
    return Case(generator, base, edits, refused=refused)


def _put_array(number: int, file: str) -> Case:
    base = "mlp" if file == "mlp.npy" else "folder"
    _, shape, _, meaningful = ARRAYS[number]
    refused = base == "mlp" and not (meaningful and shape[1:] == (INPUTS,))
    return _build("arrays", base, refused, Edit("npy_array", file, (number,)))


def _arrays() -> st.SearchStrategy[Case]:
    header = st.builds(
        lambda text, version, wrong: _build(
            "arrays",
            "mlp",
            not HEADERS[text] or version[0] in (0, 9),
            Edit("npy_header", "mlp.npy", (text, *version)),
        ),
        st.sampled_from(sorted(HEADERS)),
        st.sampled_from(VERSIONS),
        st.booleans(),
    )
    files = st.sampled_from(("mlp.npy", "mlp.npy", "arrays/0.npy", "arrays/2.npy", "arrays/9.npy"))
    whole = st.builds(_put_array, st.integers(0, len(ARRAYS) - 1), files)
    value = st.builds(
        lambda site, value, base: _build(
            "arrays", base, not np.isfinite(value), Edit("npy_value", "mlp.npy", (site, value))
        ),
        st.integers(0, 31),
        st.sampled_from((float("nan"), float("inf"), 1e38, -1e30)),
        st.sampled_from(("mlp", "validate", "calibrate")),
    )
    raw = st.builds(
        lambda edits, base: _build("arrays", base, False, *edits),
        several(change_bytes("mlp.npy"), 2),
        st.sampled_from(("mlp", "plan", "validate")),
    )
    return st.one_of(header, header, whole, whole, value, raw)


def _archives() -> st.SearchStrategy[Case]:
    field = st.tuples(
        st.sampled_from(("entry", "directory", "end")),
        st.integers(0, 1),
        st.integers(4, 45),
        st.sampled_from((1, 2, 4)),
        st.sampled_from((0, 1, 2, 8, 12, 93, 99, 255, 65535, 2**31, 2**32 - 1)),
    )
    member = st.tuples(st.sampled_from(MEMBERS), st.integers(-8, len(ARRAYS) - 1), st.sampled_from((0, 8, 12, 14)))
    change = st.one_of(
        st.builds(Edit, st.just("zip_field"), st.just("mlp.npz"), field),
        st.builds(Edit, st.just("zip_member"), st.just("mlp.npz"), member),
        change_bytes("mlp.npz"),
    )
    return _several("archives", "npz", change)


def _tokens() -> st.SearchStrategy[Case]:
    """Arrays of tokens that no table holds, or that are none."""
    file = st.sampled_from(("ids/input_ids.npy", "ids/attention_mask.npy"))
    value = st.tuples(st.integers(0, 31), st.sampled_from((-1, WORDS, 2**31, -(2**63), 2**63 - 1)))
    change = st.one_of(
        st.builds(Edit, st.just("npy_value"), file, value),
        st.builds(Edit, st.just("npy_array"), file, st.tuples(st.integers(0, len(ARRAYS) - 1))),
        file.flatmap(change_bytes),
    )
    return _several("tokens", "ids", change)


def _images() -> st.SearchStrategy[Case]:
    names = st.sampled_from(("0.png", "1.jpg", "2.bmp", "3.webp", "4.png"))
    sizes = st.sampled_from((0, 1, 8, 9, 255, 65535, 20_000, 2**31 - 1, 2**31, 2**32 - 1))
    depths, colours = st.sampled_from((0, 1, 8, 16, 99)), st.sampled_from((0, 2, 3, 4, 6, 7))
    header = st.tuples(sizes, sizes, depths, colours, st.sampled_from((0, 1, 9)))
    chunk = st.tuples(
        st.sampled_from([kind.decode("latin-1") for kind in CHUNKS]), st.sampled_from((0, 1, 99, 10**6, 10**8))
    )
    odd = st.tuples(
        st.sampled_from(sorted(PIXELS)), st.sampled_from(SIZES), st.sampled_from(("PNG", "GIF", "TIFF", "BMP", "JPEG"))
    )
    paths = names.map(lambda name: f"images/{name}")
    change = st.one_of(
        st.builds(Edit, st.just("png_header"), st.just("images/0.png"), header),
        st.builds(Edit, st.just("png_chunk"), st.just("images/0.png"), chunk),
        st.builds(
            Edit,
            st.just("jpeg_size"),
            st.just("images/1.jpg"),
            st.tuples(sizes, sizes).map(lambda s: (s[0] % 2**16, s[1] % 2**16)),
        ),
        st.builds(Edit, st.just("save_image"), paths, odd),
        st.sampled_from(("0.png", "1.jpg", "2.bmp", "3.webp")).flatmap(lambda name: change_bytes(f"images/{name}")),
    )
    return _several("images", "images", change)


def _texts() -> st.SearchStrategy[Case]:
    def make(base: str, file: str) -> st.SearchStrategy[Case]:
        texts = st.one_of(st.sampled_from(CONTENTS), st.text(max_size=30))
        change = st.one_of(st.builds(Edit, st.just("write"), st.just(file), st.tuples(texts)), change_bytes(file))
        return _several("texts", base, change)

    return st.sampled_from((("encoder", "texts.txt"), ("csv", "texts.csv"), ("jsonl", "texts.jsonl"))).flatmap(
        lambda each: make(*each)
    )


def _test_data() -> st.SearchStrategy[Case]:
    file = st.sampled_from([f"testdata/test_data_set_{i}/input_0.pb" for i in (0, 1, 3)])
    change = file.flatmap(lambda name: st.one_of(change_fields(name, "TensorProto"), change_bytes(name)))
    return _several("test data", "tests", change)


def _labels() -> st.SearchStrategy[Case]:
    contents = st.one_of(st.sampled_from(CONTENTS), st.text(max_size=30))

    def make(file: str) -> st.SearchStrategy[Case]:
        changes = [change_bytes(file)]
        if file in ("labels.csv", "labels.txt", "labels.json"):
            changes.append(st.builds(Edit, st.just("write"), st.just(file), st.tuples(contents)))
        if file == "labels.json":
            changes += [change_json(file), change_json(file)]
        if file == "labels.npy":
            changes.append(
                st.builds(Edit, st.just("npy_array"), st.just(file), st.tuples(st.integers(0, len(ARRAYS) - 1)))
            )
        return _several("labels", f"validate {file}", st.one_of(changes))

    return st.sampled_from(LABEL_FILES).flatmap(make)


def _several(generator: str, base: str, change: st.SearchStrategy[Edit]) -> st.SearchStrategy[Case]:
    return st.builds(lambda edits: _build(generator, base, False, *edits), several(change, 2))


GENERATORS: dict[str, st.SearchStrategy[Case]] = {
    "arrays": _arrays(),
    "archives": _archives(),
    "tokens": _tokens(),
    "images": _images(),
    "texts": _texts(),
    "test data": _test_data(),
    "labels": _labels(),
}
