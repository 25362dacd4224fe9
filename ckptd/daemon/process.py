"""Which process a pidfd stands for, and whether a process that an earlier daemon knew still lives."""

from __future__ import annotations

import asyncio
import os
from enum import Enum


class Life(Enum):
    """What is certain about a process."""

    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"


def process_identity(pidfd: int) -> str:
    """A name for the process behind a pidfd that no other process of this node's life shares, as far as the kernel tells.

    From Linux 6.9 on a pidfd's inode is the process's own; before, only the pid tells.
    """
    with open(f"/proc/self/fdinfo/{pidfd}") as info:
        pid = next((line.split()[1] for line in info if line.startswith("Pid:")), "-1")
    return f"{pid}.{os.fstat(pidfd).st_ino}"


def pid_namespace() -> int:
    """Which processes our pids name."""
    return os.stat("/proc/self/ns/pid").st_ino


def find_process(process: str, namespace: int) -> tuple[Life, int]:
    """(whether the process that was called ``process`` in ``namespace`` lives, its pidfd or -1).

    In another namespace (a container that was started again) pids say nothing: UNKNOWN.
    """
    pid, _, inode = process.partition(".")
    if namespace != pid_namespace() or not pid.isdigit() or int(pid) < 1:
        return Life.UNKNOWN, -1
    try:
        pidfd = os.pidfd_open(int(pid))
    except ProcessLookupError:
        return Life.GONE, -1
    except OSError:
        return Life.UNKNOWN, -1
    if str(os.fstat(pidfd).st_ino) != inode:
        os.close(pidfd)
        return Life.GONE, -1  # its pid is another's by now
    return Life.ALIVE, pidfd


class Exit:
    """Watches a pidfd, which it owns, until its process has ended. ``event`` is set then."""

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self.event = asyncio.Event()
        self._loop.add_reader(pidfd, self._ended)

    def _ended(self) -> None:
        self.cancel()
        self.event.set()

    def cancel(self) -> None:
        """Stop watching."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
