"""Trainers forked from a server that has torch loaded: to load it takes longer than what most of them do.

The server is started with the first trainer and serves this process to its end. A trainer is what a process of its own would be
to all that watches it: a pid, an exit code, a session, and its output line by line. Only its environment in /proc is the
server's.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch.multiprocessing

from ckptd.demo.process import DemoError, Output
from ckptd_client.place import die_with_agent

# torch.optim imports dynamo with the first optimizer.
_PRELOADED = [
    "pytest",  # the main module, which each child would load
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torch._dynamo",
]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_PRELOADED)


class Trainer:
    """``script`` with ``arguments`` and no other environment than this one; handled as a `ckptd.demo.process.Process` is."""

    def __init__(
        self, name: str, script: Path, arguments: Sequence[str], environment: Mapping[str, str], output: Output
    ) -> None:
        self.name = name
        reader, writer = _context.Pipe(duplex=False)
        words = [str(script), *arguments]
        self._process = _context.Process(target=_run, args=(words, dict(environment), writer), daemon=True)
        self._process.start()
        writer.close()
        output.pump(name, _Said(reader, self._process.sentinel))

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, None while it runs. To be asked in one thread only: multiprocessing reads it from a pipe."""
        return self._process.exitcode

    def signal(self, number: signal.Signals) -> None:
        """Send a signal if it still runs."""
        if self.code is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float) -> int:
        """Its exit code. Raises DemoError when it doesn't end in time."""
        self._process.join(seconds)
        if self.code is None:
            raise DemoError(f"{self.name} did not end within {seconds:.0f} s pid={self.pid}")
        return self.code


def together(function: Callable[..., None], arguments: Sequence[object], count: int, seconds: float = 120.0) -> None:
    """``function(rank, *arguments)`` in so many processes of their own, to their end. Raises what one of them raises."""
    give_up_at = time.monotonic() + seconds
    ranks = torch.multiprocessing.start_processes(  # type: ignore[no-untyped-call]
        _rank, (function, tuple(arguments), dict(os.environ)), count, join=False, start_method="forkserver"
    )
    try:
        while not ranks.join(max(0.0, give_up_at - time.monotonic())):
            assert time.monotonic() < give_up_at, f"{function.__module__} did not end within {seconds:.0f} s"
    finally:
        for process in ranks.processes:
            process.kill()


def _rank(rank: int, function: Callable[..., None], arguments: tuple[object, ...], environment: dict[str, str]) -> None:
    _become(environment)
    function(rank, *arguments)


def _become(environment: Mapping[str, str]) -> None:
    """The server has the environment of the test that happened to start it."""
    die_with_agent()  # the server, which ends with the process that has started it
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)  # OMP_NUM_THREADS was read when torch was loaded


class _Said:
    """What `Output` reads: the lines, and then the end."""

    def __init__(self, reader: Connection, sentinel: int) -> None:
        self._sentinel = os.dup(sentinel)
        self.stdout = open(os.dup(reader.fileno()), errors="replace")  # noqa: SIM115
        reader.close()

    def wait(self) -> None:
        wait([self._sentinel])
        os.close(self._sentinel)
        self.stdout.close()


def _run(words: list[str], environment: dict[str, str], writer: Connection) -> None:
    os.setsid()
    for descriptor in (1, 2):
        os.dup2(writer.fileno(), descriptor)
    writer.close()
    _become(environment)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
