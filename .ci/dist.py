"""Build the sdist and the wheel, check them, and use the wheel in an empty environment: make dist.

The wheel is built from the sdist, so that whatever the wheel has the sdist has too. The environment gets what validate
needs and no more; the command, its reports' templates and its manual page are looked for there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"onnxcalib": ROOT / "onnxcalib", "onnxcalib/cli": ROOT / "cli"}


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """What the command prints; its fault ends this script, with all that it said."""
    # A folder that is not the repository must not find the repository's packages.
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def list_files(folder: Path) -> set[str]:
    """The files of a folder, without what Python makes of them."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    return {path.relative_to(folder).as_posix() for path in files}


def check_names(wheel: Path) -> int:
    """Compare the wheel's files with the project's, and return their number."""
    wanted = {f"{package}/{name}" for package, folder in PACKAGES.items() for name in list_files(folder)}
    found = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    shared = {name.partition("/data/share/")[2] for name in found if ".data/data/share/" in name}
    found = {name for name in found if ".dist-info/" not in name and ".data/" not in name}
    if found != wanted:
        sys.exit(f"{wheel.name}: lacks {sorted(wanted - found)}, has {sorted(found - wanted)} too; see setup.cfg")
    if shared != (wanted := list_files(ROOT / "share") - {"generate.py"}):
        sys.exit(f"{wheel.name}: share/ has {sorted(shared)}, {sorted(wanted)} are wanted; see setup.cfg")
    return len(found) + len(shared)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        built, home = Path(folder) / "dist", Path(folder) / "home"
        run(sys.executable, "-m", "build", "--outdir", built, ROOT)
        (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
        run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
        print(f"{wheel.name}: {check_names(wheel)} files, {wheel.stat().st_size:,} bytes")
        run(sys.executable, "-m", "venv", home)
        python, pip = (
            home / "bin" / "python",
            ("-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"),
        )
        run(python, *pip, "-c", ROOT / "constraints.txt", "-r", ROOT / "requirements-validate.txt")
        run(python, *pip, "--no-deps", wheel)
        away = Path(folder)
        where = run(python, "-c", "import onnxcalib; print(onnxcalib.__file__, onnxcalib.ValidateConfig)", cwd=away)
        version = run(home / "bin" / "onnxcalib", "--version", cwd=away)
        assert str(home) in where and version.split()[1] in wheel.name, (where, version)
        assert "--markdown" in run(home / "bin" / "onnxcalib", "validate", "--help", cwd=away)
        assert "qnn" in run(home / "bin" / "onnxcalib", "targets", cwd=away)
        page = (home / "share" / "man" / "man1" / "onnxcalib.1").read_text(encoding="utf-8")
        assert version.strip() in page.splitlines()[1]
        size = sum(path.stat().st_size for path in home.rglob("*") if path.is_file() and not path.is_symlink())
        print(f"in an empty environment of {size / 1e6:.0f} MB: {version.strip()}")


if __name__ == "__main__":
    main()
