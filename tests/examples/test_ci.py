"""The steps for pipelines as the runners run them, with the examples' inputs, on a model that is made here."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from contextlib import chdir
from pathlib import Path
from xml.etree import ElementTree

import pytest

from onnxcalib.cli.main import main
from tests.examples.repository import spoil, write_repository
from tests.examples.runner import ROOT, Done, inherit_path, load, read_component, run_action, run_bash, run_component
from tests.test_slim_install import ALL, FEW

FOLDER = ROOT / "examples" / "ci"
QUANTIZE = ["quantize", "float.onnx", "--calib", "calibration/"]
REPORTS = {"report.md", "report.xml", "report.html", "report.json"}
GATES = {"max_drop", "min_agreement", "min_sqnr", "max_size_ratio", "max_steps", "max_saturating"}
# In place of python3: the environment that it makes has a pip that notes its arguments, and the command below.
PYTHON = """#!/bin/bash
if [[ $1 == -c ]]; then exec {python} "$@"; fi
mkdir -p "$3/bin"
cp {stubs}/pip "$3/bin/python"
cp {stubs}/onnxcalib "$3/bin/onnxcalib"
"""
PIP = """#!/bin/bash
echo "$*" >>{log}
"""
# quantize takes a file that is ready; validate runs as it stands, without the packages that the step does not install.
COMMAND = """#!/bin/bash
printf '%s\\n' "$*" >>{log}
if [[ $1 == quantize ]]; then cp {ready} "$QUANTIZED_MODEL"; fi
if [[ $1 == validate ]]; then
  exec {python} -c "import sys
for name in {missing}:
    sys.modules[name] = None
from onnxcalib.cli.main import main
from onnxcalib.pages import page
page.load_script = str  # no plotting library, which takes seconds to put together
sys.exit(main())" "$@"
fi
"""
# In place of GitHub's command: comments are files.
GH = """#!/bin/bash
echo "$*" >>{log}
if [[ $2 == user ]]; then echo "${{LOGIN:-}}"; exit {status}; fi
if [[ $* == *--paginate* ]]; then
  if [[ -e {comment} ]]; then echo 7; fi
  exit {status}
fi
for each in "$@"; do if [[ $each == body=@* ]]; then cp "${{each#body=@}}" {comment}; fi; done
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    write_repository(folder)
    return folder


@pytest.fixture(scope="module")
def quantized(repository):
    """What the pipelines' quantize writes."""
    ready = repository.parent / "ready.onnx"
    with chdir(repository):
        assert main([*QUANTIZE, "-o", str(ready), "--config", "onnxcalib.toml"]) == 0
    return ready


