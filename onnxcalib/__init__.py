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
    from .errors import ConfigError, DataError, GateError, ModelError, OnnxCalibError, OnnxCalibWarning, OutputError
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
    from .report import (
        BlockRecord,
        BoundRecord,
        LayerRecord,
        LeftOutRecord,
        Observer,
        OutputRecord,
        Report,
        SaturationRecord,
        StageRecord,
        UnfusedRecord,
    )
    from .validation.run import validate
    from .verdict import (
        ContractRecord,
        Explanation,
        GateRecord,
        LatencyRecord,
        LayerLoss,
        ScoreRecord,
        StepsRecord,
        Verdict,
    )

# OpenMP's threads wait by spinning and so take the cores from onnxruntime's between two operations of torch: on two
# busy cores a run took 1.7 times as long. Read once, when torch is first loaded; a value that is set already stands.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Module -> the public names that it defines.
_PUBLIC = {
    "pipeline": (
        "Prepared",
        "Ranges",
        "Reconstruction",
        "Result",
        "calibrate",
        "emit",
        "frontier",
        "open_calibration",
        "plan",
        "prepare",
        "quantize",
        "read_ranges",
        "reconstruct",
    ),
    "validation.run": ("validate",),
    "bitplan": ("BitPlan", "Frontier"),
    "config": ("DataConfig", "LayerConfig", "QuantizeConfig", "ValidateConfig"),
    "data": ("CalibrationSet", "InputSpec"),
    "report": (
        "BlockRecord",
        "BoundRecord",
        "LayerRecord",
        "LeftOutRecord",
        "Observer",
        "OutputRecord",
        "Report",
        "SaturationRecord",
        "StageRecord",
        "UnfusedRecord",
    ),
    "verdict": (
        "ContractRecord",
        "Explanation",
        "GateRecord",
        "LatencyRecord",
        "LayerLoss",
        "ScoreRecord",
        "StepsRecord",
        "Verdict",
    ),
    "errors": (
        "ConfigError",
        "DataError",
        "GateError",
        "ModelError",
        "OnnxCalibError",
        "OnnxCalibWarning",
        "OutputError",
    ),
}
_HOMES = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [
    "BitPlan",
    "BlockRecord",
    "BoundRecord",
    "CalibrationSet",
    "ConfigError",
    "ContractRecord",
    "DataConfig",
    "DataError",
    "Explanation",
    "Frontier",
    "GateError",
    "GateRecord",
    "InputSpec",
    "LatencyRecord",
    "LayerConfig",
    "LayerLoss",
    "LayerRecord",
    "LeftOutRecord",
    "ModelError",
    "Observer",
    "OnnxCalibError",
    "OnnxCalibWarning",
    "OutputError",
    "OutputRecord",
    "Prepared",
    "QuantizeConfig",
    "Ranges",
    "Reconstruction",
    "Report",
    "Result",
    "SaturationRecord",
    "ScoreRecord",
    "StageRecord",
    "StepsRecord",
    "UnfusedRecord",
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
