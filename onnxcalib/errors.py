"""Faults that a user can mend, as exceptions and a warning whose messages can be shown as they are.

Messages read ``where: what was found; what is allowed; what to do``.
"""

from __future__ import annotations

import re
from reprlib import Repr

# Characters that change how a terminal or a page shows the text around them: C0, DEL and C1, bidirectional embeddings,
# overrides and isolates, separators of lines and paragraphs. Lone surrogates cannot be written at all.
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHOWN = Repr()
_SHOWN.maxstring = _SHOWN.maxother = 200
_SHOWN.maxlong = 60


class OnnxCalibError(Exception):
    """A fault that the caller can mend; its message is one line."""


class ModelError(OnnxCalibError):
    """The model file or graph cannot be used."""


class DataError(OnnxCalibError):
    """The samples or their labels cannot be used, or do not fit the model."""


class ConfigError(OnnxCalibError):
    """A setting is unknown, ill-typed or contradicts another."""


class GateError(ConfigError):
    """A gate, a metric or labels do not fit the outputs of the models."""


class DeviceMemoryError(OnnxCalibError):
    """The device on which torch computes has too little memory."""


class OutputError(OnnxCalibError):
    """The result cannot be written where it was asked for."""


class OnnxCalibWarning(UserWarning):
    """The work goes on, but the user should do what the text says."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where there is no text.

    Parsers call what they cannot read unexpected, which users read as a fault of ours.
    """
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    return re.sub("unexpected", lambda word: "Invalid" if word[0][0] == "U" else "invalid", line, flags=re.IGNORECASE)


def escape_controls(text: str) -> str:
    r"""Text of a file as it can be printed: control characters become visible escapes.

    >>> print(escape_controls("Conv\x1b[2J"))
    Conv\x1b[2J
    """
    return CONTROLS.sub(lambda found: _escape(ord(found[0])), text)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def spell_value(value: object) -> str:
    """A value that a user gave, as messages show it: in one line, and shortened where it is long."""
    try:
        return " ".join(_SHOWN.repr(value).splitlines())
    except ValueError:  # an integer of more digits than Python spells
        return f"a value of type {type(value).__name__} that is too long to be shown"
