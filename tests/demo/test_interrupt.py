"""Whoever ends the demo early finds nothing left of it: no process, no shared memory."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ckptd.demo.process import pids_with
from tests.launch.processes import launched

SCRIPT = Path(__file__).with_name("small_gpt.py")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left(tmp_path_factory: pytest.TempPathFactory, number: signal.Signals) -> None:
    directory = tmp_path_factory.mktemp("d")  # short: sockets lie in it
    environment = {**os.environ, "TMPDIR": str(directory), "COLUMNS": "250", "OMP_NUM_THREADS": "1"}
    with launched(["-m", "ckptd", "demo", "--steps", "400", "--every", "200", "--script", str(SCRIPT)], **environment) as demo:
        demo.line("an undisturbed run first")
        if number == signal.SIGINT:
            demo.process.send_signal(number)
        else:
            demo.line("undisturbed: loss", 120)
            demo.line("two nodes train together", 60)
            demo.process.send_signal(number)
        code = demo.wait(90)
    assert code != 0
    assert pids_with("TMPDIR", str(directory)) == []
    [place] = directory.glob("ckptd-demo-*")
    assert list(Path("/dev/shm").glob(f"{place.name}*")) == []
    assert "Traceback" not in "\n".join(demo.seen)
