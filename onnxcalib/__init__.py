"""Post-training quantization of ONNX models with a small, unlabelled calibration set.

Public names are loaded on first use: importing the package starts neither torch nor onnxruntime.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from .spec import VERSION as __version__

if TYPE_CHECKING:
    from .bitplan import BitPlan, Frontier
    from .config import DataConfig, LayerConfig, QuantizeConfig, ValidateConfig
    from .data import CalibrationSet, InputSpec
    from .errors import ConfigError, DataError, GateError, ModelError, OnnxCalibError, OutputError
    from .pipeline import (
        Prepared,
        Ranges,
        Reconstruction,
        Result,
        calibrate,
        emit,
        frontier,
        open_calibration,
        plan,
        prepare,
        quantize,
        read_ranges,
        reconstruct,
    )
    from .report import Observer, Report
    from .validation.run import validate
    from .verdict import Verdict

# OpenMP's threads wait by spinning and so take the cores from onnxruntime's between two operations of torch: on two
# busy cores a run took 1.7 times as long. Read once, when torch is first loaded; a value that is set already stands.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_HOMES = {
    "quantize": "pipeline",
    "Result": "pipeline",
    "validate": "validation.run",
    "plan": "pipeline",
    "frontier": "pipeline",
    "prepare": "pipeline",
    "Prepared": "pipeline",
    "calibrate": "pipeline",
    "Ranges": "pipeline",
    "read_ranges": "pipeline",
    "reconstruct": "pipeline",
    "Reconstruction": "pipeline",
    "emit": "pipeline",
    "BitPlan": "bitplan",
    "Frontier": "bitplan",
    "Verdict": "verdict",
    "QuantizeConfig": "config",
    "LayerConfig": "config",
    "ValidateConfig": "config",
    "DataConfig": "config",
    "Report": "report",
    "Observer": "report",
    "CalibrationSet": "data",
    "InputSpec": "data",
    "open_calibration": "pipeline",
    "OnnxCalibError": "errors",
    "ModelError": "errors",
    "DataError": "errors",
    "ConfigError": "errors",
    "GateError": "errors",
    "OutputError": "errors",
}

__all__ = [
    "BitPlan",
    "CalibrationSet",
    "ConfigError",
    "DataConfig",
    "DataError",
    "Frontier",
    "GateError",
    "InputSpec",
    "LayerConfig",
    "ModelError",
    "Observer",
    "OnnxCalibError",
    "OutputError",
    "Prepared",
    "QuantizeConfig",
    "Ranges",
    "Reconstruction",
    "Report",
    "Result",
    "ValidateConfig",
    "Verdict",
    "__version__",
    "calibrate",
    "emit",
    "frontier",
    "open_calibration",
    "plan",
    "prepare",
    "quantize",
    "read_ranges",
    "reconstruct",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
