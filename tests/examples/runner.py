"""As much of GitHub's and of GitLab's runner as action.yml and templates/validate.yml ask for."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 900  # seconds of one step
# Where pip finds packages on this machine.
PIP = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
EXPRESSION = re.compile(r"\$\{\{ *(.*?) *\}\}")
NAME = re.compile(r"'[^']*'|\b[a-z]+(?:\.[\w-]+)+")


@dataclass
class Done:
    """A job that has run: its exit status, what it printed, the steps' outputs, and the actions that it used."""

    status: int = 0
    text: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    used: dict[str, dict[str, str]] = field(default_factory=dict)


def load(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def run_action(given: Mapping[str, str], facts: Mapping[str, str], folder: Path, path: str) -> Done:
    """Run the steps of action.yml in the folder, those behind a failed one only where they are to run always.

    given: the inputs; facts: values such as github.token and steps.python.outputs.python-path, by their names.
    """
    (action,) = load(ROOT / "action.yml")
    assert given.keys() <= action["inputs"].keys()
    assert all(name in given for name, each in action["inputs"].items() if each.get("required"))
    values = dict(facts)
    for name, each in action["inputs"].items():
        values[f"inputs.{name}"] = given.get(name, fill(each.get("default", ""), facts))
    done = Done()
    temp = Path(facts["runner.temp"])
    for step in action["runs"]["steps"]:
        condition = step.get("if", "")
        if (done.status and "always()" not in condition) or (condition and not evaluate(condition, values)):
            continue
        if "uses" in step:
            done.used[step["uses"]] = {name: fill(each, values) for name, each in step["with"].items()}
            continue
        assert step["shell"] == "bash"
        output = temp / "output"
        output.write_text("")
        env = {
            **PIP,
            **{"PATH": path, "HOME": str(temp), "GITHUB_ACTION_PATH": str(ROOT), "GITHUB_OUTPUT": str(output)},
            **{"GITHUB_REPOSITORY": "us/models", "GITHUB_STEP_SUMMARY": str(temp / "summary")},
            **{name: fill(each, values) for name, each in step.get("env", {}).items()},
        }
        status = run_bash(fill(step["run"], values), env, folder, done)
        done.status = done.status or status
        for line in output.read_text().splitlines():
            name, _, value = line.partition("=")
            values[f"steps.{step['id']}.outputs.{name}"] = value
    done.outputs = {name: fill(each["value"], values) for name, each in action["outputs"].items()}
    return done


def evaluate(expression: str, values: Mapping[str, str]) -> Any:
    def look_up(found: re.Match[str]) -> str:
        return found[0] if found[0].startswith("'") else repr(values.get(found[0], ""))

    text = NAME.sub(look_up, expression).replace("always()", "True").replace("&&", " and ").replace("||", " or ")
    return eval(text, {"__builtins__": {}, "format": str.format})


def fill(text: str, values: Mapping[str, str]) -> str:
    def spell(found: re.Match[str]) -> str:
        value = evaluate(found[1], values)
        return str(value).lower() if isinstance(value, bool) else value

    return EXPRESSION.sub(spell, str(text))


def run_bash(script: str, env: Mapping[str, str], folder: Path, done: Done) -> int:
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    found = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=LONGEST)
    done.text += found.stdout + found.stderr
    return found.returncode


def read_component(given: Mapping[str, str]) -> dict[str, Any]:
    """The one job of templates/validate.yml, with these inputs."""
    spec, _ = load(ROOT / "templates" / "validate.yml")
    inputs = spec["spec"]["inputs"]
    assert given.keys() <= inputs.keys()
    assert all(name in given or "default" in each for name, each in inputs.items())
    text = (ROOT / "templates" / "validate.yml").read_text(encoding="utf-8").partition("\n---\n")[2]
    for name, each in inputs.items():
        text = text.replace(f"$[[ inputs.{name} ]]", str(given.get(name, each.get("default"))))
    (job,) = yaml.safe_load(text).values()
    return job


def run_component(job: Mapping[str, Any], folder: Path, path: str) -> Done:
    """Run the script of a job of GitLab in the folder."""
    env = {**PIP, "PATH": path, "HOME": str(folder), "CI_PROJECT_DIR": str(folder)}
    for name, value in job["variables"].items():
        env[name] = re.sub(r"\$(\w+)", lambda found: env[found[1]], value)
    done = Done()
    done.status = run_bash("\n".join(job["script"]), env, folder, done)
    return done


def inherit_path(*folders: Path) -> str:
    """A PATH on which these folders come first."""
    return os.pathsep.join([*map(str, folders), os.environ["PATH"]])
