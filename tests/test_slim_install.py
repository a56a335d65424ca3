"""``validate`` needs no more packages than requirements-validate.txt installs: no torch, above all.

``tests/examples/test_ci.py`` runs it without the others.
"""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx

from tests.test_layout import COMES_WITH, MODULES, list_imports

ROOT = Path(__file__).resolve().parents[1]
# What the slim commands start from. Of a command that is not among them only what its file imports at once counts.
SLIM = ("onnxcalib.cli.main", "onnxcalib.cli.app", "onnxcalib.cli.validate", "onnxcalib.cli.inspect")
OTHERS = ("onnxcalib", "onnxcalib.cli.quantize", "onnxcalib.cli.calibrate", "onnxcalib.cli.plan")


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


def find_imports(tree: ast.Module, *, deep: bool) -> ast.Module:
    """The imports of a module, without those for types alone and, unless ``deep``, without those in functions."""
    found, todo = [], [*tree.body]
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.append(node)
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            todo += node.orelse
        elif deep or not isinstance(node, ast.FunctionDef):
            todo += [each for part in ("body", "orelse", "handlers", "finalbody") for each in getattr(node, part, ())]
    return ast.Module(found, [])


def list_needed(module: str) -> Iterator[str]:
    path = MODULES[module]
    tree = find_imports(ast.parse(path.read_text(encoding="utf-8")), deep=module not in OTHERS)
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


# What commands do without where it is missing: pages have no plots then, and say so.
OPTIONAL = {"vl-convert-python"}


def test_validate_can_reach_the_slim_requirements_and_no_other_package():
    extras = {name for lines in read_setup()["options.extras_require"].values() for name in read_bounds(lines)}
    found = {name: module for name, module in find_packages().items() if name not in extras | OPTIONAL}
    assert found.keys() <= FEW.keys(), {name: found[name] for name in found.keys() - FEW.keys()}
    # The names of ``onnxcalib`` itself are loaded by a package that no other module imports.
    assert FEW.keys() - found.keys() == {"lazy-loader"}


def test_inspect_works_where_the_other_packages_are_missing(build, draw, tmp_path):
    onnx.save(build("g (float[N, 16] x) => (float[N, 4] y) { y = MatMul (x, w) }", w=draw(16, 4)), tmp_path / "f.onnx")
    missing = {*(ALL.keys() - FEW.keys()), "torchvision"}
    code = f"""
import sys
for name in {missing}:
    sys.modules[name] = None  # its import is an ImportError
from onnxcalib.cli.main import main
print("status", main(["inspect", "f.onnx"]))
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert found.stdout.rstrip().endswith("status 0"), found.stdout + found.stderr
    assert "quantize would take 1 layer (1 MatMul)" in found.stdout
