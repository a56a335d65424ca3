"""How many cores this process may use; torch is not needed to know, and workers start without it."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

# Files in which Linux says how many microseconds of each period a container may compute.
QUOTAS = ("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def count_cores() -> int:
    """The number of cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found: list[str] = []
    for path in QUOTAS:
        with suppress(OSError):
            found += Path(path).read_text(encoding="ascii").split()
    quota, period = (int(each) if each.isdecimal() else 0 for each in [*found, "", ""][:2])
    return min(cores, math.ceil(quota / period)) if quota and period else cores
