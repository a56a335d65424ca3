"""The architecture as a test: who may import whom, what setup.cfg installs, how long a file may be."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# room: (the other rooms that it may import, the third-party packages that it may import).
# A room is a folder or a file of onnxcalib/, its sub-folders included where they have no row of their own. The folder
# cli/ is onnxcalib.cli; "onnxcalib" is the __init__ file. From the ground up, so that a row names only rows above it.
FOUNDATION = {"errors", "files", "spec", "config"}
WORKSHOPS = {"data", "numeric", "graph", "graph.inspect", "graph.passes", "runtime"}
MAY_IMPORT: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "files": ({"errors"}, set()),
    "spec": (set(), {"numpy"}),
    "values": (set(), set()),
    "config": ({"errors", "files", "spec", "values"}, {"pydantic"}),
    "targets": ({"errors", "spec", "config"}, {"pydantic"}),
    "bitplan": (FOUNDATION, {"pydantic"}),
    "progress": (set(), set()),
    # What reports and verdicts both say of models with states.
    "stepwise": (set(), set()),
    # What reports and verdicts both say of layers.
    "layer_record": (set(), set()),
    # A report holds what a file was told of its target's rules.
    "report": ({"errors", "stepwise", "layer_record", "targets"}, set()),
    "verdict": ({"report", "stepwise", "layer_record", "targets"}, set()),
    # What people read first is the same on a screen and in a page.
    "sentence": ({"bitplan", "report", "verdict"}, set()),
    "contents": ({"report"}, set()),
    "data": ({*FOUNDATION, "progress"}, {"numpy", "onnx", "PIL", "tokenizers", "scipy"}),
    "numeric": ({"spec"}, {"numpy", "scipy", "torch", "cvxpy"}),
    "graph": (FOUNDATION, {"numpy", "onnx", "ml_dtypes", "google"}),
    "graph.inspect": ({"graph", "spec", "errors"}, {"numpy", "onnx"}),
    "graph.passes": ({"graph", "graph.inspect", "spec", "errors"}, {"numpy", "onnx"}),
    "lint": ({"errors", "spec", "targets", "graph", "graph.inspect", "graph.passes"}, {"numpy", "onnx"}),
    "runtime.converters": (set(), {"numpy", "onnx", "onnx2torch", "torch"}),
    "runtime": (
        {"errors", "files", "graph", "graph.passes", "runtime.converters"},
        {"numpy", "onnx", "onnxruntime", "torch", "dask", "distributed", "platformdirs", "openvino", "onnxruntime_qnn"},
    ),
    "quantization": (
        {*FOUNDATION, "values", "targets", "bitplan", "progress", "stepwise", "layer_record", "report", *WORKSHOPS},
        {"numpy", "torch", "onnx", "pydantic"},
    ),
    "planning": (
        {*FOUNDATION, "values", "bitplan", "progress", "data", "numeric", "graph", "runtime", "quantization"},
        {"numpy", "onnx", "torch"},
    ),
    "validation": (
        {"errors", "spec", "config", "progress", "stepwise", "report", "targets", "verdict", "lint", *WORKSHOPS}
        | {"quantization"},
        {"numpy", "onnx"},
    ),
    # Before its work: the commands ask it, and see no graph.
    "outputs": ({"errors", "files", "graph"}, set()),
    # What quantize would do comes from its rules that need no samples.
    "inspection": (
        {"errors", "spec", "config", "targets", "report", "contents", "quantization", *WORKSHOPS} - {"numeric"},
        {"numpy", "onnx"},
    ),
    # A page is made of the JSON of a report or a verdict, and of nothing else.
    "pages": ({"errors", "files", "spec"}, {"jinja2", "vl_convert", "platformdirs"}),
    # A run ends with its file held to the rules that it was made by: graph and quantization never see a lint.
    "pipeline": (
        {
            "errors",
            "files",
            "config",
            "bitplan",
            "report",
            "data",
            "graph",
            "lint",
            "quantization",
            "planning",
            "targets",
            "pages",
        },
        {"onnx"},
    ),
    "cli": (
        {
            *(
                "errors",
                "files",
                "values",
                "config",
                "targets",
                "bitplan",
                "stepwise",
                "layer_record",
                "report",
                "verdict",
                "sentence",
                "contents",
                "lint",
            ),
            *("outputs", "pipeline", "validation", "inspection", "pages", "onnxcalib"),
        },
        {"typer", "rich", "matplotlib"},
    ),
    # Its public names, which are loaded on first use, are those of __init__.pyi.
    "onnxcalib": ({"spec"}, {"lazy_loader"}),
}
# Import -> the package that it comes with, where their names differ. google: protobuf.
COMES_WITH = {
    **{"PIL": "pillow", "ml_dtypes": "onnx", "google": "onnx"},
    **{"lazy_loader": "lazy-loader", "onnxruntime_qnn": "onnxruntime-qnn"},
    **{"vl_convert": "vl-convert-python"},
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


def find_room(name: str) -> str:
    """``onnxcalib.graph.passes.fold`` -> ``graph.passes``; ``onnxcalib`` and what is defined in it -> ``onnxcalib``."""
    parts = name.split(".")[1:]
    rooms = (".".join(parts[:depth]) for depth in range(len(parts), 0, -1))
    return next((room for room in rooms if room in MAY_IMPORT), "onnxcalib")


def list_imports(source: str | ast.Module, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import at any depth; ``from a import b`` counts as a.b."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source) if isinstance(source, str) else source):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*origin, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def find_faults(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """One line for each import that MAY_IMPORT does not allow."""
    room = find_room(module)
    rooms, packages = MAY_IMPORT[room]
    faults = []
    for line, name in list_imports(source, module, is_package=is_package):
        top = name.split(".")[0]
        if top == "onnxcalib":
            target = find_room(name)
            allowed = target == room or target in rooms
        else:
            allowed = top in packages or top in sys.stdlib_module_names
        if not allowed:
            faults.append(f"{module}:{line}: imports {name}; {room} may import {sorted(rooms | packages)}")
    return faults


def list_functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


MODULES = list_modules()


@pytest.mark.parametrize("module", MODULES)
def test_every_import_is_in_the_table(module):
    path = MODULES[module]
    faults = find_faults(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py")
    assert not faults, "\n".join(faults)


def test_every_row_names_only_rows_above_it():
    above: set[str] = set()
    for room, (rooms, _) in MAY_IMPORT.items():
        assert rooms <= above | {"onnxcalib"}, f"{room}: {sorted(rooms - above)} stand below it"
        above.add(room)


def test_every_import_that_the_table_allows_is_made():
    used: dict[str, set[str]] = {room: set() for room in MAY_IMPORT}
    for module, path in MODULES.items():
        source = path.read_text(encoding="utf-8")
        for _, name in list_imports(source, module, is_package=path.name == "__init__.py"):
            top = name.split(".")[0]
            used[find_room(module)].add(find_room(name) if top == "onnxcalib" else top)
    unused = {room: (rooms | packages) - used[room] for room, (rooms, packages) in MAY_IMPORT.items()}
    assert not any(unused.values()), {room: sorted(names) for room, names in unused.items() if names}


def test_every_file_and_folder_of_the_library_is_a_room():
    top = {name.split(".")[1] for name in MODULES if "." in name}
    assert top <= set(MAY_IMPORT), f"no row for {sorted(top - set(MAY_IMPORT))}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("onnxcalib.numeric.grid", "import onnx"),
        ("onnxcalib.numeric.grid", "from onnxcalib.graph import fold"),
        ("onnxcalib.numeric.grid", "from onnxcalib import graph"),
        ("onnxcalib.numeric.grid", "from ..graph.passes.fold import fold_constants"),
        ("onnxcalib.graph.passes.fold", "def fold():\n    import torch\n"),
        ("onnxcalib.graph.passes.fold", "import onnxruntime.tools"),
        ("onnxcalib.graph.index", "from .passes.fold import fold_constants"),
        ("onnxcalib.runtime.session", "from .. import quantization"),
        ("onnxcalib.errors", "from onnxcalib import __version__"),
        ("onnxcalib.cli.main", "from onnxcalib.graph.passes.fold import fold_constants"),
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
        (
            "onnxcalib.quantization.calibrate",
            "from onnxcalib import graph, runtime\nfrom onnxcalib.numeric.ranges import x\n",
        ),
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
        line.split()[0]
        for lines in (
            setup["options"]["install_requires"],
            *(setup["options.extras_require"][extra] for extra in ("dask", "openvino", "qnn")),
        )
        for line in lines.split("\n")
        if line
    }
    imported = set().union(*(packages for _, packages in MAY_IMPORT.values()))
    assert {COMES_WITH.get(name, name) for name in imported} == required


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


FOLDERS = (*sorted(WORKSHOPS), "targets", "lint", "quantization", "planning", "validation", "pages", "inspection")


@pytest.mark.parametrize("room", FOLDERS)
def test_the_docstring_of_a_package_names_its_modules(room):
    package = MODULES[f"onnxcalib.{room}"]
    names = {path.stem for path in package.parent.glob("*.py")} - {"__init__"}
    text = ast.get_docstring(ast.parse(package.read_text(encoding="utf-8"))) or ""
    assert not [name for name in sorted(names) if f"``{name}``" not in text]


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
