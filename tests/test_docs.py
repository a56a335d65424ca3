"""README, docs and examples as a test: what they show runs, their options and links exist, the site builds.

A fenced block runs as it stands, block after block in one folder a page. A comment in front of it may say otherwise:
``not run: why``, ``parsed only: why`` for commands, or ``file: NAME`` for Python that is a file beside the models.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from typer.main import get_command

import onnxcalib
from onnxcalib.cli.app import app
from onnxcalib.cli.main import main
from onnxcalib.config import LayerConfig, load_config
from onnxcalib.report import LOGGER
from tests.sample_files import write_all

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in (
        *(ROOT / "README.md", ROOT / "CONTRIBUTING.md"),
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "examples").glob("*/README.md")),
    )
}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
BLOCK = re.compile(r"^(?:<!-- (.*?) -->\n)?```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
SHOWN_ONLY = {"text"}
MOST_LINES = 150  # of the README, to be read in three minutes


class Block(NamedTuple):
    page: str
    line: int
    note: str
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        lines = self.code.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def list_blocks(page: str) -> Iterator[Block]:
    for found in BLOCK.finditer(TEXTS[page]):
        note, language, code = found.groups()
        yield Block(page, TEXTS[page].count("\n", 0, found.start(3)) + 1, note or "", language, code)


BLOCKS = [block for page in PAGES for block in list_blocks(page)]
GROUP = get_command(app)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models as small as these gain nothing from a second thread, and lose much where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """The reader's folder, with a quantized model beside each float one."""
    folder = tmp_path_factory.mktemp("reader")
    write_all(folder)
    texts = onnxcalib.QuantizeConfig(data=onnxcalib.DataConfig(tokenizer=str(folder / "tokenizer.json")))
    spared = onnxcalib.QuantizeConfig(exclude=["/decode/.*"])
    kinds = {"model": ("images", None), "encoder": ("sentences.txt", texts), "detector": ("detector.npy", spared)}
    for name, (samples, config) in kinds.items():
        result = onnxcalib.quantize(folder / f"{name}.onnx", folder / samples, config)
        result.save(folder / f"{name}.quantized.onnx")
    return folder


@pytest.fixture
def folder(files, tmp_path, monkeypatch) -> Iterator[Path]:
    """A copy of the reader's folder, as the working directory; what a page sets on the logger is undone."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    level = LOGGER.level
    yield tmp_path
    LOGGER.setLevel(level)


def run_block(block: Block, folder: Path) -> None:
    if block.note.startswith("file: "):
        (folder / block.note.removeprefix("file: ")).write_text(block.code)
    elif block.language == "python":
        exec(compile(block.code, str(block), "exec"), {"__name__": "__main__"})
    elif block.language == "toml":
        (folder / "onnxcalib.toml").write_text(block.code)
        load_config(folder / "onnxcalib.toml")
    elif block.language == "sh":
        for words in block.commands:
            run_command(words, parsed_only=block.note.startswith("parsed only: "))
    else:
        assert block.language in SHOWN_ONLY, f"```{block.language} is nothing that can be run"


def run_command(words: list[str], *, parsed_only: bool) -> None:
    if words[0] == "onnxcalib":
        assert words[-1] == "--help" or parse_command(words)
        if not parsed_only:
            assert main(words[1:]) == 0, words
    elif words[0] == "make":
        targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1].split()
        assert set(words[1:]) <= set(targets), words
    elif words == [".", ".venv/bin/activate"]:
        assert "$(PYTHON) -m venv .venv" in (ROOT / "Makefile").read_text()
    elif words[0].endswith("python") and words[1].endswith(".py"):
        script = (ROOT / words[1]).read_text(encoding="utf-8")
        for option in (word for word in words[2:] if word.startswith("-")):
            assert f'"{option}"' in script, f"{words[1]} has no {option}"
    else:
        raise AssertionError(f"{words}: nothing that can be run; say why in a comment in front of it")


def parse_command(words: list[str]) -> bool:
    """Whether the command line's own parser takes the words; it raises what a user would read."""
    command = GROUP.commands[words[1]]
    return bool(command.make_context(words[1], words[2:]).params)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_runs(page, folder, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "scoring", raising=False)
    for block in list_blocks(page):
        if block.note.startswith("not run: "):
            continue
        try:
            run_block(block, folder)
        except BaseException as error:
            printed = capsys.readouterr()
            pytest.fail(f"{block}: {type(error).__name__}: {error}\n{printed.out}\n{printed.err}", pytrace=False)


def test_most_blocks_run_and_those_that_do_not_say_why():
    shown = [block for block in BLOCKS if block.language not in SHOWN_ONLY]
    noted = [block for block in shown if block.note]
    for block in noted:
        assert re.fullmatch(r"(not run|parsed only|file): \S.*", block.note), f"{block}: {block.note}"
    spared = [block for block in noted if not block.note.startswith("file: ")]
    assert len(spared) <= len(shown) / 8, [str(block) for block in spared]


def test_every_option_that_is_named_exists():
    known = {name for command in GROUP.commands.values() for each in command.params for name in each.opts}
    known |= {name for command in GROUP.commands.values() for each in command.params for name in each.secondary_opts}
    scripts = "".join(path.read_text() for part in ("benchmarks", "examples") for path in (ROOT / part).rglob("*.py"))
    for page, text in TEXTS.items():
        for option in re.findall(r"`(--[a-z][\w-]*)", text):
            assert option in known | {"--help"} or f'"{option}"' in scripts, f"{page}: {option}"


