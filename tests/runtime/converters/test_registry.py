import subprocess
import sys

import numpy as np
import pytest

from onnxcalib.runtime.blocks import compare, to_torch
from onnxcalib.runtime.converters.registry import register, torchvision_stand_in
from tests.runtime.converters.parity import make_block, make_input

WITHOUT_TORCHVISION = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            raise {error}("no " + name)
sys.meta_path.insert(0, Block())
from onnxcalib.runtime import blocks
print(blocks.__name__, [name for name in sys.modules if name.split(".")[0] == "torchvision"])
"""


@pytest.mark.parametrize("error", ["ImportError", "RuntimeError"])
def test_blocks_import_without_torchvision_and_leave_no_stand_in(error):
    code = WITHOUT_TORCHVISION.replace("{error}", error)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "onnxcalib.runtime.blocks []", run.stderr


def test_a_torchvision_that_imports_is_used_as_it_is(monkeypatch):
    real = type(sys)("torchvision")
    monkeypatch.setitem(sys.modules, "torchvision", real)
    with torchvision_stand_in():
        assert sys.modules["torchvision"] is real
    assert sys.modules["torchvision"] is real


def test_a_version_that_onnx2torch_has_is_not_replaced_by_accident():
    with pytest.raises(ValueError, match="already registered"):
        register("Relu", 14)(lambda node, graph: None)


def test_a_version_that_onnx2torch_lacks_cannot_be_replaced():
    with pytest.raises(KeyError, match="NoSuchOperator"):
        register("NoSuchOperator", replace=(1,))(lambda node, graph: None)


def test_the_parity_of_a_wrong_answer_is_far_from_zero():
    x = make_input(2, 3)
    block = make_block("Softplus", 22, {"x": x})
    right = np.log1p(np.exp(x))
    assert compare(to_torch(block), block, {"x": x}, [right]) < 1e-6
    assert compare(to_torch(block), block, {"x": x}, [right * 1.01]) > 1e-3
