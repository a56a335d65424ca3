"""Which processor this is, and how many cores of it this process may use; workers know without torch."""

from __future__ import annotations

import hashlib
import math
import os
import platform
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


def describe_processor() -> str:
    """The name of the processor and a digest of its features, on which the last bits of floating-point sums depend."""
    facts: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip().lower(), value.strip())
    features = hashlib.sha256((facts.get("flags") or facts.get("features", "")).encode()).hexdigest()[:8]
    return f"{platform.machine()} {facts.get('model name', platform.processor())} {features}"
