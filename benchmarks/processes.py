"""What processes hold in memory and use of the CPU, by the kernel's own account."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Memory:
    """Proportional set size, and how much of it is shared memory: a page that n processes map counts 1/n in each."""

    pss_bytes: int
    shared_bytes: int


def memory(pids: Iterable[int]) -> Memory:
    """The sum over processes; those that have ended count nothing."""
    pss = shared = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        fields = {line.split()[0]: int(line.split()[1]) * 1024 for line in text.splitlines()[1:]}
        pss += fields["Pss:"]
        shared += fields["Pss_Shmem:"]
    return Memory(pss, shared)


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU that processes have used since they began, all their threads, in a resolution of 10 ms; ended ones count nothing."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])  # user, system; the name before may have spaces
    return ticks / os.sysconf("SC_CLK_TCK")
