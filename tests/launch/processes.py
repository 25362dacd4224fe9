"""Starting launchers in sessions of their own, reading what they print, and seeing that nothing is left of them."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Launched:
    """A launcher whose lines can be waited for."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.seen: list[str] = []
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip())

    def line(self, pattern: str, seconds: float = 90.0) -> re.Match[str]:
        """The next line that matches; lines before it are passed over."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                text = self._lines.get(timeout=max(deadline - time.monotonic(), 0.01))
            except queue.Empty:
                raise AssertionError(f"no line like {pattern!r}; it said:\n" + "\n".join(self.seen[-60:])) from None
            self.seen.append(text)
            if match := re.search(pattern, text):
                return match

    def wait(self, seconds: float = 90.0) -> int:
        """Its exit code."""
        return self.process.wait(seconds)

    def left(self) -> list[int]:
        """Living processes of its session."""
        return [pid for pid, session, state in _processes() if session == self.process.pid and state != "Z"]

    def end(self) -> None:
        """Kill what is left, process by process."""
        for pid in self.left():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait(10)


def _processes() -> Iterator[tuple[int, int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            yield int(entry.name), int(fields[3]), fields[0]


def alive(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    return any(other == pid and state != "Z" for other, _, state in _processes())


def until(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Poll until ``condition()`` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


@contextmanager
def launched(arguments: list[str], **environment: str) -> Iterator[Launched]:
    """`python <arguments>` with these additions to the environment; all of it is gone afterwards."""
    full = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    program = Launched([sys.executable, *arguments], full)
    try:
        yield program
    finally:
        program.end()
