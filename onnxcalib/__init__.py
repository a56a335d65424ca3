"""Post-training quantization of ONNX models with a small, unlabelled calibration set.

Public names are those of ``__init__.pyi``. They are loaded on first use: importing the package starts neither torch nor
onnxruntime.
"""

from __future__ import annotations

import os

import lazy_loader

from .spec import VERSION

__version__ = VERSION

# OpenMP's threads wait by spinning and so take the cores from onnxruntime's between two operations of torch: on two
# busy cores a run took 1.7 times as long. Read once, when torch is first loaded; a value that is set already stands.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__getattr__, _, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = sorted([*_names, "__version__"])


def __dir__() -> list[str]:
    return __all__
