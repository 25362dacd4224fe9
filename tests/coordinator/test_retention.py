"""A real coordinator on a real log stays within its retention, pins what it restores, and does as the command line asks."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from ckptd.cli.app import app
from ckptd.commit.collect import KEEP_STATES
from ckptd.commit.fold import State
from ckptd.commit.forget import FORGET_AT_ONCE
from ckptd.commit.log import CommitLog
from ckptd.commit.retention import Retention
from ckptd.coordinator.convert import attempt_of, generation_of, to_attempt, to_generation
from ckptd.coordinator.restoring import epoch_of_holder, holder_of
from ckptd.coordinator.tidy import next_chore
from ckptd.errors import ConfigError, JobInUseError
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.model.records import Pin, Retire, Unpin
from ckptd.pipeline.write import WriteOptions, write_part
from ckptd.restore.checkpoint import open_checkpoint
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd.store.directory import DirectoryStore
from tests.commit.test_retention import after, committed
from tests.coordinator.test_service import DEADLINE_SECONDS, QUICK, Daemon, coordinator
from tests.restore.states import JOB, Slot

COMMITS = 220
TIGHT = replace(QUICK, keep_last=3, keep_every=1000, grace_seconds=0.0)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


class Trainer:
    """One rank without a launcher, and its daemon."""

    def __init__(self, daemon: Daemon, store: DirectoryStore, pool: ThreadPoolExecutor, process: str) -> None:
        self.daemon, self.store, self.pool, self.process = daemon, store, pool, process

    async def up(self) -> Generation:
        await self.daemon.say(rank_up=pb.RankUp(world_key=self.process, rank=0, world_size=1, process=self.process))
        formed = await self.daemon.until("formed", lambda m: m.world_key == self.process)
        self.generation = generation_of(formed.generation)
        return self.generation

    async def ask(self) -> pb.RestoreTarget:
        await self.daemon.say(restore_ask=pb.RestoreAsk(generation=to_generation(self.generation), rank=0))
        return await self.daemon.until("restore_target", lambda m: generation_of(m.generation) == self.generation)

    async def restored(self) -> None:
        await self.daemon.say(restore_report=pb.RestoreReport(generation=to_generation(self.generation), rank=0))
        await self.daemon.until("restore_go", lambda m: generation_of(m.generation) == self.generation)

    async def ready(self) -> None:
        id = to_generation(self.generation)
        await self.daemon.say(
            rank_up=pb.RankUp(generation=id, world_key=self.process, rank=0, world_size=1, process=self.process, ready=True)
        )
        await self.daemon.until("schedule", lambda m: generation_of(m.generation) == self.generation)

    async def checkpoint(self, step: int) -> int:
        attempt = Attempt(Snapshot(self.generation, step), 0)
        slot = Slot(0)
        slot.tensor("w", "float32", np.full((4, 4), step, "<f4"), (0, 0), (4, 4))
        part = await write_part(self.store, JOB, attempt, "a.i1", [slot.source()], WriteOptions(), self.pool, itertools.count())
        await self.daemon.say(sealed=pb.Sealed(attempt=to_attempt(attempt), rank=0))
        await self.daemon.say(uploaded=pb.Uploaded(attempt=to_attempt(attempt), ranks=[0], part=part.encode()))
        committed = await self.daemon.until("committed", lambda m: attempt_of(m.attempt) == attempt)
        return int(committed.seq)


@asynccontextmanager
async def training(store: DirectoryStore, pool: ThreadPoolExecutor, **more: object) -> AsyncIterator[tuple[Trainer, str]]:
    async with coordinator(store, assemble=None, **more) as (_, address), Daemon(address, "a") as daemon:
        yield Trainer(daemon, store, pool, f"p-{address}"), address


async def until(store: DirectoryStore, right) -> State:
    """The log's state once it is right."""
    log = CommitLog(store, JOB)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            if right(await log.refresh()):
                return log.state
            await asyncio.sleep(0.05)


def files(store: DirectoryStore, kind: str) -> list[Path]:
    root = Path(store.url.removeprefix("file://")) / JOB / kind
    return [Path(directory, name) for directory, _, names in os.walk(root) for name in names if not name.startswith(".")]


