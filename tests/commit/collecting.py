"""A store that judges every delete, and those who work on one log side by side: coordinators, readers, sweepers."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import msgpack

from ckptd.commit.collect import make_plan
from ckptd.commit.fold import State, restore_candidate
from ckptd.commit.log import CommitLog, RecordRefusedError
from ckptd.commit.office import Committer, NewestCommitError, pin, take_office, unpin
from ckptd.commit.patience import Patience
from ckptd.commit.retention import Retention, next_to_retire
from ckptd.commit.sweep import execute
from ckptd.errors import CkptdError, OfficeLostError, UnavailableError
from ckptd.model.canonical import digest
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.model.keys import index_key, layout_key, manifest_key, segment_key
from ckptd.model.manifest import Manifest, ObjectRef
from ckptd.store.base import Body, ObjectInfo, pieces_of
from ckptd.store.retry import RetryingStore, RetrySettings
from tests.clock import FakeClock
from tests.commit import oracle
from tests.commit.faulty_store import FaultyStore

JOB = "job"
LAYOUT = b"one and the same for all worlds"


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
