"""What a user can do wrong, as exceptions whose text can be shown as it is.

Messages read ``where: what was found; what is allowed; what to do``.
"""


class OnnxCalibError(Exception):
    """A fault that the caller can mend; its text is one clear line."""


class ModelError(OnnxCalibError):
    """The model file or graph cannot be used."""


class DataError(OnnxCalibError):
    """The samples or their labels cannot be used, or do not fit the model."""


class ConfigError(OnnxCalibError):
    """A setting is unknown, ill-typed or contradicts another."""


class GateError(ConfigError):
    """A gate, a metric or labels do not fit what the models give."""


class OutputError(OnnxCalibError):
    """The result cannot be written where it was asked for."""