async def test_many_small_checkpoints_stay_within_their_retention(store, pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptd.coordinator.tidy.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("ckptd.commit.sweep.SHORTEST_WAIT_SECONDS", 0.1)
    most = 0
    async with training(store, pool, options=TIGHT) as (trainer, _):
        await trainer.up()
        await trainer.ready()
        for step in range(10, 10 * COMMITS + 1, 10):
            await trainer.checkpoint(step)
            most = max(most, len(files(store, "data")))
        kept = {1000, 2000, *range(10 * COMMITS - 20, 10 * COMMITS + 1, 10)}
        state = await until(store, lambda s: {e.attempt.snapshot.step for e in s.commits.values() if e.live} == kept)
        assert state.forgotten is not None and len(state.commits) < len(kept) + 2 * FORGET_AT_ONCE
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                if len(files(store, "data")) == 2 * len(kept) and len(files(store, "state")) <= KEEP_STATES + 1:
                    break
                await asyncio.sleep(0.05)
    assert len(files(store, "manifest")) == len(kept)
    assert len(files(store, "layout")) == 1
    assert most < COMMITS, "nothing was collected while it trained"
    for entry in state.commits.values():
        if entry.live:
            await open_checkpoint(store, JOB, entry.manifest)


async def test_a_restore_is_pinned_before_it_is_named_and_unpinned_after(store, pool) -> None:
    async with training(store, pool, options=TIGHT) as (trainer, _):
        await trainer.up()
        await trainer.ready()
        seq = await trainer.checkpoint(10)
    async with training(store, pool, options=TIGHT, take_over=True) as (trainer, _):
        generation = await trainer.up()
        assert (await trainer.ask()).seq_plus_one == seq + 1
        state = await CommitLog(store, JOB).load()
        assert state.pins == {seq: {holder_of(2, generation)}}
    # That coordinator died in the middle of it. The next one ends its pin, and has one of its own.
    async with training(store, pool, options=TIGHT, take_over=True) as (trainer, _):
        generation = await trainer.up()
        await trainer.ask()
        await until(store, lambda s: s.pins == {seq: {holder_of(3, generation)}})
        await trainer.restored()
        await until(store, lambda s: s.pins == {})


def invoke(store: DirectoryStore, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--job", JOB, "--store", store.url.removeprefix("file://")])


async def cli(store: DirectoryStore, *arguments: str) -> str:
    result = await asyncio.to_thread(invoke, store, *arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return " ".join(result.output.split())


async def test_the_command_line(store, pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("CKPTD_COORDINATOR__LEASE_SECONDS", "1")
    many = replace(TIGHT, keep_last=100, keep_every=0, grace_seconds=10_000.0)
    async with training(store, pool, options=many) as (trainer, _):
        await trainer.up()
        await trainer.ready()
        seqs = [await trainer.checkpoint(step) for step in (10, 20, 30)]
        assert await cli(store, "pin", "10", "--who", "me") == f"record {seqs[0]} (step 10) is pinned by me"
        assert "until me unpin it" in await cli(store, "retire", "10")  # by the coordinator
        assert "objects go after the grace" in await cli(store, "retire", "--seq", str(seqs[1]))
        with pytest.raises(Exception, match="newest"):
            await cli(store, "retire", "30")
        with pytest.raises(ConfigError, match="step 20 is no live checkpoint"):
            await cli(store, "pin", "20")
        with pytest.raises(ConfigError, match="choose another"):
            await cli(store, "pin", "30", "--who", "restore-1-1-1")
        with pytest.raises(ConfigError, match="name one checkpoint"):
            await cli(store, "pin", "30", "--seq", "1")
        assert "pinned by me" in await cli(store, "ls")
    plan = json.loads(await cli(store, "gc", "--dry-run", "--json"))
    assert [(item["what"], item["objects"]) for item in plan["waiting"]] == [(f"checkpoint of step 20, record {seqs[1]}", 3)]
    assert plan["due"] == [] and plan["freed"] is None and plan["waiting"][0]["bytes"] > 0
    monkeypatch.setenv("CKPTD_COORDINATOR__GRACE_SECONDS", "0")
    assert "retired by record" in await cli(store, "gc", "--dry-run")
    assert len(files(store, "data")) == 6
    assert json.loads(await cli(store, "gc", "--json"))["freed"]["objects"] == 3
    assert len(files(store, "data")) == 4
    with pytest.raises(Exception, match="say with --who whose pin"):
        await cli(store, "unpin", "10", "--who", "somebody")
    assert await cli(store, "unpin", "10", "--who", "me") == f"record {seqs[0]} (step 10) is no longer pinned by me"
    assert "freed" in await cli(store, "gc")
    assert len(files(store, "data")) == 2
    # No coordinator runs: a step that came again is retired in an office of the command's own.
    async with training(store, pool, options=many, take_over=True) as (trainer, _):
        await trainer.up()
        await trainer.ask()
        await trainer.restored()
        for step in (30, 40):
            await trainer.checkpoint(step)
    with pytest.raises(ConfigError, match="more than once"):
        await cli(store, "retire", "30")
    assert "is retired by record" in await cli(store, "retire", "--seq", str(seqs[2]))
    state = await CommitLog(store, JOB).load()
    assert state.epoch == 3 and state.commits[seqs[2]].retired_at is not None


async def test_no_office_is_taken_from_a_coordinator_that_lives(store, pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can't be reached, but its hint changes."""
    monkeypatch.setenv("CKPTD_COORDINATOR__LEASE_SECONDS", "1")
    async with training(store, pool, options=replace(TIGHT, keep_last=0, keep_every=0)) as (trainer, _):
        await trainer.up()
        await trainer.ready()
        for step in (10, 20):
            await trainer.checkpoint(step)

        async def nobody_can_tell(*_: object) -> None:
            return None

        monkeypatch.setattr("ckptd.cli.retire.ping", nobody_can_tell)
        monkeypatch.setattr("ckptd.coordinator.leader.ping", nobody_can_tell)
        with pytest.raises(JobInUseError, match="is alive"):
            await cli(store, "retire", "10")


def test_chores_are_one_at_a_time_and_never_another_offices() -> None:
    state = committed(10, 20, 30)
    for n, who in [
        (1, holder_of(1, Generation(1, 1))),
        (2, holder_of(2, Generation(1, 1))),
        (3, holder_of(3, Generation(3, 1))),
    ]:
        state = after(state, Pin(n, who))
    retention = Retention(1)
    assert next_chore(state, 2, retention, None) == Unpin(1, "restore-1-1-1")
    assert next_chore(state, 1, retention, "restore-1-1-1") is None  # deposed and unaware: all else is pinned by later ones
    state = after(state, Unpin(1, "restore-1-1-1"))
    assert next_chore(state, 2, retention, "restore-2-1-1") == Retire(1)
    assert next_chore(state, 2, retention, None) == Unpin(2, "restore-2-1-1")
    assert epoch_of_holder("me@host") is None and epoch_of_holder("restore-12-3-4") == 12
