"""How much memory this process takes, has taken at most, and may take."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# Files in which Linux says how much memory a container may take, and how much it takes; of cgroups 2 and 1.
LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
MEMINFO, STATM = "/proc/meminfo", "/proc/self/statm"
# Pages of files that the system takes back when memory is short, by their names in a container's memory.stat.
CACHED = ("inactive_file", "total_inactive_file")
# What sets, for glibc, the free bytes above which these are given back at once.
TRIM_VARIABLE = "MALLOC_TRIM_THRESHOLD_"
# Options of mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD: the most to which glibc raises each by itself where no
# variable says otherwise, and its value without that; 0: the variable's.
MALLOC_OPTIONS = {-3: (2**25, 2**17), -1: (2**26, 0)}
# Those by ``keep_freed``, by their ids.
_owners = set[int]()
# Others need some of what is free now, too.
SHARE_OF_FREE = 0.8


def find_free() -> int:
    """SHARE_OF_FREE of the memory that the machine, or the container, has free.

    Read from the system's own files, as psutil does, which does not read those of containers.
    """
    free = [_read_available()]
    for limit, usage, details in LIMITS:
        with suppress(OSError, ValueError):
            free.append(int(_read(limit)) - int(_read(usage)) + _read_cached(details))
            break
    return max(0, int(SHARE_OF_FREE * min(free)))


def release() -> None:
    """Give back to the system what was freed between what is held, which glibc otherwise keeps.

    To map every large block by itself, as glibc can be told to, costs three times as much for zeroed pages.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_freed(owner: object) -> None:
    """Let glibc keep what is freed, up to the sizes that it comes to by itself, as long as there is the ``owner``.

    Dask starts workers with TRIM_VARIABLE, with which every large block is mapped by itself: solving took twice the
    time. Behind the last owner glibc does as before; behind each task that took three times as many page faults.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    before = os.environ.get(TRIM_VARIABLE, "")
    if set_option is None or not before.isdecimal() or id(owner) in _owners:
        return
    _owners.add(id(owner))
    for option, (kept, _) in MALLOC_OPTIONS.items():
        set_option(option, kept)
    weakref.finalize(owner, _give_back, set_option, id(owner), int(before)).atexit = False


def _give_back(set_option: Callable[[int, int], int], owner: int, before: int) -> None:
    _owners.remove(owner)
    if not _owners:
        for option, (_, usual) in MALLOC_OPTIONS.items():
            set_option(option, usual or before)
        release()


def measure_resident() -> int:
    """Bytes that this process has in memory now; 0 where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        return int(_read(STATM).split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def measure_peak() -> int:
    """The most bytes that this process has had in memory, files that it maps included."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2) of the two systems
    return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, measure_resident())


def _read_available() -> int:
    with suppress(OSError, ValueError):
        for line in _read(MEMINFO).splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _read_cached(path: str) -> int:
    entries = dict(line.split(maxsplit=1) for line in _read(path).splitlines() if " " in line)
    return next((int(entries[name]) for name in CACHED if name in entries), 0)


def _read(path: str) -> str:
    return Path(path).read_text(encoding="ascii").strip()
