"""Child processes whose output is read line by line, and that leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptd.errors import CkptdError

_LINES = 100_000
_ASK_SECONDS = 0.2


class DemoError(CkptdError):
    """The demo could not do what it set out to do."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of output and when it came, in seconds of the monotonic clock."""

    seconds: float
    source: str
    text: str

    @property
    def event(self) -> dict[str, object]:
        """The fields of a structured log line; empty for any other."""
        try:
            fields = json.loads(self.text)
        except ValueError:
            return {}
        return fields if isinstance(fields, dict) else {}


class Output:
    """All lines of all processes, in the order of their coming; waiting for one has a deadline."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lines: list[Line] = []
        self._dropped = 0
        self._ended: set[str] = set()
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[Line]:
        return iter(self.since(0))

    def __len__(self) -> int:
        """How many lines have come: where `since` goes on."""
        with self._changed:
            return self._dropped + len(self._lines)

    def since(self, count: int) -> list[Line]:
        """All lines but the first ``count``."""
        with self._changed:
            return self._lines[max(0, count - self._dropped) :]

    def pump(self, source: str, process: subprocess.Popen[str]) -> None:
        """Read a process's output in a thread until its end; a copy goes into a log file."""
        threading.Thread(target=self._pump, args=(source, process), name=f"pump-{source}", daemon=True).start()

    def _pump(self, source: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with (self._directory / f"{source}.log").open("a") as log:
            for text in process.stdout:
                log.write(text)
                log.flush()
                with self._changed:
                    self._lines.append(Line(time.monotonic(), source, text.rstrip("\n")))
                    if len(self._lines) > 2 * _LINES:
                        self._dropped += _LINES
                        del self._lines[:_LINES]
                    self._changed.notify_all()
        process.wait()  # its output ends a moment before it does; who waits for its exit code is not asked again
        with self._changed:
            self._ended.add(source)
            self._changed.notify_all()

    def ended(self, source: str) -> bool:
        """Whether all that a process wrote has been read."""
        return source in self._ended

    def count(self, source: str, text: str) -> int:
        """How many lines of ``source`` have ``text`` in them."""
        return sum(1 for line in self if line.source == source and text in line.text)

    def wait_for(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until ``condition`` holds; it is asked after every line, and now and then, as no line may tell of what it asks.

        Raises DemoError after ``seconds``.
        """
        give_up_at = time.monotonic() + seconds
        with self._changed:
            while not condition():
                left_seconds = give_up_at - time.monotonic()
                if left_seconds <= 0:
                    last = "\n".join(f"  {line.source}: {line.text}" for line in self._lines[-15:])
                    raise DemoError(
                        f"after {seconds:.0f} s still waiting for {what}; the logs are in {self._directory}\n{last}"
                    )
                self._changed.wait(min(left_seconds, _ASK_SECONDS))


# Runs before the command, in its process: the kernel sends it SIGTERM when its parent ends, however that comes about.
_FOLLOWER = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG, which outlives exec
os.getppid() == int(sys.argv[1]) or sys.exit("its parent is gone already")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Process:
    """One child process in a session of its own. It is told to end when this process, or the thread that starts it, does."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], output: Output) -> None:
        self.name = name
        self._popen = subprocess.Popen(
            [sys.executable, "-ISc", _FOLLOWER, str(os.getpid()), *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        output.pump(name, self._popen)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def code(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._popen.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal if it still runs."""
        if self._popen.poll() is None:
            self._popen.send_signal(number)

    def wait(self, seconds: float) -> int:
        """Its exit code. Raises DemoError when it doesn't end in time."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise DemoError(f"{self.name} did not end within {seconds:.0f} s pid={self.pid}") from error

    def stop(self, seconds: float = 20.0) -> None:
        """SIGTERM, then SIGKILL."""
        self.signal(signal.SIGTERM)
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


def pids_with(variable: str, value: str) -> list[int]:
    """All processes started with this environment variable: what belongs to one node, whoever its parent is by now."""
    wanted = f"{variable}={value}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                environment = Path(f"/proc/{entry}/environ").read_bytes()
                dead = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
            except OSError:
                continue  # it ended just now, or is somebody else's
            if wanted in environment.split(b"\0") and not dead:
                found.append(int(entry))
    return found


def kill_all(variable: str, value: str, seconds: float = 10.0) -> list[int]:
    """SIGKILL every process with this variable, and wait until none is left. Returns the pids that were killed."""
    killed: list[int] = []
    deadline = time.monotonic() + seconds
    while alive := pids_with(variable, value):
        if time.monotonic() > deadline:
            raise DemoError(f"processes outlive SIGKILL pids={alive}")
        for pid in alive:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            if pid not in killed:
                killed.append(pid)
        time.sleep(0.01)
    return killed
