"""The machine that figures are taken on, and whether it is quiet."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

NOISY_CORES = 0.5
_LOOK_SECONDS = 1.0


def machine() -> dict[str, object]:
    """What it is, and what others do on it just before a figure is taken.

    The load average still has the figure before in it, so what is busy now is measured besides.
    """
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "kernel": ".".join(platform.release().split(".")[:2]),
        "python": platform.python_version(),
        "torch": version("torch"),
        "load_average_before": os.getloadavg()[0],
        "busy_cores_before": _busy_cores(),
    }


def _busy_cores() -> float:
    """How many cores others keep busy, over a second."""
    before, begun = _busy_seconds(), time.monotonic()
    time.sleep(_LOOK_SECONDS)
    return (_busy_seconds() - before) / (time.monotonic() - begun)


def _busy_seconds() -> float:
    """CPU seconds of all processes since boot."""
    user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