class Place:
    """A repository on a runner: stubs of the commands beside it, and what they were given."""

    def __init__(self, folder: Path, repository: Path, ready: Path) -> None:
        self.folder, self.stubs, self.temp = folder / "work", folder / "stubs", folder / "temp"
        shutil.copytree(repository, self.folder)
        self.stubs.mkdir()
        self.temp.mkdir()
        self.log, self.comment = folder / "log", folder / "comment"
        names = {"python": sys.executable, "stubs": self.stubs, "log": self.log, "ready": ready, "status": 0}
        names |= {"comment": self.comment, "missing": sorted({*(ALL.keys() - FEW.keys()), "torchvision"})}
        for name, text in {"python3": PYTHON, "pip": PIP, "onnxcalib": COMMAND, "gh": GH}.items():
            self.write_stub(name, text.format_map(names))

    def write_stub(self, name: str, text: str) -> None:
        (self.stubs / name).write_text(text)
        (self.stubs / name).chmod(0o755)

    def run_action(self, **given: str) -> Done:
        """Run the step of the example for GitHub, with other inputs in place of some."""
        (workflow,) = load(FOLDER / "github-actions.yml")
        step = workflow["jobs"]["validate"]["steps"][-1]
        assert step["uses"] == "./tools/onnxcalib"
        facts = {
            **{"runner.temp": str(self.temp), "github.token": "secret", "github.event.pull_request.number": "12"},
            "steps.python.outputs.python-path": str(self.stubs / "python3"),
        }
        return run_action({**step["with"], **given}, facts, self.folder, inherit_path(self.stubs))

    def read_log(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def place(repository, quantized, tmp_path):
    return Place(tmp_path, repository, quantized)


def test_the_action_passes_a_sound_model_and_fails_a_spoilt_one_with_the_report_in_every_place(place):
    done = place.run_action()
    assert (done.status, done.outputs) == (0, {"status": "0"}), done.text
    reports = place.folder / "onnxcalib-reports"
    assert {path.name for path in reports.iterdir()} == {*REPORTS, "quantized.onnx"}
    suite = ElementTree.parse(reports / "report.xml").find("testsuite")
    assert {case.get("name") for case in suite.findall("testcase")} == GATES and suite.get("failures") == "0"
    text = (reports / "report.md").read_text(encoding="utf-8")
    assert text.startswith("## onnxcalib validate: PASSED\n")
    assert (place.temp / "summary").read_text(encoding="utf-8") == text
    assert place.comment.read_text(encoding="utf-8") == f"<!-- onnxcalib validate: onnxcalib -->\n{text}"
    assert done.used["actions/upload-artifact@v4"]["path"] == "onnxcalib-reports"
    cache = done.used["actions/cache@v4"]
    assert cache["path"] == f"{place.temp}/onnxcalib/pip" and re.fullmatch("onnxcalib-[0-9a-f]{20}", cache["key"])

    spoil(place.folder / "onnxcalib-reports" / "quantized.onnx")
    place.log.unlink()
    done = place.run_action(calibration="")
    assert (done.status, done.outputs) == (3, {"status": "3"}), done.text
    assert "\nFAILED: 3 of 6 gates do not hold: " in done.text
    suite = ElementTree.parse(reports / "report.xml").find("testsuite")
    failed = {case.get("name") for case in suite.findall("testcase") if case.find("failure") is not None}
    assert failed == {"max_drop", "min_agreement", "min_sqnr"}
    failing = (reports / "report.md").read_text(encoding="utf-8")
    assert failing.startswith("## onnxcalib validate: FAILED\n")
    assert (place.temp / "summary").read_text(encoding="utf-8") == text + failing
    assert place.comment.read_text(encoding="utf-8").partition("\n")[2] == failing
    assert "actions/upload-artifact@v4" in done.used and done.used["actions/cache@v4"]["key"] != cache["key"]
    # The comment of the first run is changed; without samples to calibrate with, torch is not installed.
    log = place.read_log()
    assert log[-1].startswith("api --method PATCH repos/us/models/issues/comments/7 ")
    pip = [line for line in log if line.startswith("-m pip")]
    assert [line.rpartition("constraints.txt ")[2] for line in pip] == [
        f"--requirement {ROOT}/requirements-validate.txt",
        f"--no-deps {ROOT}",
    ]


def test_the_component_runs_the_same_commands_and_ends_with_their_status(place, quantized):
    (pipeline,) = load(FOLDER / "gitlab-ci.yml")
    (include,) = pipeline["include"]
    inputs = include["inputs"]
    (workflow,) = load(FOLDER / "github-actions.yml")
    assert inputs == workflow["jobs"]["validate"]["steps"][-1]["with"]
    job = read_component({**inputs, "torch-index": "file:///wheels"})
    (place.folder / "tools").mkdir()
    (place.folder / "tools" / "onnxcalib").symlink_to(ROOT)
    stub = (place.stubs / "onnxcalib").read_text().partition("if [[ $1 == validate")[0]
    place.write_stub("onnxcalib", f"{stub}if [[ $1 == validate ]]; then exit 3; fi\n")
    done = run_component(job, place.folder, inherit_path(place.stubs))
    assert done.status == 3, done.text
    reports = "onnxcalib-reports"
    assert job["artifacts"]["paths"] == [f"{reports}/"] and job["artifacts"]["when"] == "always"
    assert job["artifacts"]["reports"] == {"junit": f"{reports}/report.xml"}
    *pip, version, quantize, validate = place.read_log()
    source = f"{place.folder}/tools/onnxcalib"
    assert [line.rpartition("constraints.txt ")[2] for line in pip] == ["--index-url file:///wheels torch", source]
    assert version == "--version"
    page = f"{reports}/quantize.html"
    options = ["-o", inputs["quantized"], "--html", page, "--config", "onnxcalib.toml"]
    assert quantize == " ".join(["quantize", *QUANTIZE[2:], *options, "--", "float.onnx"])
    assert validate == (
        "validate --data samples/ --labels labels.csv --config onnxcalib.toml"
        f" --junit {reports}/report.xml --markdown {reports}/report.md --html {reports}/report.html"
        f" --json {reports}/report.json -- float.onnx {inputs['quantized']}"
    )


def test_the_component_clones_onnxcalib_where_it_is_no_folder_of_the_repository(place, tmp_path):
    given = {"float": "f", "quantized": "q", "data": "d"}
    job = read_component({**given, "repository": "file:///nowhere", "version": "v1"})
    place.write_stub("git", f'#!/bin/bash\necho "git $*" >>{place.log}\n')
    assert run_component(job, place.folder, inherit_path(place.stubs)).status == 127  # the stub clones nothing
    assert place.read_log() == ["git clone --quiet --depth 1 --branch v1 file:///nowhere tools/onnxcalib"]
    done = run_component(read_component({**given, "repository": "file:///nowhere"}), place.folder, inherit_path())
    assert done.status != 0 and "not in this repository; a tag to clone is needed, as version" in done.text
    job = read_component({**given, "version": "v1"})
    done = run_component(job, place.folder, inherit_path(place.stubs))
    assert done.status != 0 and "tools/onnxcalib is not in this repository, and no other is given" in done.text


@pytest.fixture
def commenting(tmp_path):
    """Runs comment.sh on a report, with a gh of some exit status."""
    log, comment = tmp_path / "log", tmp_path / "comment"

    def run(report: str | None, status: int = 0, **given: str) -> Done:
        if report is not None:
            (tmp_path / "report.md").write_text(report, encoding="utf-8")
        (tmp_path / "gh").write_text(GH.format(log=log, comment=comment, status=status))
        (tmp_path / "gh").chmod(0o755)
        env = {"PATH": inherit_path(tmp_path), "REPORTS": str(tmp_path), "PULL_REQUEST": "12", "STATUS": "3", **given}
        done = Done()
        done.status = run_bash(f"{ROOT}/step/comment.sh", {**env, "GITHUB_REPOSITORY": "us/models"}, tmp_path, done)
        done.outputs = {each.name: each.read_text(encoding="utf-8") for each in (log, comment) if each.exists()}
        return done

    return run


def test_a_long_report_is_cut_for_the_comment_between_two_lines_below_a_word_of_it(commenting):
    line = "a layer — with a name\n"
    done = commenting(f"<details>\n{line * 4000}</details>\n", TITLE='8 bits" --> <b>')
    assert done.status == 0, done.text
    first, word, space, fold, *lines = done.outputs["comment"].splitlines()
    assert first == "<!-- onnxcalib validate: 8 bits_ ___ _b_ -->" and len(done.outputs["comment"]) < 65536
    # A fold that stays open hides all that follows.
    assert word == "This is the start of the report, which is among the files of the run."
    assert (space, fold) == ("", "<details>")
    assert set(lines) == {line.rstrip()} and len(lines) > 2000
    assert " --method POST repos/us/models/issues/12/comments " in done.outputs["log"]


def test_a_comment_that_may_not_be_written_is_a_warning(commenting):
    done = commenting("report", status=1)
    assert done.status == 0 and "::warning title=onnxcalib::the report could not be written" in done.text
    assert "comment" not in done.outputs


@pytest.mark.parametrize(("report", "status"), [(None, "1"), ("## PASSED\n", "")], ids=["no report", "an old report"])
def test_where_nothing_is_judged_an_earlier_comment_says_so_and_none_is_added(commenting, tmp_path, report, status):
    done = commenting(report, STATUS=status)
    assert done.status == 0 and "nothing was judged" in done.text and "comment" not in done.outputs
    (tmp_path / "comment").write_text("PASSED, says an earlier run")
    done = commenting(report, STATUS=status)
    assert done.status == 0 and " --method PATCH repos/us/models/issues/comments/7 " in done.outputs["log"]
    assert "PASSED" not in done.outputs["comment"] and "nothing was judged" in done.outputs["comment"]
    assert 'select(.user.type == "Bot" and (.body | startswith(' in done.outputs["log"]
    assert 'select(.user.login == "ann" and (.body ' in commenting(report, STATUS=status, LOGIN="ann").outputs["log"]


def test_a_run_that_judges_nothing_leaves_no_report_of_an_earlier_one(place):
    reports = place.folder / "onnxcalib-reports"
    reports.mkdir()
    for name in REPORTS:
        (reports / name).write_text("of an earlier run")
    place.write_stub("onnxcalib", "#!/bin/bash\nif [[ $1 != --version ]]; then exit 1; fi\n")
    done = place.run_action()
    assert (done.status, done.outputs) == (1, {"status": "1"}) and not list(reports.iterdir())
    assert not (place.temp / "summary").exists() and not place.comment.exists()


def test_an_input_that_is_missing_is_named_and_is_wrong_usage(place):
    done = place.run_action(data="", artifact="4 bits")
    assert done.used["actions/upload-artifact@v4"]["path"] == "4 bits-reports"
    assert (done.status, done.outputs) == (2, {"status": "2"}) and "error: found no data; it is needed" in done.text
    assert [line for line in place.read_log() if line.startswith(("quantize", "validate"))] == []


def test_the_hook_installs_once_and_gives_its_arguments_to_validate(place, tmp_path):
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "step", clone / "step")
    (hook,) = load(ROOT / ".pre-commit-hooks.yaml")[0]
    assert (hook["language"], hook["pass_filenames"]) == ("script", False)
    place.write_stub("git", f'#!/bin/bash\n[[ -z ${{GIT_DIR:-}} && $2 == {clone} ]] && echo "commit ${{COMMIT}}"\n')
    place.write_stub("onnxcalib", f'#!/bin/bash\necho "$*" >>{place.log}\n[[ $1 == --version ]] || exit 3\n')
    env = {"PATH": inherit_path(place.stubs), "GIT_DIR": ".git", "HOME": str(tmp_path)}
    (example,) = load(FOLDER / "pre-commit-config.yaml")
    (given,) = example["repos"][0]["hooks"]
    assert given["id"] == hook["id"]
    for commit in "112":
        done, command = Done(), shlex.join([str(clone / hook["entry"]), *given["args"]])
        assert run_bash(command, {**env, "COMMIT": commit}, place.folder, done) == 3, done.text
    words = [line.partition(" ")[0] for line in place.read_log()]
    assert words == ["-m", "-m", "--version", "validate", "validate", "-m", "-m", "--version", "validate"]
    assert place.read_log()[3] == f"validate {' '.join(given['args'])}"


