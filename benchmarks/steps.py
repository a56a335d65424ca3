"""The steps for pipelines from end to end: a new environment, an empty HOME, a sound model and a spoilt one.

    python benchmarks/steps.py [--steps github,gitlab,hook,quantize] [--keep FOLDER] [--json FILE]

Each step installs onnxcalib with pip as its runner would: action.yml and templates/validate.yml with the inputs of
examples/ci, the hook from a clone. ``quantize`` is action.yml with calibration samples, which installs torch; all
others validate a model that is there. Shown are the exit statuses for both models, the size of the environment, the CPU
seconds of the first run, which installs, and of the second, and how many packages of CUDA came along. It exits with 1
where a status is not 0 and 3, or where an environment without torch takes more than 500 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.examples.repository import spoil, write_repository  # noqa: E402
from tests.examples.runner import Done, load, read_component, run_action, run_bash, run_component  # noqa: E402

MOST_MB = 500
EXAMPLES = ROOT / "examples" / "ci"
INPUTS = load(EXAMPLES / "github-actions.yml")[0]["jobs"]["validate"]["steps"][-1]["with"]
GH = '#!/bin/bash\necho "$*" >>{log}\n'


@dataclass
class Row:
    step: str
    statuses: tuple[int, int]
    megabytes: float
    cuda: int
    seconds: tuple[float, float]

    @property
    def holds(self) -> bool:
        return self.statuses == (0, 3) and (self.step == "quantize" or self.megabytes < MOST_MB)


class Place:
    """A folder with a repository, and what a runner has: Python, pip, git and gh, no other package."""

    def __init__(self, folder: Path) -> None:
        self.work, self.temp, commands = folder / "work", folder / "temp", folder / "commands"
        for each in (self.work, self.temp, commands):
            each.mkdir(parents=True)
        write_repository(self.work)
        (commands / "python3").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
        (commands / "gh").write_text(GH.format(log=folder / "gh"))
        (commands / "gh").chmod(0o755)
        self.python, self.path = commands / "python3", f"{commands}:/usr/bin:/bin"

    def github(self, **given: str) -> Done:
        facts = {"runner.temp": str(self.temp), "github.token": "secret", "github.event.pull_request.number": "12"}
        facts["steps.python.outputs.python-path"] = str(self.python)
        return run_action({**INPUTS, **given}, facts, self.work, self.path)

    def gitlab(self, **given: str) -> Done:
        if not (self.work / "tools").exists():
            clone(self.work / "tools" / "onnxcalib")
        return run_component(read_component({**INPUTS, **given}), self.work, self.path)

    def hook(self, **given: str) -> Done:
        if not (self.temp / "hook").exists():
            clone(self.temp / "hook")
        (hook,) = load(ROOT / ".pre-commit-hooks.yaml")[0]
        (used,) = load(EXAMPLES / "pre-commit-config.yaml")[0]["repos"][0]["hooks"]
        done = Done()
        arguments = [given["quantized"] if each == "quantized.onnx" else each for each in used["args"]]
        command = " ".join([str(self.temp / "hook" / hook["entry"]), *arguments])
        env = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        done.status = run_bash(command, {**env, "PATH": self.path, "HOME": str(self.temp)}, self.work, done)
        return done


def clone(folder: Path) -> None:
    """The files that git knows or would add, as a repository of one commit."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    who = ["-c", "user.name=runner", "-c", "user.email=runner@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


def run_timed(run: Callable[..., Done], **given: str) -> tuple[Done, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run(**given)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(step: str, folder: Path, ready: Path) -> Row:
    place = Place(folder)
    model = place.work / INPUTS["quantized"]
    run = {"github": place.github, "gitlab": place.gitlab, "hook": place.hook}.get(step, place.github)
    given = {"quantized": INPUTS["quantized"], "calibration": ""}
    model.parent.mkdir()
    if step == "quantize":
        given["calibration"] = INPUTS["calibration"]
    else:
        shutil.copy(ready, model)
    first, took = run_timed(run, **given)
    print(first.text, file=sys.stderr)
    if first.status == 0:
        spoil(model)
    second, again = run_timed(run, **{**given, "calibration": ""})
    print(second.text, file=sys.stderr)
    (environment,) = folder.rglob("venv")
    size = sum(path.lstat().st_size for path in environment.rglob("*") if path.is_file() and not path.is_symlink())
    cuda = len(list(environment.glob("lib/python3*/site-packages/nvidia*")))
    return Row(step, (first.status, second.status), size / 1e6, cuda, (took, again))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="github,gitlab,hook,quantize")
    parser.add_argument("--keep", type=Path, help="a new folder for all that is made")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    from onnxcalib.cli.main import main as onnxcalib

    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        source, ready = folder / "source", folder / "ready.onnx"
        source.mkdir(parents=True)
        write_repository(source)
        config = str(source / "onnxcalib.toml")
        command = ["quantize", str(source / "float.onnx"), "--calib", str(source / "calibration"), "-o", str(ready)]
        assert onnxcalib([*command, "--config", config, "--quiet"]) == 0
        rows = [measure(step, folder / step, ready) for step in given.steps.split(",")]
    table = Table("step", "sound", "spoilt", "MB", "CUDA", "CPU seconds", "second run", "holds")
    for row in rows:
        sizes = f"{row.megabytes:.0f}", str(row.cuda), *(f"{each:.1f}" for each in row.seconds)
        table.add_row(row.step, *map(str, row.statuses), *sizes, "yes" if row.holds else "NO")
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