def test_the_readme_shows_what_the_commands_print(folder, capsys):
    blocks = [block for block in BLOCKS if block.page == "README.md"]
    pairs = [(sh, text) for sh, text in pairwise(blocks) if (sh.language, text.language) == ("sh", "text")]
    assert [command[1] for sh, _ in pairs for command in sh.commands] == ["quantize", "validate"]
    for sh, text in pairs:
        (command,) = sh.commands
        assert main(command[1:]) == 0
        printed = capsys.readouterr().out.replace("median dB", "")  # a column of models whose samples differ much
        missing = set(list_labels(text.code)) - set(list_labels(printed))
        assert missing <= {"QuantizeLinear: entry of the graph: nothing before Add is quantized:"}, printed


def list_labels(table: str) -> list[str]:
    """Lines, and parts of sentences, without numbers and names, which are those of another model."""
    lines = table.replace("; ", "\n").splitlines()
    plain = (re.sub(r"\S*[\d/][\S]*|\(.*\)", "", line).split() for line in lines)
    return list(dict.fromkeys(" ".join(words) for words in plain if words))


def test_the_readme_is_short_and_its_results_are_those_of_the_results_page():
    text, results = TEXTS["README.md"], (ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert text.count("\n") <= MOST_LINES
    cells = re.findall(r"(-?[\d.]+) / (-?[\d.]+) / (-?[\d.]+)", text)
    assert len(cells) == 17
    for agreement, sqnr, top1 in cells:
        row = rf"\| {agreement} \| {sqnr} \| {top1} \||\| {agreement} / {sqnr} / {top1} \|"
        assert re.search(row, results), (agreement, sqnr, top1)


def test_settings_of_a_layer_are_read_as_the_pages_show_them(tmp_path):
    (block,) = (each for each in BLOCKS if each.page == "docs/effort.md" and each.language == "toml")
    (tmp_path / "run.toml").write_text(block.code)
    layers = load_config(tmp_path / "run.toml").layers
    assert layers == {"/layer1/conv1/Conv": LayerConfig(weight_bits=8, activation_bits=8)}


def test_every_dependency_is_given_a_reason():
    listed = re.search(r"install_requires =\n(.*?)\n\n", (ROOT / "setup.cfg").read_text(), flags=re.DOTALL)[1]
    section = TEXTS["CONTRIBUTING.md"].split("## Dependencies")[1].split("\n## ")[0]
    for name in re.findall(r"^ +([\w-]+)", listed, flags=re.MULTILINE):
        assert re.search(rf"\b{name}\b", section), name


def list_anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("docs/")])
def test_every_link_outside_the_site_leads_somewhere(page):
    for link in re.findall(r"\]\(([^):]+)\)", TEXTS[page]):
        name, _, anchor = link.partition("#")
        target = PAGES[page].parent / name if name else PAGES[page]
        assert target.is_file(), link
        assert not anchor or anchor in list_anchors(target.read_text(encoding="utf-8")), link


def test_the_site_builds_without_a_broken_link_and_loads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    for name in (*PAGES, "docs/examples/ci.md"):
        if name.startswith("docs/"):
            assert (tmp_path / name.removeprefix("docs/")).with_suffix(".html").is_file(), name
    page = (tmp_path / "examples/detector.html").read_text(encoding="utf-8")
    assert "The decoding computes coordinates" in page
    reference = (tmp_path / "api.html").read_text(encoding="utf-8")
    headings = set(re.findall(r'<h\d id="onnxcalib\.(?:[\w.]+\.)?(\w+)"', reference))
    assert set(onnxcalib.__all__) - {"__version__"} <= headings
    assert "first_last_bits" in (tmp_path / "settings.html").read_text(encoding="utf-8")
    for path in tmp_path.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)"', path.read_text(encoding="utf-8"))
        assert not loaded, f"{path.name}: {loaded}"


def test_the_manual_page_and_the_completions_are_those_of_the_commands():
    made = runpy.run_path(str(ROOT / "share" / "generate.py"))["make_all"]()
    stale = [name for name, text in made.items() if (ROOT / "share" / name).read_text(encoding="utf-8") != text]
    assert not stale, f"{stale}: run python share/generate.py, and commit what it writes"
    assert all(f".SS {command}\n" in made["man/man1/onnxcalib.1"] for command in GROUP.commands)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["val"], "validate"),
        (["quantize", "--effort", "b"], "balanced best"),
        (["validate", "--mark"], "--markdown"),
        (["quantize", "--pipeline", ""], "light parallel default advanced"),
        (["quantize", "--output", ""], ""),  # bash offers files
    ],
)
def test_bash_completes(words, offered):
    script = (
        'source share/bash-completion/completions/onnxcalib; COMP_CWORD=$#; COMP_WORDS=(onnxcalib "$@"); _onnxcalib;'
        ' echo "${COMPREPLY[*]}"'
    )
    found = subprocess.run(["bash", "-c", script, "bash", *words], cwd=ROOT, capture_output=True, text=True)
    assert (found.stdout.strip(), found.stderr) == (offered, "")
