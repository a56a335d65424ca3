"""The public names. They are loaded on first use, from the modules that are named here."""

from .bitplan import (
    BitPlan as BitPlan,
    Frontier as Frontier,
    Point as Point,
    SetRecord as SetRecord,
    Totals as Totals,
)
from .config import (
    DataConfig as DataConfig,
    LayerConfig as LayerConfig,
    QuantizeConfig as QuantizeConfig,
    ValidateConfig as ValidateConfig,
)
from .contents import (
    Contents as Contents,
    EstimateRecord as EstimateRecord,
    GridRecord as GridRecord,
    OperatorRecord as OperatorRecord,
    OutlookRecord as OutlookRecord,
    PortRecord as PortRecord,
    QuantizedRecord as QuantizedRecord,
    TypeRecord as TypeRecord,
)
from .data import CalibrationSet as CalibrationSet
from .errors import (
    ConfigError as ConfigError,
    DataError as DataError,
    DeviceMemoryError as DeviceMemoryError,
    GateError as GateError,
    ModelError as ModelError,
    OnnxCalibError as OnnxCalibError,
    OnnxCalibWarning as OnnxCalibWarning,
    OutputError as OutputError,
)
from .graph.layer_params import LayerParams as LayerParams
from .inspection.run import inspect as inspect
from .lint import check_target as check_target
from .pipeline import (
    Prepared as Prepared,
    Ranges as Ranges,
    Reconstruction as Reconstruction,
    Result as Result,
    calibrate as calibrate,
    emit as emit,
    frontier as frontier,
    open_calibration as open_calibration,
    plan as plan,
    prepare as prepare,
    quantize as quantize,
    read_ranges as read_ranges,
    reconstruct as reconstruct,
    verify as verify,
)
from .layer_record import (
    HistogramRecord as HistogramRecord,
    LayerRecord as LayerRecord,
    LossRecord as LossRecord,
    PlaceRecord as PlaceRecord,
)
from .report import (
    BlockRecord as BlockRecord,
    BoundRecord as BoundRecord,
    ExpectedRecord as ExpectedRecord,
    FloatRecord as FloatRecord,
    LeftOutRecord as LeftOutRecord,
    MeasuredOn as MeasuredOn,
    MemoryRecord as MemoryRecord,
    Observer as Observer,
    OutputRecord as OutputRecord,
    Report as Report,
    SaturationRecord as SaturationRecord,
    SpeedRecord as SpeedRecord,
    StageRecord as StageRecord,
    UnfusedRecord as UnfusedRecord,
)
from .spec import (
    Candidate as Candidate,
    Grids as Grids,
    InputSpec as InputSpec,
    LayerScheme as LayerScheme,
    QParams as QParams,
    QuantScheme as QuantScheme,
    QuantSpec as QuantSpec,
)
from .stepwise import (
    ClosedLoopRecord as ClosedLoopRecord,
    GrowthRecord as GrowthRecord,
)
from .targets import (
    LintRecord as LintRecord,
    Target as Target,
    Violation as Violation,
    list_targets as list_targets,
    load_target as load_target,
)
from .validation.run import validate as validate
from .verdict import (
    ContractRecord as ContractRecord,
    DeviceRecord as DeviceRecord,
    Explanation as Explanation,
    GateRecord as GateRecord,
    LatencyRecord as LatencyRecord,
    LayerLoss as LayerLoss,
    OffRecord as OffRecord,
    ReferenceRecord as ReferenceRecord,
    ScoreRecord as ScoreRecord,
    StepsRecord as StepsRecord,
    Verdict as Verdict,
)

__version__: str
__all__: list[str]
