from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.fake_daemon import FakeDaemon
from tests.client.hiding import Gate

_PLACE = ("CKPTD_JOB", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in _PLACE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CKPTD_SOCKET", str(tmp_path / "daemon.sock"))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    running = FakeDaemon(tmp_path / "daemon.sock")
    yield running
    if running.path.exists():
        running.stop()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    yield
    end = time.monotonic() + 10
    while any(thread.name == "ckptd-copy" for thread in threading.enumerate()):
        assert time.monotonic() < end, "a copying thread is left over"
        time.sleep(0.002)
