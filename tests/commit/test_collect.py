"""Collection under seeded interleavings: offices that change, readers with and without pins, a collector that was stopped.

The store checks by itself, at every delete and at every new record and with the oracle's own eyes, that nothing which a live or
pinned commit needs is missing (I2, I6, I7), and that the tail's folded state is there.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import msgpack
import pytest

from ckptd.commit import collect
from ckptd.commit.collect import KEEP_STATES, Kind, make_plan
from ckptd.commit.fold import State, collectable, restore_candidate
from ckptd.commit.log import CommitLog, RecordRefusedError
from ckptd.commit.office import Committer, NewestCommitError, pin, take_office, unpin
from ckptd.commit.patience import Patience
from ckptd.commit.retention import Retention, next_to_retire
from ckptd.commit.sweep import Collector, execute
from ckptd.errors import CkptdError, LogTruncatedError, NotFoundError, OfficeLostError, UnavailableError
from ckptd.model.canonical import digest
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.model.keys import data_prefix, index_key, layout_key, manifest_key, segment_key
from ckptd.model.manifest import Manifest, ObjectRef
from ckptd.store.base import Body, ObjectInfo, pieces_of
from ckptd.store.retry import RetryingStore, RetrySettings
from tests.clock import FakeClock
from tests.commit import oracle
from tests.commit.faulty_store import FaultyStore

JOB = "job"
LAYOUT = b"one and the same for all worlds"
SCHEDULES = 12


class WatchedStore(FaultyStore):
    """Its own clock ticks with every write. Deletes, and judges each of them."""

    def __init__(self, rng: random.Random, faults: float) -> None:
        super().__init__(rng, faults)
        self.time = 1e9
        self.modified: dict[str, float] = {}
        self.deleted: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def put(self, key: str, data: Body) -> None:
        content = b"".join(pieces_of(data))
        await self._do(lambda: self._land(key, content))

    async def create(self, key: str, data: bytes | bytearray | memoryview) -> None:
        await super().create(key, data)
        self._stamp(key)
        self._judge(f"record {key} came")

    async def info(self, key: str) -> ObjectInfo:
        size = len(await self.get(key))
        return ObjectInfo(key, size, self.modified.get(key, self.time))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        await self._turns()
        for key in [key for key in self.objects if key.startswith(prefix)]:
            yield ObjectInfo(key, len(self.objects[key]), self.modified.get(key, self.time))

    async def delete(self, key: str) -> None:
        def land() -> None:
            assert "/log/" not in key
            if self.objects.pop(key, None) is not None:
                self.deleted[key.split("/")[1]] += 1
                self._judge(f"{key} was deleted")

        await self._do(land)

    def _land(self, key: str, content: bytes) -> None:
        self.objects[key] = content
        self._stamp(key)

    def _stamp(self, key: str) -> None:
        self.time += 1
        self.modified[key] = self.time

    def log(self) -> list[oracle.Raw]:
        return [json.loads(self.objects[key]) for key in sorted(self.objects) if "/log/" in key]

    def _judge(self, what: str) -> None:
        log = self.log()
        counted = oracle.rules(log)
        end = len(log)
        state = f"{JOB}/state/{end - 1:020d}-{log[-1]['state']}"
        missing = [] if state in self.objects else [state]
        for n in range(end):
            if oracle.live(log, counted, n, end) or (
                log[n]["body"]["type"] == "COMMIT" and oracle.pinned(log, counted, n, end)
            ):
                missing += [key for key in needs(self.objects, log[n]["body"]) if key not in self.objects]
        if missing:
            self.wrong.append(f"after {what}: {missing} missing")


def needs(objects: dict[str, bytes], body: dict[str, str]) -> list[str]:
    """All objects of a commit, from its record's body."""
    attempt = body["attempt"]
    place = f"{JOB}/manifest/{body['manifest']}"
    if place not in objects:
        return [place]
    fields = msgpack.unpackb(objects[place])
    return [
        place,
        f"{JOB}/layout/{attempt.split('.')[0]}/{fields['layout'][0]}",
        f"{JOB}/data/{attempt}/{fields['index'][0]}.idx",
        f"{JOB}/data/{attempt}/w.1-0.seg",
    ]


