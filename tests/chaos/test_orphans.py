"""`ckptd-run` by itself, with a real daemon and coordinator of its own: however it ends, nothing is left."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.scene import TRAINER, until
from ckptd.demo.process import Output, Process, kill_all, pids_with

GONE_SECONDS = 30.0


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[Path]:
    """The daemon's socket; whatever carries it in its environment is ours."""
    path = tmp_path / "s"
    yield path
    kill_all("CKPTD_SOCKET", str(path))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_the_launcher(tmp_path: Path, socket: Path, number: signal.Signals) -> None:
    output = Output(tmp_path)
    arenas = tmp_path / "arenas"
    environment = {
        **os.environ,
        "CKPTD_SOCKET": str(socket),
        "CKPTD_ARENA__DIRECTORY": str(arenas),
        "CKPTD_EXECUTABLE": f"{sys.executable} -m ckptd",
        "PYTHONUNBUFFERED": "1",
    }
    command = [str(Path(sys.executable).with_name("ckptd-run")), "--store", str(tmp_path / "store"), "--every", "5"]
    command += ["--nproc-per-node", "2", str(TRAINER), "--pace", "0.05"]
    run = Process("run", command, environment, output)
    try:
        output.wait_for("step 12", lambda: output.count("run", "step=12 ") > 0 or run.code is not None, 90.0)
        assert run.code is None
        assert len(list(arenas.glob("*.arena"))) == 2
        assert len(pids_with("CKPTD_SOCKET", str(socket))) >= 6  # launcher, fork server, two workers, daemon, coordinator
        run.signal(number)
        assert run.wait(GONE_SECONDS) == (-number if number == signal.SIGKILL else 128 + number)
        until("everything to end", lambda: not pids_with("CKPTD_SOCKET", str(socket)), GONE_SECONDS)
        assert not list(arenas.glob("*.arena"))
        assert not socket.exists()
    finally:
        run.stop()
