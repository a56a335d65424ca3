"""How much memory a run may take: what its user says, or most of what the machine has free."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
MEMINFO = "/proc/meminfo"
# Pages of files that the system takes back when memory is short, by their names in a container's memory.stat.
CACHED = ("inactive_file", "total_inactive_file")
# Others need some of what is free now, too.
SHARE_OF_FREE = 0.8
# The weights of a part are held mapped, perhaps as a copy that onnxruntime packed, and as floats that integers become.
PART_SHARE = 8
# Larger parts are no faster: opening one takes milliseconds.
MOST_PART_BYTES = 2**29

_given: int | None = None


@contextmanager
def limited(most: int | None) -> Iterator[None]:
    """Let sessions keep to so many bytes while this lasts; None is what the machine has free."""
    global _given
    before, _given = _given, most
    try:
        yield
    finally:
        _given = before


def find_budget() -> int:
    """Bytes that this process may take."""
    return find_free() if _given is None else _given


def most_part_bytes() -> int:
    """Bytes of weights that a session may hold at once; those of larger models run part by part."""
    return min(MOST_PART_BYTES, find_budget() // PART_SHARE)


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