class Actor:
    """What all of them have: a log of their own, and luck."""

    def __init__(self, store: WatchedStore, rng: random.Random, told: Counter[str]) -> None:
        clock = FakeClock()
        patience = Patience(rng.choice((2.0, 20.0)), clock=clock, chance=rng)
        self.store, self.rng, self.told = store, rng, told
        self.log = CommitLog(store, JOB, patience, nonce=lambda: f"{rng.getrandbits(128):032x}")

    async def pause(self, turns: int = 40) -> None:
        for _ in range(self.rng.randrange(turns)):
            await asyncio.sleep(0)

    async def insist(self, call):
        """As a retrying store does."""
        for _ in range(200):
            try:
                return await call()
            except UnavailableError:
                await self.pause()
        raise AssertionError("the faults never end")


class Coordinator(Actor):
    """Takes office, forms a world, commits and aborts, retires; falls silent or is deposed; and takes office again."""

    async def live(self, reigns: int, commits: int) -> None:
        for _ in range(reigns):
            try:
                office = await self.insist(lambda: take_office(self.log))
                await self.reign(Committer(self.log, office), commits)
            except OfficeLostError:
                self.told["deposed"] += 1
            await self.pause(300)

    async def reign(self, committer: Committer, commits: int) -> None:
        generation = Generation(committer.office.epoch, 1)
        retention = Retention(self.rng.choice((1, 2)), self.rng.choice((0, 40)))
        for step in range(10, 10 * commits, 10):
            if self.rng.random() < 0.15:
                generation = replace(generation, n=generation.n + 1)
            attempt = Attempt(Snapshot(generation, step), 0)
            if self.rng.random() < 0.9:
                await self.attempt(committer, attempt)
            await self.pause()
            if self.rng.random() < 0.1:
                try:
                    await self.insist(lambda attempt=attempt: committer.forget(attempt.snapshot))
                    self.told["forgotten"] += 1
                except RecordRefusedError:
                    self.told["not forgotten"] += 1
            while (n := next_to_retire(self.log.state, retention)) is not None and self.rng.random() < 0.9:
                try:
                    await self.insist(lambda n=n: committer.retire(n))
                    self.told["retired"] += 1
                except (RecordRefusedError, NewestCommitError):
                    break

    async def attempt(self, committer: Committer, attempt: Attempt) -> None:
        body = self.rng.randbytes(8)
        await self.insist(lambda: self.store.put(segment_key(JOB, attempt, "w.1", 0), body))
        if self.rng.random() < 0.2:
            await self.insist(lambda: committer.abort(attempt))
            self.told["aborted"] += 1
            return
        index = self.rng.randbytes(8)
        newest = restore_candidate(self.log.state)
        layout = ObjectRef(digest(LAYOUT), len(LAYOUT))
        parent = None if newest is None else newest.n
        manifest = Manifest(JOB, attempt, 1, parent, layout, ObjectRef(digest(index), len(index)), 8, 8)
        name = digest(manifest.encode())
        await self.insist(lambda: self.store.put(layout_key(JOB, attempt.snapshot.generation, layout.hash), LAYOUT))
        await self.insist(lambda: self.store.put(index_key(JOB, attempt, digest(index)), index))
        await self.insist(lambda: self.store.put(manifest_key(JOB, name), manifest.encode()))
        await self.pause(200 if self.rng.random() < 0.1 else 10)
        try:
            await self.insist(lambda: committer.commit(attempt, name, (), parent))
            self.told["committed"] += 1
        except RecordRefusedError:
            self.told["refused"] += 1


