"""Faults that a user can mend, as exceptions and a warning whose messages can be shown as they are.

Messages read ``where: what was found; what is allowed; what to do``.
"""

import re

# Control characters (C0, DEL, C1), line and paragraph separators, bidirectional overrides, lone surrogates.
_CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


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


def escape_controls(text: str) -> str:
    """The text with characters that would move the cursor or reorder what is read as escapes, but for line breaks."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def first_line(error: Exception) -> str:
    """The first line of an exception's text, or its type where there is no text."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
