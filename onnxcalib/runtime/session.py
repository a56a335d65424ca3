"""Run models in onnxruntime: the only place that makes an InferenceSession."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto

from ..errors import ModelError

# onnxruntime's limit for a model that is handed over as bytes (protobuf's own).
BYTES_LIMIT = 2**31 - 1


class Session:
    """One model in onnxruntime, on the CPU."""

    def __init__(self, model: ModelProto, *, optimize: bool = True, threads: int = 0, dump: Path | None = None):
        """``threads`` 0: as many as cores. ``dump``: where the optimized graph is written. Raises ModelError."""
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        # Spinning threads of onnxruntime take the cores from torch between two runs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        if dump is not None:
            options.optimized_model_filepath = str(dump)
        self._session = _load(model, options)
        self.inputs = [i.name for i in self._session.get_inputs()]
        self.outputs = [o.name for o in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Outputs by name; feeds that the model does not read are left out. Raises ModelError."""
        names = list(outputs if outputs is not None else self.outputs)
        try:
            values = self._session.run(names, {k: feeds[k] for k in self.inputs})
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            raise ModelError(f"onnxruntime cannot run the model: {_first_line(error)}") from error
        return dict(zip(names, values, strict=True))


def _load(model: ModelProto, options: ort.SessionOptions) -> ort.InferenceSession:
    providers = ["CPUExecutionProvider"]
    try:
        if model.ByteSize() < BYTES_LIMIT:
            return ort.InferenceSession(model.SerializeToString(), options, providers=providers)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(model, path, save_as_external_data=True, location="weights")
            return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        raise ModelError(f"onnxruntime cannot load the model: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
