"""Whoever ends the demo early finds nothing left of it: no process, no shared memory."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from ckptd.demo.cluster import memory_prefix
from ckptd.demo.process import pids_with
from tests.launch.processes import launched

SCRIPT = Path(__file__).with_name("small_gpt.py")


def said_of(pid: int) -> str:
    """What a process is, and what it waits for."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        status = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(("State", "PPid"))]
        return f"{pid} {command[:300]} {' '.join(status)} {Path(f'/proc/{pid}/wchan').read_text()}"
    except OSError:
        return f"{pid} which has ended just now"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left(tmp_path_factory: pytest.TempPathFactory, number: signal.Signals) -> None:
    directory = tmp_path_factory.mktemp("d")  # short: sockets lie in it
    environment = {**os.environ, "TMPDIR": str(directory), "COLUMNS": "250", "OMP_NUM_THREADS": "1"}
    command = ["-m", "ckptd", "demo", "--nodes", "2", "--steps", "100", "--every", "50", "--script", str(SCRIPT)]
    with launched(command, **environment) as demo:
        demo.line("an undisturbed run first")
        if number == signal.SIGINT:
            demo.process.send_signal(number)
        else:
            demo.line("undisturbed: loss", 120)
            demo.line("two nodes train together", 60)
            demo.process.send_signal(number)
        code = demo.wait(90)
    assert code != 0
    # After SIGKILL the kernel tells its children, and they end in order; else only their own children may still be ending.
    deadline = time.monotonic() + 60
    while pids_with("TMPDIR", str(directory)) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [said_of(pid) for pid in pids_with("TMPDIR", str(directory))]
    assert left == []
    [place] = directory.glob("ckptd-demo-*")
    assert list(Path("/dev/shm").glob(f"{memory_prefix(place)}*/*.arena")) == []
    assert "Traceback" not in "\n".join(demo.seen)
