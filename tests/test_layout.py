"""The architecture as a test: who may import whom, what setup.cfg installs, how long a file may be."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# layer: (the other layers that it may import, the third-party packages that it may import).
# A layer is a folder or file of onnxcalib/; the folder cli/ is onnxcalib.cli; "onnxcalib" is the __init__ file.
MAY_IMPORT: dict[str, tuple[set[str], set[str]]] = {
    "errors": ({"spec"}, {"numpy"}),
    "spec": ({"errors"}, {"numpy"}),
    "limits": (set(), set()),
    "values": ({"limits"}, set()),
    "config": ({"errors", "spec", "values"}, {"pydantic"}),
    "latencies": ({"errors", "spec", "config"}, set()),
    "bitplan": ({"errors", "spec", "config"}, {"pydantic"}),
    "arrays": ({"errors", "spec", "config"}, {"numpy", "onnx", "google"}),
    "images": ({"errors", "spec", "config", "arrays"}, {"numpy", "PIL"}),
    "textfiles": ({"errors", "config"}, set()),
    "texts": ({"errors", "spec", "config", "arrays", "slabs", "textfiles"}, {"numpy", "tokenizers"}),
    "sources": ({"errors", "spec", "config", "arrays", "images", "textfiles", "texts"}, {"numpy"}),
    "slabs": ({"errors", "spec", "arrays"}, {"numpy"}),
    "data": ({"errors", "spec", "config", "images", "sources", "slabs"}, {"numpy"}),
    "labels": ({"errors", "spec", "config", "arrays", "images", "data"}, {"numpy"}),
    "report": ({"errors", "spec", "config"}, {"numpy"}),
    "verdict": ({"report"}, set()),
    "formats": ({"report", "verdict"}, set()),
    "numeric": ({"errors", "spec"}, {"numpy", "scipy", "torch", "cvxpy"}),
    "graph": ({"errors", "spec", "config"}, {"numpy", "onnx", "ml_dtypes", "google"}),
    "runtime": (
        {"errors", "spec", "graph"},
        {"numpy", "onnx", "onnxruntime", "onnx2torch", "torch", "distributed", "joblib", "loky", "platformdirs"},
    ),
    "steps": (
        {
            *("errors", "spec", "limits", "config", "latencies", "bitplan", "slabs", "data", "labels", "report"),
            "verdict",
            *("numeric", "graph", "runtime"),
        },
        {"numpy", "scipy", "torch", "cvxpy", "onnx", "onnxruntime", "onnx2torch"},
    ),
    "run": (
        {"errors", "spec", "config", "bitplan", "data", "report", "numeric", "graph", "runtime", "steps"},
        {"onnx"},
    ),
    "planning": (
        {"errors", "spec", "config", "latencies", "bitplan", "run", "graph", "runtime", "steps"},
        {"onnx"},
    ),
    "pipeline": (
        {
            *("errors", "spec", "config", "bitplan", "images", "data", "report", "run", "planning"),
            *("graph", "runtime", "steps"),
        },
        {"numpy", "onnx"},
    ),
    "validation": (
        {"errors", "spec", "config", "data", "labels", "report", "verdict", "graph", "runtime", "steps"},
        {"numpy", "onnx"},
    ),
    "cli": (
        {"errors", "config", "bitplan", "data", "report", "verdict", "formats", "pipeline", "validation", "onnxcalib"},
        {"typer", "rich", "click", "matplotlib"},
    ),
    "onnxcalib": ({"errors", "config", "bitplan", "data", "report", "verdict", "pipeline", "validation"}, set()),
}
HEAVY = ("torch", "onnxruntime", "onnx2torch", "scipy", "cvxpy", "tokenizers")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_POSITIONAL = 5


def list_modules() -> dict[str, Path]:
    """Dotted name -> file, of every module that setup.cfg installs; a package has its own name."""
    modules = {}
    for folder, package in ((ROOT / "onnxcalib", "onnxcalib"), (ROOT / "cli", "onnxcalib.cli")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            modules[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return modules


def find_layer(name: str) -> str:
    """``onnxcalib.graph.fold`` -> ``graph``; ``onnxcalib`` and what is defined in it -> ``onnxcalib``."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "onnxcalib"


