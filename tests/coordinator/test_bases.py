"""What the coordinator lets snapshots refer to, and what becomes of one whose base is gone: real log, store and parts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from ckptd.commit.log import CommitLog
from ckptd.coordinator.convert import attempt_of, to_attempt
from ckptd.model.ids import Attempt, Snapshot
from ckptd.pipeline.unchanged import Base, remember
from ckptd.pipeline.write import WriteOptions, layout_of, write_part
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd.rpc.v1 import coordinator_pb2_grpc as rpc
from ckptd.store.directory import DirectoryStore
from tests.coordinator.test_retention import JOB, TIGHT, Trainer, training, until
from tests.restore.states import Slot

OPTIONS = WriteOptions(frame_bytes=64, segment_bytes=256)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


class Incremental:
    """A daemon's share: a frozen tensor of 8 frames, and one that changes."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.base: Base | None = None
        self._numbers = itertools.count()

    async def upload(self, step: int, allowed: set[int]) -> tuple[Attempt, object]:
        attempt = Attempt(Snapshot(self.trainer.generation, step), 0)
        slot = Slot(0)
        slot.tensor("frozen", "uint8", np.arange(512, dtype=np.uint8), (0,), (512,))
        slot.tensor("moving", "uint8", np.full(64, step % 251, np.uint8), (0,), (64,))
        sources = [slot.source()]
        place = (self.trainer.store, JOB, attempt, "a.i1", sources, OPTIONS, self.trainer.pool, self._numbers)
        part = await write_part(*place, base=self.base, allowed=allowed)
        daemon = self.trainer.daemon
        await daemon.say(sealed=pb.Sealed(attempt=to_attempt(attempt), rank=0))
        await daemon.say(uploaded=pb.Uploaded(attempt=to_attempt(attempt), ranks=[0], part=part.encode()))
        return attempt, lambda seq: remember(seq, layout_of(sources), part)

    async def commit(self, step: int, allowed: set[int]) -> int:
        attempt, remembered = await self.upload(step, allowed)
        committed = await self.trainer.daemon.until("committed", lambda m: attempt_of(m.attempt) == attempt)
        self.base = remembered(committed.seq)
        return int(committed.seq)


async def retire(address: str, seq: int) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        await rpc.CoordinatorStub(channel).Retire(pb.RetireRequest(job=JOB, seq=seq))


async def test_a_frozen_part_is_written_once_until_its_commit_is_retired(store, pool) -> None:
    options = replace(TIGHT, keep_last=1, keep_every=0)
    async with training(store, pool, options=options) as (trainer, address):
        daemon, share = trainer.daemon, Incremental(trainer)
        await trainer.up()
        await trainer.ready()
        first = await share.commit(10, set())
        await daemon.until("bases", lambda m: list(m.seqs) == [first])
        second = await share.commit(20, {first})
        await daemon.until("bases", lambda m: list(m.seqs) == [first, second])
        third = await share.commit(30, {first, second})
        # Retention keeps one, and what that one needs.
        state = await until(store, lambda s: not s.is_live(second) and s.is_live(third))
        assert state.is_live(first) and state.commits[third].bases == (first,)
        await daemon.until("bases", lambda m: list(m.seqs) == [first, third])

        await retire(address, first)
        attempt, _ = await share.upload(40, {first, third})  # it was on its way already
        aborted = await daemon.until("aborted", lambda m: attempt_of(m.attempt) == attempt)
        assert f"record {first}, which is no live commit" in aborted.reason
        await daemon.until("bases", lambda m: list(m.seqs) == [third])
        fifth = await share.commit(50, {third})
        state = await until(store, lambda s: not s.is_live(third))
        assert state.commits[fifth].bases == () and state.is_live(fifth)


async def test_a_new_coordinator_says_again_what_may_be_referred_to(store, pool) -> None:
    async with training(store, pool, options=TIGHT) as (trainer, _):
        share = Incremental(trainer)
        await trainer.up()
        await trainer.ready()
        first = await share.commit(10, set())
        second = await share.commit(20, {first})
    async with training(store, pool, options=TIGHT) as (trainer, _):
        await trainer.daemon.until("bases", lambda m: list(m.seqs) == [first, second])
    state = await CommitLog(store, JOB).load()
    assert state.commits[second].bases == (first,)
