"""Collection under seeded interleavings: offices that change, readers with and without pins, a collector that was stopped.

The store checks by itself, at every delete and at every new record and with the oracle's own eyes, that nothing which a live or
pinned commit needs is missing (I2, I6, I7), and that the tail's folded state is there.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from ckptd.commit import collect
from ckptd.commit.collect import KEEP_STATES, Kind, make_plan
from ckptd.commit.fold import collectable
from ckptd.commit.log import CommitLog, RecordRefusedError
from ckptd.commit.office import Committer, NewestCommitError, take_office
from ckptd.commit.patience import Patience
from ckptd.commit.sweep import Collector, execute
from ckptd.errors import CkptdError, LogTruncatedError, NotFoundError
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.model.keys import data_prefix, manifest_key
from tests.clock import FakeClock
from tests.commit.collecting import JOB, Coordinator, WatchedStore, needs, run_schedule

SCHEDULES = 12


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
