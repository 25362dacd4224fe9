"""One rank against the fake daemon. Equality is judged by sha256 of live tensors, never through our own capture."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from ckptd_client import Checkpointer, connect
from ckptd_client import handle as handle_module
from ckptd_client import session as session_module
from ckptd_client.arena import SEALED
from ckptd_client.capture import Plan
from ckptd_client.errors import (
    ConfigError,
    MissingStateError,
    RestoreError,
    SaveError,
    UnsupportedStateError,
    VersionMismatchError,
)
from ckptd_client.handle import Handle
from tests.client.fake_daemon import FakeDaemon


def digest(*things: Any) -> str:
    """sha256 over everything in the state dicts, tensors by their raw bytes."""
    found = hashlib.sha256()

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.update(f"{value.dtype}{tuple(value.shape)}".encode())
            found.update(bytes(value.detach().contiguous().reshape(-1).view(torch.uint8).tolist()))
        elif isinstance(value, dict):
            for key in value:
                found.update(repr(key).encode())
                walk(value[key])
        elif isinstance(value, (list, tuple)):
            for part in value:
                walk(part)
        else:
            found.update(repr(value).encode())

    for thing in things:
        walk(thing.state_dict())
    return found.hexdigest()


class Setup:
    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(8, 33), torch.nn.BatchNorm1d(33), torch.nn.Dropout(0.2), torch.nn.Linear(33, 3, dtype=torch.float32)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.schedulers = {
            "lambda": torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda n: 0.9**n),
            "cycle": torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.1, total_steps=100),
        }

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, **self.schedulers}

    def train(self) -> float:
        loss = self.model(torch.randn(16, 8)).square().mean() + random.random() * 0 + float(numpy.random.rand()) * 0
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedulers["cycle"].step()
        return float(loss)

    def digest(self) -> str:
        return digest(*self.parts().values())


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def test_training_goes_on_exactly_where_it_was(daemon: FakeDaemon) -> None:
    daemon.schedule = (3, 3)
    first = Setup(1)
    with connect("job") as ckpt:
        ckpt.register(**first.parts())
        assert not ckpt.has_checkpoint
        for n in ckpt.steps(6):
            first.train()
            if n == 6:
                expected = first.digest()
    after = [first.train() for _ in range(3)]
    draws = (torch.rand(3).tolist(), random.random(), numpy.random.rand())
    assert [c.step for c in daemon.checkpoints] == [3, 6]
    assert daemon.finished == [0] and daemon.pidfds == 1 and daemon.missed == []

    second = Setup(2)
    assert second.digest() != expected
    ckpt = connect("job")
    ckpt.register(**second.parts())
    assert ckpt.has_checkpoint and ckpt.restore() == 6
    assert ckpt.rng_restored == "exact"
    assert second.digest() == expected
    assert [second.train() for _ in range(3)] == after
    assert (torch.rand(3).tolist(), random.random(), numpy.random.rand()) == draws
    ckpt.close(wait=False)
    assert daemon.finished == [0]


def test_every_kind_of_tensor_is_bit_exact(daemon: FakeDaemon) -> None:
    def noise(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        count = torch.empty(shape, dtype=dtype).numel() * torch.empty((), dtype=dtype).element_size()
        flat = torch.randint(0, 2 if dtype is torch.bool else 256, (count,), dtype=torch.uint8)
        return flat.view(dtype).view(shape)

    def make() -> dict[str, Any]:
        kinds = (torch.bool, torch.uint8, torch.int16, torch.int64, torch.uint32, torch.float16, torch.bfloat16, torch.float32)
        kinds += (torch.float64, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2)
        state = {str(kind).removeprefix("torch."): noise(kind, 5, 7) for kind in kinds}
        state["transposed"] = noise(torch.bfloat16, 6, 4).t()
        state["strided"] = noise(torch.float32, 9, 8)[::2, 1::3]
        state["scalar"] = noise(torch.float32)
        state["empty"] = torch.empty(0, 4)
        state["sliver"] = noise(torch.float32, 1000)[500:501]
        state["tied"] = state["float32"]
        return state

    def prints(state: dict[str, Any]) -> dict[str, str]:
        return {
            key: hashlib.sha256(bytes(value.contiguous().reshape(-1).view(torch.uint8).tolist())).hexdigest()
            for key, value in state.items()
        }

    state = {"a": make(), "epoch": 3, "names": ["x", {"y": (1, 2.5)}]}
    with connect("job") as ckpt:
        handle = ckpt.save(state, 1)
        assert handle.staged
        handle.wait(10)
        assert handle.durable
        state["epoch"] = 4
        state["a"]["float32"].add_(1)
        handle = ckpt.save(state, 2)
        handle.wait(10)
    other = {"a": make(), "epoch": 0, "names": None}
    kept = other["a"]["strided"]
    ckpt = connect("job")
    assert ckpt.load(other) == 2
    assert prints(other["a"]) == prints(state["a"])
    assert other["a"]["strided"] is kept and other["epoch"] == 4 and other["names"] == ["x", {"y": (1, 2.5)}]
    assert "ckptd.state" in daemon.checkpoints[-1].objects and "a.tied" not in daemon.checkpoints[-1].tensors
    ckpt.close(wait=False)


def test_raw_load_adds_what_a_fresh_optimizer_lacks_and_misses_nothing(daemon: FakeDaemon) -> None:
    first = Setup(1)
    first.train()
    with connect("job") as ckpt:
        ckpt.save({"optim": first.optimizer.state_dict()}, 5).wait(10)
    second = Setup(2)
    state = {"optim": second.optimizer.state_dict()}
    ckpt = connect("job")
    assert ckpt.load(state) == 5
    second.optimizer.load_state_dict(state["optim"])
    assert digest(second.optimizer) == digest(first.optimizer)
    ckpt.close(wait=False)
    ckpt = connect("job")
    with pytest.raises(MissingStateError, match="more"):
        ckpt.load({"more": 1})
    ckpt.close(wait=False)


def test_a_mismatch_names_both_shapes_and_changes_nothing(daemon: FakeDaemon) -> None:
    with connect("job") as ckpt:
        ckpt.register(model=torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)))
        for _ in ckpt.steps(1):
            pass
    for other, said in [
        (torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)), r"model\.1\.weight.*\[2, 4\].*\[3, 4\]"),
        (torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2), torch.nn.Linear(2, 2)), r"model\.2\.weight"),
        (torch.nn.Sequential(torch.nn.Linear(4, 4)), r"1\.weight"),
        (torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)).double(), r"model\.0\.weight.*float32.*float64"),
    ]:
        before = digest(other)
        ckpt = connect("job")
        ckpt.register(model=other)
        with pytest.raises(MissingStateError, match=said):
            ckpt.restore()
        assert digest(other) == before
        until(lambda: bool(daemon.reports[-1]))
        ckpt.close(wait=False)
    ckpt = connect("job")
    ckpt.register(somethingelse=torch.nn.Linear(1, 1))
    with pytest.raises(MissingStateError, match="somethingelse"):
        ckpt.restore()
    ckpt.close(wait=False)
    ckpt = connect("job")
    with pytest.raises(RestoreError, match=r"restore\(\)"):
        ckpt.load({})
    ckpt.close(wait=False)


class Odd:
    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [1, object()]}, "odd.a.1"),
        ({"a": {"b": torch.zeros(3).to_sparse()}}, "odd.a.b"),
        ({"a": torch.zeros(3, device="meta")}, "odd.a"),
        ({"a": numpy.array([object()])}, "odd.a"),
        ({"f": len}, "odd.f"),
        ({"a": torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8)}, "odd.a"),
        ({"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)}, "odd.a.b"),
    ],
)
def test_what_has_no_safe_form_is_refused_at_register(daemon: FakeDaemon, value: Any, path: str) -> None:
    with connect("job") as ckpt:
        with pytest.raises(UnsupportedStateError) as caught:
            ckpt.register(odd=Odd(value))
        assert caught.value.path == path and path in str(caught.value)
        with pytest.raises(ConfigError):
            ckpt.register(nothing=3)


def test_state_that_changes_its_structure_and_outgrows_its_room(daemon: FakeDaemon) -> None:
    daemon.schedule = (1, 1)
    odd = Odd({"a": [1]})
    with connect("job") as ckpt:
        ckpt.register(odd=odd)
        for n in ckpt.steps(4):
            if n == 2:
                odd.state["a"] = list(range(100_000))
            if n == 3:
                odd.state["t"] = torch.arange(5)
            if n == 4:
                odd.state["bad"] = object()  # too late to refuse: this snapshot is missed, training goes on
    assert [c.step for c in daemon.checkpoints] == [1, 2, 3]
    assert [missed.step for missed in daemon.missed] == [4]


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
