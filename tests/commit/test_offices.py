"""Taking office, and what an officer, a former one or a candidate may do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from ckptd.commit.fold import State
from ckptd.commit.log import CommitLog, RecordRefusedError
from ckptd.commit.office import Committer, pin, take_office, unpin
from ckptd.commit.patience import Patience
from ckptd.errors import OfficeLostError, UnavailableError
from ckptd.model.records import Record
from tests.clock import FakeClock
from tests.commit.faulty_store import FaultyStore
from tests.commit.logs import HASH, JOB, attempt, opened


async def test_office_commit_abort_quarantine_pin() -> None:
    store = FaultyStore()
    log = opened(store)
    committer = Committer(log, await take_office(log))
    assert committer.office.epoch == 1
    first = await committer.commit(attempt(10), HASH)
    second = await committer.commit(attempt(20), HASH, bases=[first], parent=first)
    assert (first, second) == (1, 2)
    assert await committer.abort(attempt(30)) == 3
    await pin(log, first, "me")
    await pin(log, first, "me")
    assert await committer.quarantine(second, "hash of a frame\ndiffers") == 5
    await unpin(log, first, "me")
    await unpin(log, first, "me")
    state = await opened(store).load()
    assert state == log.state
    assert state.tail == 6
    assert state.commits[second].parent == first
    assert log.state.pins == {}


async def test_what_is_done_already_is_not_done_twice() -> None:
    store = FaultyStore()
    log = opened(store)
    committer = Committer(log, await take_office(log))
    assert await committer.commit(attempt(10), HASH) == await committer.commit(attempt(10), HASH) == 1
    assert await committer.abort(attempt(20)) == await committer.abort(attempt(20)) == 2
    assert await committer.quarantine(1, "x") == await committer.quarantine(1, "y") == 3
    assert log.state.tail == 3


async def test_what_the_fold_would_void_is_refused_and_not_written() -> None:
    log = opened(FaultyStore())
    committer = Committer(log, await take_office(log))
    first = await committer.commit(attempt(10), HASH)
    await committer.abort(attempt(20))
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: committer.commit(attempt(20), HASH),
        lambda: committer.commit(attempt(10), "cd" * 32),
        lambda: committer.commit(attempt(30), HASH, bases=[first + 1]),
        lambda: committer.commit(attempt(30), HASH, parent=None),
        lambda: committer.abort(attempt(10)),
        lambda: committer.quarantine(7, "x"),
        lambda: pin(log, 7, "me"),
    ]
    for call in calls:
        with pytest.raises(RecordRefusedError):
            await call()
    assert log.state.tail == 2


async def test_a_deposed_officer_steps_down_and_leaves_no_record() -> None:
    store = FaultyStore()
    old = opened(store)
    former = Committer(old, await take_office(old))
    new = opened(store)
    await take_office(new)
    for call in (former.commit(attempt(10), HASH), former.abort(attempt(10)), former.quarantine(1, "x")):
        with pytest.raises(OfficeLostError):
            await call
    assert (await new.refresh()).tail == 1


async def test_candidates_do_not_depose_each_other_for_ever() -> None:
    store = FaultyStore()
    rival = opened(store)

    class Race(CommitLog):
        async def _write(self, state: State, draft: Record, effort: object) -> bool:
            await take_office(rival)
            return await super()._write(state, draft, effort)  # type: ignore[arg-type]

    loser = Race(store, JOB, Patience(clock=FakeClock()))
    with pytest.raises(OfficeLostError, match="tries=3"):
        await take_office(loser)
    assert (await rival.refresh()).epoch == 3


async def test_tail_is_absent_tells_a_former_officer() -> None:
    store = FaultyStore()
    old, new = opened(store), opened(store)
    await take_office(old)
    assert await old.tail_is_absent()
    await take_office(new)
    assert not await old.tail_is_absent()
    store.faults = 1.0
    with pytest.raises(UnavailableError):
        await new.tail_is_absent()
