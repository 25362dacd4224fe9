"""The launcher: warm restarts, exit codes, and nothing left behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd_client.run import Server
from tests.launch.fake import Fake
from tests.launch.processes import alive, launched, until

RUN = str(Path(sys.executable).with_name("ckptd-run"))
WORKER = r"rank=(\d) world=(\d) pid=(\d+) at=([\d.]+)"


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    daemon = Fake(want=1)
    daemon.listen(0, tmp_path / "s")
    yield daemon
    daemon.close()


def arguments(directory: Path, *more: str) -> list[str]:
    return [RUN, *more, "tests/launch/worker.py", str(directory), "--lr=0.1"]


def test_a_killed_worker_is_back_in_tenths_of_a_second(fake: Fake, tmp_path: Path) -> None:
    with launched(arguments(tmp_path, "--nproc-per-node=2"), CKPTD_SOCKET=str(tmp_path / "s")) as run:
        seconds = []
        for _ in range(3):
            first, second = run.line(WORKER), run.line(WORKER)
            assert first[2] == "2"
            killed = time.time()
            os.kill(int(second[3]), signal.SIGKILL)
            again = run.line(WORKER)
            seconds.append(float(again[4]) - killed)
            run.line(WORKER)
            os.kill(int(again[3]), signal.SIGKILL)
        assert "--lr=0.1" in run.seen[-1]
        print(f"killed worker to the new one's first collective: {sorted(seconds)}")
        assert min(seconds) < 2.0  # a cold start takes 4 s or more; the limit leaves room for a busy machine
        run.line(WORKER)
        (tmp_path / "end0").touch()
        (tmp_path / "end1").touch()
        assert run.wait() == 0
        until(lambda: not run.left(), "nothing is left")


def test_no_process_outlives_the_launcher(tmp_path: Path) -> None:
    """Here the launcher starts its daemon (the fake, as a process), and a coordinator that finds the job in use.

    With real servers, and other signals: tests/chaos/test_orphans.py.
    """
    environment = {"CKPTD_SOCKET": str(tmp_path / "s"), "CKPTD_EXECUTABLE": f"{sys.executable} -m tests.launch.fake"}
    with launched(arguments(tmp_path, "--job=j"), **environment) as run:
        worker = int(run.line(WORKER)[3])
        others = _descendants(run.process.pid)
        assert worker in others and len(others) >= 3  # fork server, worker, daemon
        os.kill(run.process.pid, signal.SIGTERM)
        assert run.wait() == 128 + signal.SIGTERM
        until(lambda: not any(alive(pid) for pid in others), f"all of {others} are gone")


def test_a_failing_rendezvous_is_the_outcome(tmp_path: Path) -> None:
    fake = Fake(want=2)
    fake.listen(0, tmp_path / "s")
    with launched(arguments(tmp_path, "--join-timeout=0.5"), CKPTD_SOCKET=str(tmp_path / "s")) as run:
        run.line("coordinator running, are enough nodes there")
        assert run.wait() == 1
    fake.close()


@pytest.mark.parametrize(
    ("options", "says"), [(["no.py"], "no script"), (["--job=a/b", __file__], "--job"), ([__file__], "CKPTD_EX")]
)
def test_bad_usage_is_2(options: list[str], says: str, tmp_path: Path) -> None:
    with launched([RUN, *options], CKPTD_SOCKET=str(tmp_path / "s")) as run:
        run.line(says)
        assert run.wait() == 2


def test_a_server_is_started_again_unless_it_is_done(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = f"import sys; f = open({str(log)!r}, 'a+'); f.write('x'); f.seek(0); sys.exit(0 if len(f.read()) == 2 else 1)"
    server = Server("test", [sys.executable, "-c", script], lambda: True)
    until(lambda: server.last_exit == 0, "it ended well at its second start")
    assert log.read_text() == "xx"
    stopped = Server("test", [sys.executable, "-c", "import time; time.sleep(60)"], lambda: True)
    until(lambda: stopped.running, "it runs")
    stopper = threading.Thread(target=stopped.stop, args=(5.0,))
    stopper.start()
    stopper.join(10)
    assert not stopper.is_alive() and not stopped.running


def _descendants(pid: int) -> set[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


_LOST = """
import os, signal, sys, time
from ckptd_client import run

class Dropped:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)  # the handler runs in here, and what it raises is dropped

run._ANYHOW_SECONDS = 0.2
signal.signal(signal.SIGTERM, run._end_by_signal)
Dropped()
print("on it goes", flush=True)
signal.pause()
"""


def test_a_signal_whose_exception_is_dropped_ends_it_anyhow() -> None:
    """As may happen in the middle of torch's import: an agent that nobody ends waits for its daemon for ten minutes."""
    done = subprocess.run([sys.executable, "-c", _LOST], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "on it goes\n" and "Exception ignored in" in done.stderr
    assert done.returncode == 128 + signal.SIGTERM