class Reader(Actor):
    """Pins the newest commit and reads it slowly; between, finds the log's tail from nothing."""

    def __init__(self, store: WatchedStore, rng: random.Random, told: Counter[str], name: str) -> None:
        super().__init__(store, rng, told)
        self.name = name

    async def live(self, times: int) -> None:
        for _ in range(times):
            await self.pause(100)
            state = await self.insist(self.log.load)
            commits = list(state.commits)
            if not commits:
                continue
            n = commits[-1] if self.rng.random() < 0.7 else self.rng.choice(commits)
            try:
                await self.insist(lambda n=n: pin(self.log, n, self.name))
            except RecordRefusedError:
                self.told["pin refused"] += 1
                continue
            for key in needs(
                self.store.objects, {"attempt": str(state.commits[n].attempt), "manifest": state.commits[n].manifest}
            ):
                await self.pause(200)
                await self.insist(lambda key=key: self.store.get(key))
            self.told["read pinned"] += 1
            await self.insist(lambda n=n: unpin(self.log, n, self.name))


class Sweeper(Actor):
    """Plans, and executes what it planned at once, or much later."""

    async def live(self, times: int, delay: int) -> None:
        store = RetryingStore(self.store, RetrySettings(deadline_seconds=None, retries_per_second=1e9), FakeClock())
        for _ in range(times):
            await self.pause(60)
            grace = self.rng.choice((0.0, 0.0, 30.0))
            state = await self.insist(self.log.refresh)
            plan = await make_plan(store, JOB, state, grace, {})
            for _ in range(delay):
                await asyncio.sleep(0)
            stale = CommitLog(self.store, JOB, Patience(20, clock=FakeClock()))
            if delay:  # it doesn't even look at the log again
                stale.refresh = lambda state=state: _same(state)  # type: ignore[method-assign, assignment]
            try:
                await self.insist(lambda: execute(store, stale, plan))  # noqa: B023
            except CkptdError as error:
                assert "doesn't follow" in str(error)
                self.told["plan refused"] += 1
            self.told["swept"] += len(plan.due)
            self.told.update(f"swept {item.thing.kind}" for item in plan.due)


async def _same(state: State) -> State:
    return state


async def run_schedule(seed: int, faults: float, commits: int = 14) -> tuple[WatchedStore, Counter[str]]:
    rng = random.Random(seed)
    told: Counter[str] = Counter()
    store = WatchedStore(random.Random(rng.random()), faults)

    def luck() -> random.Random:
        return random.Random(rng.random())

    tasks = [asyncio.create_task(Coordinator(store, luck(), told).live(2, commits)) for _ in range(2)]
    tasks += [asyncio.create_task(Reader(store, luck(), told, f"reader{i}").live(12)) for i in range(2)]
    tasks.append(asyncio.create_task(Sweeper(store, luck(), told).live(12, 0)))
    tasks.append(asyncio.create_task(Sweeper(store, luck(), told).live(3, 3000)))
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await store.close()
    return store, told


@pytest.mark.parametrize("faults", [0.0, 0.15])
async def test_nothing_that_is_needed_is_ever_missing(faults: float) -> None:
    told: Counter[str] = Counter()
    for seed in range(SCHEDULES):
        store, outcomes = await run_schedule(seed, faults)
        assert not store.wrong, f"seed={seed} faults={faults}: {store.wrong[:3]}"
        told += outcomes
        store.faults = 0.0
        await everything_else_goes(store, seed)
    wanted = {"committed", "retired", "aborted", "deposed", "read pinned", "pin refused", "forgotten"}
    wanted |= {f"swept {kind}" for kind in (Kind.COMMIT, Kind.ATTEMPT, Kind.LAYOUT, Kind.STATE)}
    assert wanted <= told.keys() and not told["plan refused"], told


