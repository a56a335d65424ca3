import io
import os

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, TensorProto, helper

from onnxcalib.graph import wire
from onnxcalib.graph.wire import DEEPEST, NotAMessage, Walk

LARGE = b"\x3a\x80\x80\x80\x01"  # the key of a model's graph, and a length of 2 ** 21


def check(data):
    Walk(io.BytesIO(data)).check(ModelProto.DESCRIPTOR, len(data))


@pytest.fixture
def model(build, draw):
    return build("g (float[N, 4] x) => (float[N, 3] y) { [fc] y = MatMul (x, w) }", w=draw(4, 3))


def test_a_model_is_a_message(model):
    check(model.SerializeToString())
    check(b"")


def test_fields_of_all_wire_types_are_passed():
    check(b"\x08\x08" + b"\x31" + bytes(8) + b"\x35" + bytes(4) + b"\x12\x01a")


@pytest.mark.parametrize(
    "junk",
    [
        b"hello, this is text\n", b'{"a": 1}', bytes(50), b"\xff" * 50, b"\x08", b"\x08\x80", b"\x31\x00",
        b"\x12\x05ab", b"\x0b\x08\x00\x0c", b"\x4b", b"\x98\x06\x01",
    ],
    ids=["text", "JSON", "zeros", "ones", "no value", "half varint", "half number", "cut off", "group", "end", "new"],
)  # fmt: skip
def test_other_bytes_are_no_message(junk):
    with pytest.raises(NotAMessage):
        check(junk)


def test_random_bytes_are_no_message():
    for seed in range(50):
        with pytest.raises(NotAMessage):
            check(np.random.default_rng(seed).bytes(10_000))


@pytest.mark.parametrize("content", [bytes(2**21), b"\xff" * 2**21], ids=["zeros", "ones"])
def test_a_large_message_inside_is_walked_too(content):
    with pytest.raises(NotAMessage):
        check(LARGE + content)


def test_a_large_tensor_is_not_walked():
    tensor = TensorProto(raw_data=bytes(2**21))
    check(ModelProto(graph=GraphProto(initializer=[tensor])).SerializeToString())


def test_fields_of_a_newer_version_are_passed_inside(model):
    large = GraphProto(doc_string="a" * 2**21).SerializeToString() + b"\x98\x06\x01"
    check(b"\x3a" + _varint(len(large)) + large)


@pytest.mark.parametrize(
    ("limit", "field"), [("MOST_VALUES", b"\x08\x08"), ("MOST_MESSAGES", b"\x3a\x00")], ids=["values", "messages"]
)
def test_a_model_of_more_fields_than_any_is_refused(monkeypatch, limit, field):
    monkeypatch.setattr(wire, limit, 10)
    check(field * 10)
    with pytest.raises(NotAMessage):
        check(field * 11)


def test_many_numbers_of_an_attribute_are_no_messages(monkeypatch):
    monkeypatch.setattr(wire, "MOST_MESSAGES", 10)
    monkeypatch.setattr(wire, "LARGE_BYTES", 0)
    node = helper.make_node("Constant", [], ["c"], value_floats=[1.0] * 50)
    check(ModelProto(graph=GraphProto(node=[node])).SerializeToString())


def test_messages_that_are_nested_too_deep_are_refused(monkeypatch):
    monkeypatch.setattr(wire, "LARGE_BYTES", 0)
    data = b"\x08\x01"
    for depth in range(DEEPEST + 2):  # graph, node, attribute, graph, ...
        key = (b"\x3a", b"\x0a", b"\x2a", b"\x32")[0 if depth == DEEPEST + 1 else 1 + (DEEPEST - depth) % 3]
        data = key + _varint(len(data)) + data
    with pytest.raises(NotAMessage):
        check(data)


def test_a_file_of_zeros_is_refused_without_being_read(tmp_path):
    path = tmp_path / "zeros.onnx"
    with open(path, "wb") as file:
        os.truncate(file.fileno(), 2**40)
    with open(path, "rb") as file, pytest.raises(NotAMessage):
        Walk(file).check(ModelProto.DESCRIPTOR, 2**40)


def _varint(value):
    data = b""
    while value >= 128:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])
