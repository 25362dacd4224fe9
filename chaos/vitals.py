"""What a process holds, as the kernel tells it, and whether that grows."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Vitals:
    """One look at a process. ``private_bytes``: anonymous memory that is its own; shared memory is counted by its files."""

    private_bytes: int
    fds: int
    threads: int
    children: int


def look(pid: int) -> Vitals:
    """Raises OSError when the process is gone."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    anonymous = next(int(line.split()[1]) for line in rollup if line.startswith("Pss_Anon:"))
    tasks = os.listdir(f"/proc/{pid}/task")
    children = sum(len(Path(f"/proc/{pid}/task/{task}/children").read_text().split()) for task in tasks)
    return Vitals(anonymous << 10, len(os.listdir(f"/proc/{pid}/fd")), len(tasks), children)


def held(directory: Path) -> tuple[int, int]:
    """(files, bytes reserved in them) of a directory of shared memory."""
    files = [path.stat() for path in directory.iterdir() if path.is_file()]
    return len(files), sum(status.st_blocks * 512 for status in files)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The median of the slopes between all pairs of points (Theil and Sen): one step up, as of a heap that grew once, or a
    few odd points don't move it, a steady growth does."""
    return statistics.median((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2) if x1 != x2)
