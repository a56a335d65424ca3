"""``validate`` with no more packages than requirements-validate.txt installs: without torch, above all."""

from __future__ import annotations

import ast
import configparser
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

from tests.test_layout import COMES_WITH, MODULES, list_imports

ROOT = Path(__file__).resolve().parents[1]
# What the slim commands start from. Of a command that is not among them only what its file imports at once counts.
SLIM = ("onnxcalib.cli.main", "onnxcalib.cli.app", "onnxcalib.cli.validate")
OTHERS = ("onnxcalib", "onnxcalib.cli.quantize", "onnxcalib.cli.calibrate", "onnxcalib.cli.plan")

FLOAT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 16] x) => (float[n, 4] y) { h = MatMul(x, w) y = Relu(h) }
"""
QUANTIZED = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 16] x) => (float[n, 4] y)
<float scale = {0.03}, uint8 zero = {128}, float step = {0.06}, uint8 none = {0}, float size = {0.008}, int8 mid = {0}>
{
    xq = QuantizeLinear(x, scale, zero)
    xd = DequantizeLinear(xq, scale, zero)
    wd = DequantizeLinear(w, size, mid)
    h = MatMul(xd, wd)
    hq = QuantizeLinear(h, step, none)
    hd = DequantizeLinear(hq, step, none)
    y = Relu(hd)
}
"""


def read_setup() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup


def read_bounds(text: str) -> dict[str, str]:
    """Package -> its lower bound, of lines like ``numpy >= 1.26``."""
    lines = (line.partition("#")[0].split() for line in text.splitlines())
    return {name: f"{sign} {bound}" for name, sign, bound in filter(None, lines)}


ALL = read_bounds(read_setup()["options"]["install_requires"])
FEW = read_bounds((ROOT / "requirements-validate.txt").read_text(encoding="utf-8"))


def drop_types(tree: ast.Module, *, deep: bool) -> ast.Module:
    """The module without what types alone need and, unless ``deep``, without what its functions import."""

    class Dropping(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            return [*map(self.visit, node.orelse)] if ast.unparse(node.test) == "TYPE_CHECKING" else node

        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST | None:
            return self.generic_visit(node) if deep else None

    return Dropping().visit(tree)


def list_needed(module: str) -> Iterator[str]:
    path = MODULES[module]
    tree = drop_types(ast.parse(path.read_text(encoding="utf-8")), deep=module not in OTHERS)
    yield from (name for _, name in list_imports(tree, module, is_package=path.name == "__init__.py"))


def find_packages() -> dict[str, str]:
    """Third-party package -> a module that imports it, of all that the slim commands can reach."""
    todo, seen, found = list(SLIM), set(), {}
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        for name in list_needed(module):
            parts = name.split(".")
            if parts[0] == "onnxcalib":
                names = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
                todo += [each for each in names if each in MODULES]
            elif parts[0] not in sys.stdlib_module_names:
                found.setdefault(COMES_WITH.get(parts[0], parts[0]), module)
    return found


def test_the_bounds_of_the_slim_requirements_are_those_of_the_package():
    assert FEW.items() <= ALL.items(), dict(FEW.items() - ALL.items())


def test_validate_can_reach_the_slim_requirements_and_no_other_package():
    extras = {name for lines in read_setup()["options.extras_require"].values() for name in read_bounds(lines)}
    found = {name: module for name, module in find_packages().items() if name not in extras}
    assert found.keys() <= FEW.keys(), {name: found[name] for name in found.keys() - FEW.keys()}
    # The names of ``onnxcalib`` itself are loaded by a package that no other module imports.
    assert FEW.keys() - found.keys() == {"lazy-loader"}


def test_validate_and_its_reports_work_where_the_other_packages_are_missing(tmp_path):
    rng = np.random.default_rng(0)
    integers = rng.integers(-127, 128, (16, 4))
    for name, text, weight in (("f", FLOAT, (integers * 0.008).astype(np.float32)), ("q", QUANTIZED, integers)):
        model = parser.parse_model(text)
        model.graph.initializer.append(numpy_helper.from_array(weight.astype(np.int8 if name == "q" else "f4"), "w"))
        onnx.save(model, tmp_path / f"{name}.onnx")
    np.save(tmp_path / "x.npy", rng.normal(size=(64, 16)).astype(np.float32))
    missing = {*(ALL.keys() - FEW.keys()), "torchvision"}
    code = f"""
import sys
for name in {missing}:
    sys.modules[name] = None  # its import is an ImportError
from onnxcalib.cli.main import main
arguments = ["validate", "f.onnx", "q.onnx", "--data", "x.npy", "--explain", "--quiet", "--min-sqnr", "20"]
reports = ["--json", "r.json", "--junit", "r.xml", "--markdown", "r.md"]
runs = [*arguments, *reports], [*arguments[:-1], "90"], ["validate", "q.onnx", "--target", "qnn"]
print("statuses", [main(each) for each in runs])
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert found.stdout.rstrip().endswith("statuses [0, 3, 3]"), found.stdout + found.stderr
    record = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert record["passed"] and record["explanation"]["layers"]