async def everything_else_goes(store: WatchedStore, seed: int) -> None:
    """Once all is quiet, a new office with its collector leaves what is kept and nothing more."""
    log = CommitLog(store, JOB, Patience(20, clock=FakeClock()))
    committer = Committer(log, await take_office(log))
    passed = Generation(10**6, 1)
    settled = Snapshot(passed, 10**6)
    # One commit of a world after all others, so that their layouts may go.
    await Coordinator(store, random.Random(0), Counter()).insist(log.refresh)
    coordinator = Coordinator(store, random.Random(seed), Counter())
    coordinator.log = log
    coordinator.rng.random = lambda: 0.5  # type: ignore[method-assign]
    await coordinator.attempt(committer, Attempt(Snapshot(passed, 10), 0))
    collector = Collector(store, JOB, log, committer, 0.0, lambda: settled, FakeClock())
    for _ in range(4):
        await collector.round()
    assert not store.wrong, store.wrong
    state = log.state
    kept = [e for e in state.commits.values() if e.live or e.n in state.pins]
    prefixes = tuple(f"{JOB}/{name}" for name in ("log/", "LATEST", "CLOCK"))
    left = {key for key in store.objects if not key.startswith(prefixes)}
    states = {key for key in left if "/state/" in key}
    expected = {key for e in kept for key in needs(store.objects, {"attempt": str(e.attempt), "manifest": e.manifest})}
    extra = left - states - expected
    # Besides its own, an attempt that came to be committed in two ways has an index that only goes with it.
    extra = {key for key in extra if not any(key.startswith(data_prefix(JOB, e.attempt)) for e in kept)}
    assert not extra, f"seed={seed}: {sorted(extra)}"
    assert len(states) <= KEEP_STATES + 1


async def _caught(seeds: int = 40) -> bool:
    for seed in range(seeds):
        try:
            store, _ = await run_schedule(seed, 0.0)
        except (LogTruncatedError, NotFoundError):
            return True
        if store.wrong:
            return True
    return False


async def test_a_collector_that_ignores_pins_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "collectable", lambda state: collectable(replace(state, pins={})))
    assert await _caught()


async def test_a_collector_that_takes_the_tails_state_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "KEEP_STATES", -1)
    assert await _caught()


async def test_layouts_stay_while_their_world_may_yet_commit() -> None:
    """A commit on its way may rest on a layout that no commit has now: not even when all others are gone may it go."""
    store, log, committer, coordinator = await quiet()
    await coordinator.attempt(committer, Attempt(Snapshot(Generation(1, 1), 10), 0))
    await committer.quarantine(1, "bad")
    kinds = [item.thing.kind for item in (await make_plan(store, JOB, log.state, 0.0, {})).due]
    assert kinds == [Kind.COMMIT]
    await coordinator.attempt(committer, Attempt(Snapshot(Generation(1, 1), 20), 0))
    await coordinator.attempt(committer, Attempt(Snapshot(Generation(1, 2), 30), 0))
    kinds = [item.thing.kind for item in (await make_plan(store, JOB, log.state, 0.0, {})).due]
    assert kinds == [Kind.COMMIT]  # the second commit is kept
    await committer.retire(3)
    plan = await make_plan(store, JOB, log.state, 0.0, {})
    assert [str(item.thing) for item in plan.due if item.thing.kind is Kind.LAYOUT] == ["layouts of generation 1-1"]
    with pytest.raises(RecordRefusedError, match="later generation"):
        await committer.commit(Attempt(Snapshot(Generation(1, 1), 40), 0), "f" * 64)
    await execute(store, log, plan)
    assert not store.wrong


async def quiet() -> tuple[WatchedStore, CommitLog, Committer, Coordinator]:
    """A store without faults and a coordinator in office whose attempts are all committed."""
    store = WatchedStore(random.Random(0), 0.0)
    log = CommitLog(store, JOB, Patience(20, clock=FakeClock()))
    coordinator = Coordinator(store, random.Random(1), Counter())
    coordinator.log, coordinator.rng.random = log, lambda: 0.5  # type: ignore[method-assign]
    return store, log, Committer(log, await take_office(log)), coordinator


