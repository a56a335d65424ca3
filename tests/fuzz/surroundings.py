"""Surroundings that a run does not expect: streams, disks, paths that lead elsewhere, outputs over inputs."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Sequence

from hypothesis import strategies as st

from tests.fuzz.bases import BASES
from tests.fuzz.case import Case, Edit, surrounding
from tests.fuzz.edits import spell

STREAMS = {"stdin": 0, "stdout": 1, "stderr": 2}
CAPABILITIES = 0x20080522  # version 3 of the structure of capset(2)


@surrounding
def stdin(how: str) -> None:
    _change_stream("stdin", how)


@surrounding
def stdout(how: str) -> None:
    _change_stream("stdout", how)


@surrounding
def stderr(how: str) -> None:
    _change_stream("stderr", how)


def _change_stream(name: str, how: str) -> None:
    """Close a stream, or make it one whose disk is full, whose reader has gone or that never gives anything."""
    number = STREAMS[name]
    if how == "closed":
        os.close(number)
        return
    reading, writing = os.pipe()
    descriptor = {"gone": writing, "silent": reading}.get(how, -1)
    if how == "gone":
        os.close(reading)
    if how == "full":
        descriptor = os.open("/dev/full", os.O_RDWR)
    os.dup2(descriptor, number)


@surrounding
def disk(size: int) -> None:
    """No file may become larger than this, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


@surrounding
def descriptors(most: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@surrounding
def environment(name: str, value: str | None) -> None:
    """Set or unset a variable."""
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = spell(value)


@surrounding
def rights() -> None:
    """Give up the superuser's, so that permissions of files count."""
    header = (ctypes.c_uint32 * 2)(CAPABILITIES, 0)
    ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)())


@surrounding
def folder_gone() -> None:
    """Run in a folder that has been removed."""
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")


Values = Sequence[tuple[object, ...]]
STREAM_FAULTS: Values = (
    *(("stdout", how) for how in ("closed", "full", "gone")),
    *(("stderr", how) for how in ("closed", "full", "gone")),
    *(("stdin", how) for how in ("closed", "silent", "gone")),
)
ROOM_FAULTS: Values = (
    *(("disk", size) for size in (0, 1, 100, 1000, 2000, 5000)),
    *(("environment", "TMPDIR", value) for value in (None, "nowhere", "mlp.npy", "", "~long", "/proc", "/dev/null")),
    *(("environment", "HOME", value) for value in (None, "", "nowhere", "/dev/null", "/proc/1")),
    *(("environment", "XDG_CACHE_HOME", value) for value in (None, "", "nowhere/x", "/dev/null", "mlp.npy", "/proc")),
    *(("descriptors", most) for most in (20, 40)),
    *(("environment", name, "x") for name in ("COLUMNS", "LINES", "TERM", "OMP_NUM_THREADS")),
    ("environment", "COLUMNS", "1"),
    ("environment", "NO_COLOR", "1"),
)
# With these a new interpreter starts, as they count at its start.
ASCII: Values = (
    ("environment", "LC_ALL", "C"),
    ("environment", "PYTHONUTF8", "0"),
    ("environment", "PYTHONCOERCECLOCALE", "0"),
)
KINDS = ("pipe", "socket", "folder", "nothing", "loop", "zeros", "null", "dangling", "memory")
# Base, and a path inside of a folder that it reads.
INNER = (
    ("images", "images/4.png"),
    ("images", "images/0.png"),
    ("folder", "arrays/1.npy"),
    ("tests", "testdata/test_data_set_1"),
    ("tests", "testdata/test_data_set_1/input_0.pb"),
    ("classes", "classes/a/0.png"),
    ("classes", "classes/c"),
)
OUTPUT_OF = {
    "quantize": ("--output", "--report"),
    "calibrate": ("--output",),
    "plan": ("--output",),
    "validate": ("--json", "--junit", "--markdown"),
    "inspect": ("--json", "--html"),
}
PLACES = (
    "",
    ".",
    "..",
    "/",
    "work",
    "~long",
    "a\0b",
    "nowhere/out",
    "pipe",
    "loop",
    "hard",
    "soft",
    "old",
    "null",
    "./old",
    "mlp.npy/x",
)
LINKS = {"hard": ("link", True), "soft": ("link", False)}
NAMES = (
    "ä漢.npy",
    "a b.npy",
    "-x.npy",
    "[bold].npy",
    "a\nb.npy",
    "\x1b[31m.npy",
    "\udcff.npy",
    "x" * 250 + ".npy",
    "%s.npy",
    "mlp.NPY",
)


def _streams() -> st.SearchStrategy[Case]:
    around = st.lists(st.sampled_from(STREAM_FAULTS), min_size=1, max_size=2, unique_by=lambda each: each[0]).map(tuple)
    options = st.sampled_from(((), (), ("--quiet",), ("--help",), ("--nonsense",), ("--version",), ("--samples", "0")))
    bases = st.sampled_from(("mlp", "calibrate", "plan", "validate", "images"))
    return st.builds(_put_around, st.just("streams"), bases, around, options)


def _put_around(
    generator: str, base: str, around: tuple[tuple[object, ...], ...], options: tuple[str, ...] = ()
) -> Case:
    return Case(generator, base, options=options, around=around)