def list_imports(source: str, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import at any depth; ``from a import b`` counts as a.b."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*origin, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def find_faults(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """One line for each import that MAY_IMPORT does not allow."""
    layer = find_layer(module)
    layers, packages = MAY_IMPORT[layer]
    faults = []
    for line, name in list_imports(source, module, is_package=is_package):
        top = name.split(".")[0]
        if top == "onnxcalib":
            target = find_layer(name)
            allowed = target == layer or target in layers
        else:
            allowed = top in packages or top in sys.stdlib_module_names
        if not allowed:
            faults.append(f"{module}:{line}: imports {name}; {layer} may import {sorted(layers | packages)}")
    return faults


def list_functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


MODULES = list_modules()


@pytest.mark.parametrize("module", MODULES)
def test_every_import_is_in_the_table(module):
    path = MODULES[module]
    faults = find_faults(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py")
    assert not faults, "\n".join(faults)


def test_every_file_and_folder_of_the_library_is_a_layer():
    top = {name.split(".")[1] for name in MODULES if "." in name}
    assert top <= set(MAY_IMPORT), f"no row for {sorted(top - set(MAY_IMPORT))}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("onnxcalib.numeric.grid", "import onnx"),
        ("onnxcalib.numeric.grid", "from onnxcalib.graph import fold"),
        ("onnxcalib.numeric.grid", "from onnxcalib import graph"),
        ("onnxcalib.numeric.grid", "from ..graph.fold import fold_constants"),
        ("onnxcalib.graph.fold", "def fold():\n    import torch\n"),
        ("onnxcalib.graph.fold", "import onnxruntime.tools"),
        ("onnxcalib.runtime.session", "from .. import steps"),
        ("onnxcalib.errors", "from onnxcalib import __version__"),
        ("onnxcalib.cli.main", "from onnxcalib.graph.fold import fold_constants"),
        ("onnxcalib.cli.main", "import cli"),
    ],
)
def test_a_forbidden_import_is_found(module, source):
    assert len(find_faults(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "onnxcalib.numeric.grid",
            "import math, numpy as np\nfrom ..spec import QuantSpec\nfrom .rounding import snap\n",
        ),
        ("onnxcalib.steps.calibrate", "from onnxcalib import graph, runtime\nfrom onnxcalib.numeric.ranges import x\n"),
        ("onnxcalib.cli.main", "def run():\n    from onnxcalib.pipeline import quantize\n"),
        ("onnxcalib.cli.main", "from onnxcalib import __version__"),
    ],
)
def test_an_allowed_import_is_let_pass(module, source):
    assert find_faults(source, module) == []


def test_a_relative_import_is_read_from_the_package_itself_in_its_init_file():
    assert list(list_imports("from . import fold", "onnxcalib.graph", is_package=True)) == [(1, "onnxcalib.graph.fold")]
    assert list(list_imports("from ..a import b", "onnxcalib.graph.c", is_package=False)) == [(1, "onnxcalib.a.b")]


def test_setup_cfg_lists_every_package_on_disk():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    on_disk = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    without_init = {name.rpartition(".")[0] for name in MODULES if "." in name} - on_disk
    assert not without_init, f"no __init__.py in {sorted(without_init)}"
    assert sorted(listed) == sorted(on_disk)
    assert setup["options"]["package_dir"].strip() == "onnxcalib.cli = cli"


def test_setup_cfg_lists_every_third_party_package_that_the_table_allows():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = {
        re.split(r"\W", line, maxsplit=1)[0]
        for lines in (setup["options"]["install_requires"], setup["options.extras_require"]["dask"])
        for line in lines.split("\n")
        if line
    }
    imported = set().union(*(packages for _, packages in MAY_IMPORT.values()))
    comes_with = {"PIL": "pillow", "click": "typer", "ml_dtypes": "onnx", "google": "onnx"}  # google: protobuf
    assert {comes_with.get(name, name) for name in imported} == required


@pytest.mark.parametrize("path", MODULES.values(), ids=list(MODULES))
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    faults = []
    if (lines := text.count("\n")) > MAX_FILE_LINES:
        faults.append(f"{path}: {lines} lines, {MAX_FILE_LINES} are allowed")
    for function in list_functions(ast.parse(text)):
        if (lines := function.end_lineno - function.lineno + 1) > MAX_FUNCTION_LINES:
            faults.append(
                f"{path}:{function.lineno}: {function.name} has {lines} lines, {MAX_FUNCTION_LINES} are allowed"
            )
        # ctx is to the static methods of a torch.autograd.Function what self is to others.
        arguments = (*function.args.posonlyargs, *function.args.args)
        names = [arg.arg for arg in arguments if arg.arg not in ("self", "cls", "ctx")]
        if len(names) > MAX_POSITIONAL:
            faults.append(f"{path}:{function.lineno}: {function.name} has {len(names)} positional arguments")
    assert not faults, "\n".join(faults)


def test_the_command_line_is_installed_under_the_library_and_nowhere_else(tmp_path):
    code = "import onnxcalib.cli.main, importlib.util; print(importlib.util.find_spec('cli'))"
    found = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (found.returncode, found.stdout.strip()) == (0, "None"), found.stderr
    (script,) = entry_points(group="console_scripts", name="onnxcalib")
    assert script.value == "onnxcalib.cli.main:main"


def test_help_starts_neither_torch_nor_onnxruntime():
    code = (
        "import sys\nfrom onnxcalib.cli.main import main\nsys.argv = ['onnxcalib', '--help']\n"
        "try:\n    status = main()\nexcept SystemExit as end:\n    status = end.code\n"
        f"print('status', status or 0, 'loaded', [name for name in {HEAVY} if name in sys.modules])\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stdout.rstrip().endswith("status 0 loaded []"), found.stdout + found.stderr
    assert "quantize" in found.stdout


@pytest.mark.parametrize("module", ["onnxcalib", "onnxcalib.config", "onnxcalib.errors", "onnxcalib.report"])
def test_importing_a_light_module_starts_neither_torch_nor_onnxruntime(module):
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == "[]", found.stderr