async def test_a_reader_that_lost_the_race_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tail's state is collected while it reads; with the next record there it goes on, without it the store has lost it."""
    store = WatchedStore(random.Random(0), 0.0)
    log = CommitLog(store, JOB, Patience(20, clock=FakeClock()))
    committer = Committer(log, await take_office(log))
    for step in range(8):
        await committer.abort(Attempt(Snapshot(Generation(1, 1), step), 0))
    slow = CommitLog(store, JOB, Patience(20, clock=FakeClock()))
    real, times = store.get, 0

    async def get(key: str, start: int = 0, end: int | None = None) -> bytes:
        nonlocal times
        if "/state/" in key and times < 3:
            times += 1
            await committer.abort(Attempt(Snapshot(Generation(1, 2), times), 0))
            del store.objects[key]
        return await real(key, start, end)

    monkeypatch.setattr(store, "get", get)
    assert await slow.load() == log.state
    assert times == 3
    last = max(key for key in store.objects if "/state/" in key)
    del store.objects[last]
    reads = store.gets
    assert await slow.load() == log.state
    assert store.gets > reads + log.state.tail, "nobody may collect that one, so it must be made anew from all records"


async def test_grace_is_by_the_stores_clock() -> None:
    store, log, committer, coordinator = await quiet()
    for step in (10, 20):
        await coordinator.attempt(committer, Attempt(Snapshot(Generation(1, 1), step), 0))
    first, second = log.state.commits
    with pytest.raises(NewestCommitError):
        await committer.retire(second)
    at = await committer.retire(first)
    retired_seconds = (await store.info(f"{JOB}/log/{at:020d}")).modified_seconds
    plan = await make_plan(store, JOB, log.state, 1000.0, {})
    (item,) = plan.waiting
    assert not plan.due and item.due_seconds == retired_seconds + 1000 and item.why == f"retired by record {at}"
    assert [info.key.rpartition("/")[2].rpartition(".")[2] for info in item.objects[:2]] == ["idx", "seg"]
    assert item.objects[-1].key == manifest_key(JOB, log.state.commits[first].manifest)
    store.time += 1000
    plan = await make_plan(store, JOB, log.state, 1000.0, {})
    assert plan.due == (item,) and not plan.waiting
    freed = await execute(store, log, plan)
    assert (freed.objects, freed.size_bytes) == (3, item.size_bytes)
    assert not store.wrong


async def test_what_is_not_ours_is_left_alone() -> None:
    store, log, committer, coordinator = await quiet()
    for step in (10, 20):
        await coordinator.attempt(committer, Attempt(Snapshot(Generation(1, 1), step), 0))
    await committer.retire(1)
    foreign = ["data/1-1.10.0/my notes.txt", "data/notes/x", "layout/old/x", "manifest/x", "state/x", f"manifest/{'0' * 64}"]
    for name in foreign:
        store.objects[f"{JOB}/{name}"] = b"mine"
    plan = await make_plan(store, JOB, log.state, 0.0, {})
    assert [len(item.objects) for item in plan.due] == [3] and not plan.unsettled
    await execute(store, log, plan)
    assert not (await make_plan(store, JOB, log.state, 0.0, {})).due
    assert all(f"{JOB}/{name}" in store.objects for name in foreign)


async def test_what_is_collected_is_forgotten() -> None:
    """There is always something that waits in a job that goes on: what was remembered of the rest must not pile up."""
    store, log, committer, coordinator = await quiet()
    known: dict[int, float] = {}
    for step in range(10, 200, 10):
        await coordinator.attempt(committer, Attempt(Snapshot(Generation(1, 1), step), 0))
        for n in [n for n, entry in log.state.commits.items() if entry.live][:-2]:
            await committer.retire(n)
        plan = await make_plan(store, JOB, log.state, 8.0, known, 100)
        await execute(store, log, plan)
        assert len(known) <= len(plan.due) + len(plan.waiting)
    assert store.deleted and plan.waiting and not store.wrong


async def test_a_plan_that_the_log_does_not_bear_out_is_not_carried_out() -> None:
    store, log, committer, coordinator = await quiet()
    for step in (10, 20):
        await coordinator.attempt(committer, Attempt(Snapshot(Generation(1, 1), step), 0))
    first = next(iter(log.state.commits))
    forged = replace(log.state, commits={n: replace(e, retired_at=9) for n, e in log.state.commits.items() if n == first})
    plan = await make_plan(store, JOB, forged, 0.0, {9: 0.0})
    assert plan.due
    with pytest.raises(CkptdError, match="doesn't follow"):
        await execute(store, log, plan)
    assert not store.deleted
