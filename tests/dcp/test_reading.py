"""Reading without a world: pinned while it is read, by several at once, of any job; never wrong bytes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

import ckptd_client
from ckptd.commit.log import CommitLog
from ckptd.commit.office import pin
from ckptd.commit.state import State
from ckptd.daemon.readings import holder_of
from ckptd.demo.cluster import Cluster, Plan
from ckptd.store.open import open_store
from ckptd_client.dcp import CkptdReader, CkptdWriter, saver
from ckptd_client.dcp.opened import Opened
from ckptd_client.errors import RestoreError
from tests.dcp.backends import JOB
from tests.waiting import eventually_sync

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def _log(cluster: Cluster, job: str = JOB) -> State:
    return asyncio.run(CommitLog(open_store(cluster.plan.store), job).load())


def _readers(cluster: Cluster, seq: int) -> list[str]:
    return [who for who in _log(cluster).pins.get(seq, ()) if who.startswith("read:")]


def _save(step: int, **state: Any) -> None:
    dcp.save(state, storage_writer=CkptdWriter(JOB, step=step), no_dist=True)


def test_pinned_while_open(daemon: Cluster) -> None:
    _save(71, w=torch.arange(10.0))
    first, second = Opened(JOB, 71), Opened(JOB, 71)
    seq = first.info.seq
    assert len(_readers(daemon, seq)) == 1, "one pin for all readers of a daemon"
    first.close()
    assert second.info.seq == seq and _readers(daemon, seq)
    second.close()
    eventually_sync(lambda: not _readers(daemon, seq), "the pin's end")


def test_a_load_lets_go_of_its_pin(daemon: Cluster) -> None:
    _save(72, w=torch.arange(10.0))
    into = {"w": torch.zeros(10)}
    reader = CkptdReader(JOB, step=72)
    dcp.load(into, storage_reader=reader, no_dist=True)
    assert torch.equal(into["w"], torch.arange(10.0))
    eventually_sync(lambda: not any(_readers(daemon, seq) for seq in _log(daemon).pins), "the pin's end")


def test_what_a_dead_daemon_pinned_is_unpinned(daemon: Cluster) -> None:
    _save(73, w=torch.ones(3))
    with_pin = Opened(JOB, 73)
    left = holder_of("a", "0123456789abcdef")  # as a daemon of this node that was killed while somebody read
    asyncio.run(pin(CommitLog(open_store(daemon.plan.store), JOB), with_pin.info.seq, left))
    other = holder_of("another", "0123456789abcdef")
    asyncio.run(pin(CommitLog(open_store(daemon.plan.store), JOB), with_pin.info.seq, other))
    Opened(JOB, 73).close()
    held = _readers(daemon, with_pin.info.seq)
    assert left not in held and other in held and len(held) == 2
    with_pin.close()


def test_many_readers_at_once(daemon: Cluster) -> None:
    state = {f"w{at}": torch.full((50_000,), float(at)) for at in range(8)}
    _save(74, **state)

    def load(at: int) -> bool:
        into = {f"w{at}": torch.zeros(50_000)}
        dcp.load(into, storage_reader=CkptdReader(JOB, step=74), no_dist=True)
        return torch.equal(into[f"w{at}"], state[f"w{at}"])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(load, [at for _ in range(3) for at in range(8)]))


def test_steps_and_the_newest(daemon: Cluster) -> None:
    _save(75, w=torch.ones(1))
    dcp.save({"w": torch.full((1,), 2.0)}, storage_writer=CkptdWriter(JOB), no_dist=True)
    newest = Opened(JOB, None)
    assert newest.info.step == 76
    newest.close()
    with pytest.raises(RestoreError, match="no step 77"):
        Opened(JOB, 77)
    with pytest.raises(RestoreError, match="no checkpoint"):
        Opened("never-seen", None)


def test_damage_is_an_error_never_a_value(daemon: Cluster) -> None:
    store = Path(daemon.plan.store)
    before = set(store.rglob("*"))
    _save(78, w=torch.rand(300_000, generator=torch.Generator().manual_seed(78)))
    segment = max((path for path in set(store.rglob("*")) - before if path.is_file()), key=lambda path: path.stat().st_size)
    body = bytearray(segment.read_bytes())
    body[len(body) // 2] ^= 1
    segment.chmod(0o600)
    segment.write_bytes(body)
    with pytest.raises(dcp.api.CheckpointException, match="hash"):
        dcp.load({"w": torch.zeros(300_000)}, storage_reader=CkptdReader(JOB, step=78), no_dist=True)


@pytest.fixture
def other(daemon: Cluster, tmp_path: Path) -> Iterator[str]:
    """Another job on the same store, with its coordinator."""
    found = Cluster(Plan("other", daemon.plan.store, Path(__file__), []), tmp_path)
    found.start_coordinator()
    yield "other"
    found.close()


def test_reads_what_the_checkpointer_saved(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(3, 2)
    with ckptd_client.connect(job=other) as ckpt:
        ckpt.register(model=model)
        for _ in ckpt.steps(1):
            pass
        with monkeypatch.context() as patch, pytest.raises(dcp.api.CheckpointException, match="another training of this job"):
            patch.setattr(saver, "FORM_SECONDS", 1.0)
            dcp.save({"w": torch.ones(1)}, storage_writer=CkptdWriter(other), no_dist=True)
    into = {"model": {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}}
    dcp.load(into, storage_reader=CkptdReader(other), no_dist=True)
    assert torch.equal(into["model"]["weight"], model.weight) and torch.equal(into["model"]["bias"], model.bias)
    # what was trained without DCP can go on with it, and both see the same log
    dcp.save(into, storage_writer=CkptdWriter(other), no_dist=True)
    again = Opened(other, None)
    assert again.info.step == 2
    again.close()


def test_a_daemon_that_was_killed_between_saves(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    node = cluster.node("b")
    node.start_daemon()
    monkeypatch.setenv("CKPTD_SOCKET", str(node.socket))
    _save(81, w=torch.ones(3))
    assert node.daemon is not None
    node.daemon.signal(signal.SIGKILL)
    node.daemon.wait(10.0)
    node.start_daemon()
    _save(82, w=torch.full((3,), 2.0))
    into = {"w": torch.zeros(3)}
    dcp.load(into, storage_reader=CkptdReader(JOB), no_dist=True)
    assert torch.equal(into["w"], torch.full((3,), 2.0))
    node.stop()
