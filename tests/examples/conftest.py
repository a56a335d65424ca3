"""Scripts of the examples, loaded as they stand."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def call_example(tmp_path) -> Callable:
    """Calls the main function of examples/NAME/NAME.py with a folder for its files; torch keeps its threads."""
    threads = torch.get_num_threads()

    def call(name: str, *arguments: str) -> list:
        script = runpy.run_path(str(EXAMPLES / name / f"{name}.py"), run_name=name)
        return script["main"](["--out", str(tmp_path), *arguments])

    yield call
    torch.set_num_threads(threads)
