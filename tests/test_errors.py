"""Text and values of users in messages: in one line, without characters that change what is seen."""

from __future__ import annotations

import pytest

from onnxcalib.errors import escape_controls, spell_value


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Conv é 漢 \U0001f600 a-b", "Conv é 漢 \U0001f600 a-b"), ("\x1b[2J\a", r"\x1b[2J\x07"),
        ("a\r\n\tb\0", r"a\x0d\x0a\x09b\x00"), ("\x7f\x80\x9f\xa0", "\\x7f\\x80\\x9f\xa0"),
        ("\u2028\u2029\u202a\u202e\u2066\u2069", r"\u2028\u2029\u202a\u202e\u2066\u2069"),
        ("\ud800\udfff", r"\ud800\udfff"),
    ],
)  # fmt: skip
def test_controls_become_visible_and_other_text_stays(text, shown):
    assert escape_controls(text) == shown
    assert escape_controls(shown) == shown


def deep(levels):
    found: list = []
    for _ in range(levels):
        found = [found]
    return found


class Loud:
    def __repr__(self):
        return "one\ntwo"


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, 16**5000, {"a": 16**5000}, deep(20_000), [0] * 10**6, Loud(), b"\0\n"],
    ids=lambda value: type(value).__name__,
)
def test_any_value_is_shown_in_one_short_line(value):
    shown = spell_value(value)
    assert len(shown) < 500 and len(shown.splitlines()) == 1


@pytest.mark.parametrize("value", [8, -1.5, "a'b\n", None, True, ["stem"], {"a": 1}, (1, 2)])
def test_short_values_are_shown_as_python_writes_them(value):
    assert spell_value(value) == repr(value)