def test_the_image_is_made_by_the_script_of_the_steps_and_never_with_cuda_in_it(place, tmp_path):
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("/opt/", f"{tmp_path}/opt/")
    given = dict(re.findall(r"^ARG (\w+)=(.*)$", text, re.MULTILINE))
    install, check = re.findall(r"^RUN (.*)$", text, re.MULTILINE)
    (source,) = re.findall(r"^COPY \. (\S+)$", text, re.MULTILINE)
    # What the installation reads is sent to the builder.
    left_out = (ROOT / ".dockerignore").read_text().split()
    Path(source).mkdir(parents=True)
    for each in {path.name for path in ROOT.iterdir()}.difference(left_out):
        (Path(source) / each).symlink_to(ROOT / each)
    environment = {"PATH": inherit_path(place.stubs), **given, "TORCH_INDEX": "file:///wheels"}
    done = Done()
    assert [run_bash(line, environment, tmp_path, done) for line in (install, check)] == [0, 0], done.text
    *pip, version = place.read_log()
    assert [line.rpartition("constraints.txt ")[2] for line in pip] == ["--index-url file:///wheels torch", source]
    assert version == "--version"
    (tmp_path / "opt/onnxcalib/venv/lib/python3.11/site-packages/nvidia").mkdir(parents=True)
    assert run_bash(check, environment, tmp_path, done) == 1
    assert f"PATH={tmp_path}/opt/onnxcalib/venv/bin:$PATH" in text
