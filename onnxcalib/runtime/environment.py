"""What a run was made with: versions, and the machine."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from .cores import count_cores, describe_processor

PACKAGES = ("onnxcalib", "onnxruntime", "onnx", "numpy", "torch")


def describe_environment() -> dict[str, str]:
    """The versions of this tool, of Python and of the libraries that compute; the processor, and the cores to use."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    processor = describe_processor().rpartition(" ")[0]
    return {**found, "processor": f"{processor}, {count_cores()} cores", "system": platform.system()}