def _room() -> st.SearchStrategy[Case]:
    around = st.lists(st.sampled_from(ROOM_FAULTS), min_size=1, max_size=2, unique_by=lambda each: each[:-1]).map(tuple)
    return st.builds(
        _put_around, st.just("room"), st.sampled_from(("mlp", "npz", "plan", "validate", "tests", "encoder")), around
    )


def _fresh() -> st.SearchStrategy[Case]:
    """Runs in an interpreter of their own: a locale without letters beyond ASCII, and streams closed from the start."""
    renamed = st.sampled_from(NAMES[:5]).map(lambda name: _rename(name, fresh=True))
    streams = st.sampled_from(STREAM_FAULTS).map(lambda one: Case("fresh", "mlp", around=(one,), fresh=True))
    return st.one_of(renamed, streams)


def _rename(name: str, *, fresh: bool) -> Case:
    """Samples of another name, given by the option that comes last and so counts."""
    around = tuple(ASCII) if fresh else ()
    options = (f"--calib={name}",)
    return Case("fresh" if fresh else "paths", "mlp", (Edit("move", "mlp.npy", (name,)),), options, around, fresh=fresh)


def _paths() -> st.SearchStrategy[Case]:
    """Something else in place of a file that a run reads, or a name that is none."""

    def replace(base: str) -> st.SearchStrategy[Case]:
        change = st.builds(
            lambda file, kind: Case("paths", base, (Edit("become", file, (kind,)),), refused=file != "settings.toml"),
            st.sampled_from(BASES[base].files),
            st.sampled_from(KINDS),
        )
        locked = st.builds(
            lambda file, mode: Case("paths", base, (Edit("allow", file, (mode,)),), around=(("rights",),)),
            st.sampled_from(BASES[base].files),
            st.sampled_from((0, 0o111, 0o222, 0o444)),
        )
        return st.one_of(change, change, locked)

    inner = st.builds(
        lambda place, kind: Case("paths", place[0], (Edit("become", place[1], (kind,)),)),
        *map(st.sampled_from, (INNER, KINDS)),
    )
    names = (
        "",
        "~long",
        "a\0b",
        "\udcff",
        "-",
        "/",
        ".",
        "/dev/zero",
        "/dev/null",
        "/proc/self/mem",
        "mlp.npy/x",
        "\x1b[31m",
        "~" + "/" * 3,
    )
    options = ("--calib", "--config", "--plan", "--ranges", "--tokenizer")
    named = st.builds(
        lambda option, name: Case("paths", "mlp", options=(f"{option}={name}",)),
        st.sampled_from(options),
        st.sampled_from(names),
    )
    renamed = st.sampled_from(NAMES).map(lambda name: _rename(name, fresh=False))
    gone = st.just(Case("paths", "mlp", around=(("folder_gone",),)))
    return st.one_of(st.sampled_from(sorted(BASES)).flatmap(replace), inner, named, renamed, gone)


def _outputs() -> st.SearchStrategy[Case]:
    """Outputs over what a run reads, directly and by links, and where nothing can be written."""

    def make(base: str, over: str, place: str, number: int) -> Case:
        command = BASES[base].command
        options = OUTPUT_OF[command[0]]
        read = BASES[base].files[number % len(BASES[base].files)]
        made = {
            "hard": Edit("link", "hard", (read, True)), "soft": Edit("link", "soft", (read, False)),
            "pipe": Edit("become", "pipe", ("pipe",)), "loop": Edit("become", "loop", ("loop",)),
            "null": Edit("become", "null", ("null",)), "old": Edit("write", "old", ("old",)),
        }  # fmt: skip
        if over == "input":
            return Case("outputs", base, options=(f"{options[number % len(options)]}={read}",), refused=True)
        if over == "inside":
            place = f"{read}/out"
        edits = (made[place],) if place in made else ()
        refused = place in ("hard", "soft", "pipe", "loop", "null") and not (place == "hard" and "." not in read)
        return Case("outputs", base, edits, (f"{options[number % len(options)]}={place}",), refused=refused)

    over = st.sampled_from(("input", "inside", "place", "place", "place"))
    made = st.builds(make, st.sampled_from(sorted(BASES)), over, st.sampled_from(PLACES), st.integers(0, 5))
    locked = st.builds(
        lambda base, mode: Case("outputs", base, (Edit("allow", ".", (mode,)),), around=(("rights",),)),
        st.sampled_from(("mlp", "plan", "validate", "calibrate", "external")), st.sampled_from((0o555, 0o444, 0o000)),
    )  # fmt: skip
    twice = st.sampled_from(("mlp", "validate")).map(
        lambda base: Case(
            "outputs",
            base,
            options=tuple(f"{option}=same" for option in OUTPUT_OF[BASES[base].command[0]]),
            refused=True,
        )
    )
    return st.one_of(made, made, made, locked, twice)


GENERATORS: dict[str, st.SearchStrategy[Case]] = {
    "streams": _streams(),
    "room": _room(),
    "paths": _paths(),
    "outputs": _outputs(),
}
FRESH = {"fresh": _fresh()}
