"""Post-training quantization of ONNX models with a small, unlabelled calibration set.

Public names are those of ``__init__.pyi``. They are loaded on first use: importing the package starts neither torch nor
onnxruntime.
"""

from __future__ import annotations

import os

# OpenMP's threads wait by spinning and so take the cores from onnxruntime's between two operations of torch: on two
# busy cores a run took 1.7 times as long. Read once, when torch is first loaded; a value that is set already stands.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> object:
    """A public name, ``__version__`` or ``__all__``. The loader is imported then too: a command starts sooner."""
    import lazy_loader

    if name == "__version__":
        from .spec import VERSION

        return VERSION
    load, _, names = lazy_loader.attach_stub(__name__, __file__)
    return sorted([*names, "__version__"]) if name == "__all__" else load(name)


def __dir__() -> list[str]:
    names: list[str] = sorted([*__getattr__("__all__")])  # type: ignore[misc]
    return names
