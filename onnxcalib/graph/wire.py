"""Whether a file can be a protobuf message, told from its fields: in milliseconds, and without reading it whole.

A message is a sequence of fields. Each begins with a varint, ``number << 3 | wire type``. Then follow a varint (type
0), 8 bytes (1), a varint with a length and as many bytes (2), or 4 bytes (5). ONNX has no others. Source:
protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from typing import BinaryIO

from google.protobuf.descriptor import Descriptor

VARINT, LENGTH = 0, 2
FIXED_BYTES = {1: 8, 5: 4}
# The longest varint has 64 bits, 7 in each byte. A byte of 128 or more has a successor.
VARINT_BYTES, MORE = 10, 128
# Messages inside of messages are walked too if they are larger. What is smaller costs nothing to read.
LARGE_BYTES = 2**20
# protobuf reads no deeper.
DEEPEST = 100
# Fields of all messages that are walked. A graph has one for each node, weight and recorded shape, some 10,000.
MOST_FIELDS = 2**19


class NotAMessage(Exception):
    """The bytes of a file are no message."""


class Walk:
    """One pass over an open file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.count = file, 0

    def check(self, kind: Descriptor, end: int, depth: int = 0) -> None:
        """Raise NotAMessage unless the bytes from here to ``end`` are fields of this kind of message.

        The outermost fields must be known. Inner ones may be those of a newer version.
        """
        while self.file.tell() < end:
            number, wire = divmod(self._varint(), 8)
            field = kind.fields_by_number.get(number)
            self.count += 1
            if number < 1 or (field is None and depth == 0) or wire not in (VARINT, LENGTH, *FIXED_BYTES):
                raise NotAMessage
            size = FIXED_BYTES.get(wire) or self._varint()
            after = self.file.tell() + (0 if wire == VARINT else size)
            if after > end or self.count > MOST_FIELDS or depth > DEEPEST:
                raise NotAMessage
            if field is not None and field.message_type is not None and wire == LENGTH and size > LARGE_BYTES:
                self.check(field.message_type, after, depth + 1)
            self.file.seek(after)

    def _varint(self) -> int:
        start = self.file.tell()
        value = 0
        for position, byte in enumerate(self.file.read(VARINT_BYTES)):
            value |= (byte & MORE - 1) << 7 * position
            if byte < MORE:
                self.file.seek(start + position + 1)
                return value
        raise NotAMessage
