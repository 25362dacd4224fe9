"""What one rank's API promises, against the fake daemon: saving, closing, where job and place come from."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch

from ckptd_client import Checkpointer, connect
from ckptd_client import session as session_module
from ckptd_client.errors import ConfigError, VersionMismatchError
from tests.client.fake_daemon import FakeDaemon
from tests.client.training import until


def test_no_free_slot_is_reported_as_missed_and_save_waits(daemon: FakeDaemon) -> None:
    daemon.schedule = (1, 1)
    daemon.keep_slots = True
    ckpt = connect("job")
    ckpt.register(model=torch.nn.Linear(2, 2))
    ckpt.restore()
    for n in (1, 2):
        handle = ckpt.step(n)
        assert handle is not None
        handle.wait(10)
    assert ckpt.step(3) is None
    until(lambda: [missed.step for missed in daemon.missed] == [3])
    daemon.announce(5, 2)  # steps 5, 7, …: 4 is none of them
    assert ckpt.step(4) is None
    ckpt.step(8)
    until(lambda: [missed.step for missed in daemon.missed] == [3, 5, 7])
    ckpt.close()


def test_another_version_is_refused(tmp_path: Path) -> None:
    daemon = FakeDaemon(tmp_path / "daemon.sock", version=99)
    with pytest.raises(VersionMismatchError, match="99"):
        connect("job")
    daemon.stop()


def test_job_and_place_come_from_the_environment(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="CKPTD_JOB"):
        connect()
    with pytest.raises(ConfigError):
        connect("a/b")
    monkeypatch.setenv("CKPTD_JOB", "fromenv")
    connect().close(wait=False)
    for name, value in {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "host"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="MASTER_PORT"):
        connect()
    monkeypatch.setenv("MASTER_PORT", "29500")
    connect("named").close(wait=False)
    until(lambda: len(daemon.hellos) == 2)
    alone, placed = daemon.hellos
    assert (alone.job, alone.rank, alone.world_size) == ("fromenv", 0, 1) and alone.world_key.startswith("alone-")
    assert (placed.job, placed.rank, placed.world_size, placed.world_key) == ("named", 1, 3, "host:29500")


def test_a_forked_child_neither_speaks_nor_holds_the_socket(daemon: FakeDaemon) -> None:
    daemon.schedule = (1, 1)
    ckpt = connect("job")
    ckpt.register(model=torch.nn.Linear(2, 2))
    ckpt.restore()
    handle = ckpt.step(1)
    assert handle is not None
    handle.wait(10)
    (read, write), (wait, go) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            quiet = ckpt.step(2) is None and not ckpt._session.connected
            ckpt.close()
            os.write(write, b"q" if quiet else b"!")
            os.read(wait, 1)
        finally:
            os._exit(0)
    assert os.read(read, 1) == b"q"
    handle = ckpt.step(2)  # the child's close() did not shut the socket down
    assert handle is not None
    handle.wait(10)
    ckpt._session.close()
    until(lambda: not daemon.trainers)  # the child, still alive, doesn't keep the connection open
    os.write(go, b"x")
    os.waitpid(child, 0)


def test_the_data_position_moves_with_steps_and_is_restored(daemon: FakeDaemon) -> None:
    def one(ckpt: Checkpointer, seed: int = 5) -> list[int]:
        return [i for indices, _ in ckpt.batches(10, 4, micro_batch=2, seed=seed) for i in indices]

    ckpt = connect("job")
    ckpt.register(model=torch.nn.Linear(2, 2))
    seen: list[int] = []
    steps = ckpt.steps(3)
    for n in steps:
        batch = one(ckpt)
        assert batch == one(ckpt) and n
        seen += batch
    ckpt.close()
    ckpt = connect("job")
    ckpt.register(model=torch.nn.Linear(2, 2))
    assert ckpt.restore() == 3
    with pytest.raises(ConfigError, match="seed"):
        one(ckpt, 6)
    for _ in ckpt.steps(5):
        seen += one(ckpt)
    ckpt.close()
    assert sorted(seen[:10]) == sorted(seen[10:20]) == list(range(10))


def test_the_last_step_is_saved_again_when_it_was_given_up(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptd_client import checkpointer

    monkeypatch.setattr(checkpointer, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(session_module, "RETRY_SECONDS", 0.0)
    daemon.keep_open = True
    ckpt = connect("job")
    ckpt.register(model=torch.nn.Linear(2, 2))
    for _ in ckpt.steps(2):
        pass
    daemon.stop()
    back = FakeDaemon(daemon.path)
    back.generation = daemon.generation
    ckpt.close()
    assert [c.step for c in back.checkpoints] == [2] and back.finished == [0]
    back.stop()


def test_nothing_is_reported_finished_after_an_exception(daemon: FakeDaemon) -> None:
    with pytest.raises(ZeroDivisionError), connect("job") as ckpt:
        ckpt.register(model=torch.nn.Linear(2, 2))
        ckpt.restore()
        raise ZeroDivisionError
    until(lambda: not daemon.trainers)
    assert daemon.finished == []


def test_importing_the_client_imports_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, ckptd_client, ckptd_client.wire, ckptd_client.messages, ckptd_client.arena, ckptd_client.errors,"
        " ckptd_client.checkpointer; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_daemon_no_job_has_to_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that is tried out on a laptop runs; only where something would be saved it must be said under which name."""
    for name in ("CKPTD_JOB", "TORCHELASTIC_RUN_ID", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with connect(socket=tmp_path / "none.sock") as ckpt:
        assert ckpt.restore() == 0 and list(ckpt.steps(3)) == [1, 2, 3]
    with socket.socket(socket.AF_UNIX) as somebody:
        somebody.bind(str(tmp_path / "d.sock"))
        somebody.listen()
        with pytest.raises(ConfigError, match="which job"):
            connect(socket=tmp_path / "d.sock")
