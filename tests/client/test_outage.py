"""Trainings without a daemon, with one that comes late, and with one that goes away and comes back or not."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptd_client import Checkpointer, connect
from ckptd_client import handle as handle_module
from ckptd_client import session as session_module
from ckptd_client.arena import SEALED
from ckptd_client.capture import Plan
from ckptd_client.errors import ConfigError, SaveError
from ckptd_client.handle import Handle
from tests.client.fake_daemon import FakeDaemon
from tests.client.training import until


def test_without_a_daemon_training_runs_on(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    with caplog.at_level(logging.WARNING, "ckptd"), connect("job") as ckpt:
        ckpt.register(model=model)
        assert not ckpt.has_checkpoint
        assert list(ckpt.steps(20)) == list(range(1, 21))
        handle = ckpt.save({"a": 1}, 21)
        with pytest.raises(SaveError):
            handle.wait(1)
        assert sum("training runs on" in r.message for r in caplog.records) == 1
    assert len(caplog.records) <= 3


def test_a_late_daemon_is_joined_when_there_is_nothing_to_restore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "RETRY_SECONDS", 0.0)
    ckpt = connect("job")
    ckpt.register(model=torch.nn.Linear(2, 2))
    assert ckpt.restore() == 0
    assert ckpt.step(1) is None
    daemon = FakeDaemon(tmp_path / "daemon.sock", (1, 1))
    n = 1

    def durable() -> bool:
        nonlocal n
        n += 1
        handle = ckpt.step(n)
        return handle is not None

    until(durable)
    ckpt.close()
    assert daemon.checkpoints and daemon.finished == [0]
    late = connect("job")  # now there is one: a training that doesn't restore it must not write over it
    late.register(model=torch.nn.Linear(2, 2))
    taken = len(daemon.checkpoints)
    until(lambda: late.step(1) is None and late._session.closed)
    late.close()
    assert len(daemon.checkpoints) == taken
    with pytest.raises(ConfigError, match="restore"):
        connect("job").save({"a": 1}, 1)
    daemon.stop()


def left_alone(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> tuple[Checkpointer, Handle]:
    """A trainer whose daemon went away after step 2 was staged, and before that was committed."""
    monkeypatch.setattr(session_module, "RETRY_SECONDS", 0.0)
    daemon.schedule = (2, 2)
    daemon.keep_open = True
    ckpt = connect("job")
    ckpt.register(model=torch.nn.Linear(2, 2))
    assert ckpt.restore() == 0
    assert ckpt.step(1) is None
    handle = ckpt.step(2)
    assert handle is not None and handle.staged and not handle.durable
    daemon.stop()
    until(lambda: not ckpt._session.connected)
    return ckpt, handle


@pytest.mark.parametrize("knows_the_arena", [True, False])
def test_a_daemon_that_vanishes_and_comes_back(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, knows_the_arena: bool
) -> None:
    ckpt, handle = left_alone(daemon, monkeypatch)
    assert ckpt.step(3) is None and ckpt.step(4) is None
    assert handle.open
    with pytest.raises(SaveError, match="not durable in time"):
        handle.wait(0.0)
    back = FakeDaemon(daemon.path, (2, 2))
    back.generation = daemon.generation
    if knows_the_arena:
        back.arenas = daemon.arenas
        handle.wait(10)  # the wait itself looks for the new daemon
        until(lambda: ckpt._stager.revive() == 0.0)  # what was durable may be said before the answer to Resume
        assert (back.resumed, back.registrations) == (1, 0) and ckpt._stager.arena is not None
    else:
        with pytest.raises(SaveError, match="may have become durable or not: no such arena"):
            handle.wait(10)
        until(lambda: ckpt.step(5) is None and ckpt._stager.arena is not None)
        assert back.registrations == 1
    assert back.hellos[0].generation == daemon.generation
    handle = ckpt.step(6)
    assert handle is not None
    handle.wait(10)
    assert sorted(missed.step for missed in back.missed) == ([4] if knows_the_arena else [2, 4])
    ckpt.close()
    back.stop()


def test_a_slot_that_becomes_free_right_after_the_answer_to_resume_is_not_lost(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are there before the training thread looks. What is lost here is lost for ever; without slots nothing is saved."""
    ckpt, handle = left_alone(daemon, monkeypatch)
    back = FakeDaemon(daemon.path, (2, 2))
    back.generation, back.arenas, back.lets_go = daemon.generation, daemon.arenas, True
    stager = ckpt._stager
    until(lambda: ckpt._session.poll() or ckpt._session.connected)
    stager.resume(wait=False)  # asks; on a busy machine the answer may be there at once, without what follows it
    until(lambda: back.resumed == 1 and not handle.open)  # heard by the reader's thread, and what follows
    until(lambda: stager.resume(wait=False) and stager._free == {0, 1})
    ckpt.close()
    back.stop()


@pytest.mark.parametrize("knows_the_arena", [True, False])
def test_a_commit_that_a_lost_daemon_could_not_tell_of_is_known(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, knows_the_arena: bool
) -> None:
    """It heard of the commit, freed the slot, and died before its trainer had come back to it: the slot's mark tells."""
    ckpt, handle = left_alone(daemon, monkeypatch)
    ((arena, _),) = daemon.arenas.values()
    (index,) = [index for index in range(arena.slots) if arena.look(index).state == SEALED]
    arena.hold(index, 0)
    arena.note_commit(index, 7)
    arena.free(index)
    back = FakeDaemon(daemon.path, (2, 2))
    back.generation = daemon.generation
    if knows_the_arena:
        back.arenas = daemon.arenas
    handle.wait(10)
    assert handle.durable and not back.missed
    ckpt.close()
    back.stop()


def test_what_is_sealed_while_no_daemon_listens_is_not_lost(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon dies after the copy began and before its successor is there: the slot's marks tell that one."""
    monkeypatch.setattr(session_module, "RETRY_SECONDS", 0.0)
    daemon.schedule = (2, 2)
    ckpt = connect("job")
    ckpt.register(model=torch.nn.Linear(2, 2))
    ckpt.restore()
    assert ckpt.step(1) is None
    copy_into = Plan.copy_into

    def dies(plan: Plan, *arguments: Any) -> list[int]:
        daemon.stop()
        until(lambda: not ckpt._session.connected)
        return copy_into(plan, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Plan, "copy_into", dies)
        handle = ckpt.step(2)
    assert handle is not None and handle.staged and handle.open
    back = FakeDaemon(daemon.path, (2, 2))
    back.generation, back.arenas = daemon.generation, daemon.arenas
    handle.wait(10)
    assert [c.step for c in back.checkpoints] == [2]
    ckpt.close()
    back.stop()


def test_a_daemon_that_stays_away(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handle_module, "AWAY_SECONDS", 0.0)
    daemon.schedule = (2, 2)
    daemon.keep_open = True
    ckpt = connect("job")
    ckpt.register(model=torch.nn.Linear(2, 2))
    ckpt.restore()
    ckpt.step(1)
    handle = ckpt.step(2)
    assert handle is not None
    daemon.stop()
    with pytest.raises(SaveError, match="the daemon is away"):
        handle.wait()
    ckpt.close()
    assert not handle.open and not handle.durable
