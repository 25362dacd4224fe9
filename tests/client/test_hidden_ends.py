"""How a copy behind the training ends: waited for, failed, forked, without a daemon, at the close."""

from __future__ import annotations

import os
import threading
import time

import pytest
import torch

from ckptd_client import Checkpointer, behind, connect, moving
from ckptd_client import session as session_module
from tests.client.fake_daemon import FakeDaemon
from tests.client.hiding import WIDTH, Gate, Net, Training, copied
from tests.client.training import until

pytestmark = pytest.mark.usefixtures("no_thread_left")


def test_waiting_for_a_snapshot_ends_its_copy(daemon: FakeDaemon, gate: Gate) -> None:
    daemon.schedule = (1, 1)
    training = Training()
    for n in range(1, 5):
        training.step(n)
    assert training.under_way
    training.handles[4].wait(10)
    assert training.handles[4].durable
    training.step(5)
    saved = training.ckpt.save({"w": training.net.first.weight}, 6)
    assert saved.staged and training.handles[5].staged
    training.ckpt.close()


def test_a_copy_that_fails_is_told_and_training_goes_on(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.schedule = (1, 1)
    training = Training()
    for n in range(1, 5):
        training.step(n)
    copied(training)
    move = moving._move

    def fails(to: int, source: int, count: int) -> None:
        raise OSError("no such memory")

    monkeypatch.setattr(moving, "_move", fails)
    training.step(5)
    copied(training)
    monkeypatch.setattr(moving, "_move", move)
    training.step(6)
    training.ckpt.close()
    training.check(daemon, 1, 2, 3, 4, 6)
    assert [missed.step for missed in daemon.missed] == [5] and "no such memory" in daemon.missed[0].reason


def test_without_threads_the_copy_is_made_when_it_is_waited_for(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.schedule = (1, 1)
    training = Training()
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "ckptd-copy":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for n in range(1, 7):
        training.step(n)
    training.ckpt.close()
    training.check(daemon, *range(1, 7))


def test_a_fork_in_mid_copy(daemon: FakeDaemon, gate: Gate) -> None:
    daemon.schedule = (1, 1)
    training = Training()
    for n in range(1, 5):
        training.step(n)
    assert training.under_way
    child = os.fork()
    if child == 0:
        done = 1
        try:
            training.ckpt._stager.hidden._before_step()  # an optimizer's own threads would not survive the fork
            done = 0 if training.ckpt.step(5) is None and not training.under_way else 2
            training.ckpt.close()
        finally:
            os._exit(done)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    training.step(5)
    training.ckpt.close()
    training.check(daemon, *range(1, 6))


def test_a_daemon_that_dies_in_mid_copy(daemon: FakeDaemon, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its successor finds the slot sealed, and doesn't take it away before."""
    monkeypatch.setattr(session_module, "RETRY_SECONDS", 0.0)
    daemon.schedule = (1, 1)
    training = Training()
    for n in range(1, 5):
        training.step(n)
    training.handles[3].wait(10)
    assert training.under_way
    stager = training.ckpt._stager
    daemon.stop()
    until(lambda: not training.ckpt._session.connected)
    back = FakeDaemon(daemon.path, (9, 1))
    back.generation, back.arenas = daemon.generation, daemon.arenas
    until(lambda: training.ckpt._session.poll() or training.ckpt._session.connected)
    assert stager.revive() > 0 and back.resumed == 0  # not before the slot is sealed
    training.optimizers[0].step()
    assert training.handles[4].staged
    training.handles[4].wait(10)
    assert back.resumed == 1
    training.check(back, 3, 4)
    training.ckpt.close()
    back.stop()


@pytest.mark.parametrize("wait", [True, False])
def test_close_in_mid_copy(daemon: FakeDaemon, gate: Gate, wait: bool) -> None:
    daemon.schedule = (1, 1)
    training = Training()
    for n in range(1, 5):
        training.step(n)
    assert training.under_way
    training.ckpt.close(wait=wait)
    assert training.handles[4].staged and not training.under_way
    until(lambda: len(daemon.checkpoints) == 4)
    training.check(daemon, *range(1, 5))


def test_the_daemon_is_told_how_long_training_stood_still(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.schedule = (4, 1)
    training = Training()
    for n in range(1, 5):
        training.step(n)
    copied(training)
    finish = behind.Behind.finish

    def slow(copy: behind.Behind) -> list[int]:
        time.sleep(0.3)  # what is measured
        return finish(copy)

    monkeypatch.setattr(behind.Behind, "finish", slow)
    training.step(5)
    training.ckpt.close()
    assert daemon.stalls[4] >= 0.3 and daemon.stalls[5] >= 0.3


def test_without_a_registered_optimizer_nothing_is_hidden(daemon: FakeDaemon) -> None:
    daemon.schedule = (1, 1)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with connect("job") as ckpt:
        ckpt.register(net=net)
        for _ in ckpt.steps(5):
            optimizer.zero_grad()
            net(torch.randn(8, WIDTH)).mean().backward()
            optimizer.step()
            until(lambda: ckpt._stager.arena is None or bool(ckpt._stager._free))
        assert ckpt._stager.hidden.curious is False
    assert len(daemon.checkpoints) == 5
    assert isinstance(ckpt, Checkpointer)
