"""Whether a file can be a protobuf message, told from its fields: in milliseconds, and without reading it whole.

A message is a sequence of fields. Each begins with a varint, ``number << 3 | wire type``. Then follow a varint (type
0), 8 bytes (1), a varint with a length and as many bytes (2), or 4 bytes (5). ONNX has no others. Source:
protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from google.protobuf.descriptor import Descriptor

VARINT, LENGTH = 0, 2
FIXED_BYTES = {1: 8, 5: 4}
# The longest varint has 64 bits, 7 in each byte. A byte of 128 or more has a successor.
VARINT_BYTES, MORE = 10, 128
# Messages inside of messages are walked too if they are larger. What is smaller costs nothing to read.
LARGE_BYTES = 2**20
# protobuf reads no deeper.
DEEPEST = 100
# Messages inside of those that are walked: a graph has one for each node, weight and recorded shape, some 10,000. Each
# takes 100 bytes of memory and more, however short it is in the file.
MOST_MESSAGES = 2**19
# Numbers and texts beside them: a list of numbers in an attribute, or a tensor of texts, has a field for each.
MOST_VALUES = 2**22


class NotAMessage(Exception):
    """The bytes of a file are no message."""


class Walk:
    """One pass over an open file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.messages, self.values = file, 0, 0

    def check(self, kind: Descriptor, end: int, depth: int = 0) -> None:
        """Raise NotAMessage unless the bytes from here to ``end`` are fields of this kind of message.

        The outermost fields must be known. Inner ones may be those of a newer version.
        """
        while self.file.tell() < end:
            number, wire = divmod(self.varint(), 8)
            field = kind.fields_by_number.get(number)
            is_message = field is not None and field.message_type is not None
            self.messages, self.values = self.messages + is_message, self.values + (not is_message)
            if number < 1 or (field is None and depth == 0) or wire not in (VARINT, LENGTH, *FIXED_BYTES):
                raise NotAMessage
            size = FIXED_BYTES.get(wire) or self.varint()
            after = self.file.tell() + (0 if wire == VARINT else size)
            if after > end or self.messages > MOST_MESSAGES or self.values > MOST_VALUES or depth > DEEPEST:
                raise NotAMessage
            if is_message and wire == LENGTH and size > LARGE_BYTES:
                self.check(field.message_type, after, depth + 1)
            self.file.seek(after)

    def varint(self) -> int:
        start = self.file.tell()
        value = 0
        for position, byte in enumerate(self.file.read(VARINT_BYTES)):
            value |= (byte & MORE - 1) << 7 * position
            if byte < MORE:
                self.file.seek(start + position + 1)
                return value
        raise NotAMessage


class Field(NamedTuple):
    """A field of a message in a file: its number, and where it, its value and what follows begin."""

    number: int
    wire: int
    start: int
    value: int
    end: int


def list_fields(file: BinaryIO, end: int) -> Iterator[Field]:
    """The fields from here to ``end`` of a message that has been checked; the file stands behind them all after it."""
    walk = Walk(file)
    while (start := file.tell()) < end:
        number, wire = divmod(walk.varint(), 8)
        size = FIXED_BYTES.get(wire) or walk.varint()
        value = file.tell()
        after = value + (0 if wire == VARINT else size)
        yield Field(number, wire, start, value, after)
        file.seek(after)
