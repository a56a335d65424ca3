"""Fixtures of all tests. They import what they need: where tests run on several processes, the one that hands them out
loads this file too, and runs none of them."""

import gc
import os

# Before anything reads it. Several processes run tests, one a core: threads of one would only wait for the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # which pytest-xdist sets for its processes

import numpy as np
import pytest

gc.disable()  # until all tests are collected: asserts that are rewritten make millions of objects, none of them waste


def pytest_collection_finish() -> None:
    """No collection of garbage looks again at what was imported."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _keep_out_of_the_user_cache(tmp_path_factory):
    """What tests plan is kept in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _time_in_haste():
    """Models are timed for as few rounds as intervals need, however long users would wait for closer ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxcalib.validation.timing.SECONDS", 0.0)
        yield


@pytest.fixture
def build():
    from tests.small_models import build_model

    return build_model


@pytest.fixture
def run():
    from tests.small_models import run_model

    return run_model


@pytest.fixture
def rough():
    from tests.small_models import quantize_roughly

    return quantize_roughly


@pytest.fixture
def draw():
    """Float32 normal deviates of a shape, the same in every run."""
    rng = np.random.default_rng(0)
    return lambda *shape: rng.normal(size=shape).astype(np.float32)


@pytest.fixture
def weigh(draw):
    """Float32 weights of a shape whose outputs are about as large as the inputs."""
    return lambda *shape: draw(*shape) / np.float32(np.sqrt(max(np.prod(shape[1:]), 1)))


@pytest.fixture
def by_tool(draw, tmp_path):
    """Models that onnxruntime's own tool has quantized: statically, by format and types, or dynamically."""
    from tests.own_tool import quantize_by_tool

    def make(model, *form_and_types, data=None, **options):
        if data is None:
            data = draw(*(dim.dim_value or 8 for dim in model.graph.input[0].type.tensor_type.shape.dim))
        return quantize_by_tool(tmp_path, model, data, *form_and_types, **options)

    return make
