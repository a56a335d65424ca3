"""The settings of a run: names, types, defaults and allowed values, from Python, a TOML file or the command line.

The pydantic fields are the only source: the options of the command line and the reference are made from them.
"""

from ..spec import FLOAT_BITS
from .candidates import ALONE, CANDIDATES, CandidateName
from .data import AUDIO_SETTINGS, HOLD_OUT_FROM, IMAGE_SETTINGS, TEXT_SETTINGS, UNIT, DataConfig
from .describe import Setting, list_settings
from .effort import EFFORTS, Effort
from .expressions import match_whole
from .fields import EASILY_CONFUSED, EFFORT, EXPERT, GATES, PANELS, PLAN, REPORTS, find_nearest, nearest, spell_allowed
from .layer import COLUMN, LayerConfig
from .load import load_config, read_toml
from .quantize import (
    BUDGETS,
    COSTS,
    EXECUTION,
    FULL_BITS,
    STAGES,
    WIDE_BITS,
    QuantizeConfig,
)
from .validate import ValidateConfig

__all__ = [
    "ALONE",
    "AUDIO_SETTINGS",
    "BUDGETS",
    "CANDIDATES",
    "COLUMN",
    "COSTS",
    "EASILY_CONFUSED",
    "EFFORT",
    "EFFORTS",
    "EXECUTION",
    "EXPERT",
    "FLOAT_BITS",
    "FULL_BITS",
    "GATES",
    "HOLD_OUT_FROM",
    "IMAGE_SETTINGS",
    "PANELS",
    "PLAN",
    "REPORTS",
    "STAGES",
    "TEXT_SETTINGS",
    "UNIT",
    "WIDE_BITS",
    "CandidateName",
    "DataConfig",
    "Effort",
    "LayerConfig",
    "QuantizeConfig",
    "Setting",
    "ValidateConfig",
    "find_nearest",
    "list_settings",
    "load_config",
    "match_whole",
    "nearest",
    "read_toml",
    "spell_allowed",
]
