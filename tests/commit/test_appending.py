"""One append, with all that can happen to it on its way; the races are in test_races.py."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from ckptd.commit.fold import EMPTY, State
from ckptd.commit.log import CommitLog, RecordRefusedError
from ckptd.commit.office import Committer, pin, take_office
from ckptd.commit.state import state_hash
from ckptd.errors import AlreadyExistsError, LogTruncatedError, ResourceError, StoreConfigError, UnavailableError
from ckptd.model.keys import latest_key, log_key, state_key
from ckptd.model.records import Abort, Body
from ckptd.store.directory import DirectoryStore
from tests.commit.faulty_store import FaultyStore
from tests.commit.logs import HASH, JOB, attempt, opened


class ScriptedStore(FaultyStore):
    """Its creates do as the script says, one word each: ok, lost (written, no reply), down (not written), taken (a lie)."""

    script: tuple[str, ...] = ()

    async def create(self, key: str, data: bytes | bytearray | memoryview) -> None:
        word, self.script = (self.script[0], self.script[1:]) if self.script else ("ok", ())
        if word in ("ok", "lost"):
            await super().create(key, data)
        if word in ("lost", "down"):
            raise UnavailableError(word)
        if word == "taken":
            raise AlreadyExistsError(word)


@pytest.mark.parametrize("script", [("lost",), ("down", "ok"), ("taken", "down", "lost"), ("down",) * 5 + ("lost",)])
async def test_a_lost_reply_or_a_409_is_read_back(script: tuple[str, ...]) -> None:
    store = ScriptedStore()
    log = opened(store)
    committer = Committer(log, await take_office(log))
    store.script = script
    assert await committer.commit(attempt(10), HASH) == 1
    assert len(store.created) == 2


async def test_doubt_is_not_an_outcome_and_the_next_append_settles_it() -> None:
    """The write lands after its writer gave up; before the next append knows it."""
    store = ScriptedStore()
    log = opened(store, deadline_seconds=5)
    committer = Committer(log, await take_office(log))
    late: list[tuple[str, bytes]] = []

    async def stall(key: str, data: bytes) -> None:
        late.append((key, bytes(data)))
        raise UnavailableError("timeout")

    store.create, create = stall, store.create  # type: ignore[method-assign,assignment]
    with pytest.raises(UnavailableError, match="outcome of an append is unknown"):
        await committer.commit(attempt(10), HASH)
    assert len(late) > 1 and len(set(late)) == 1  # the same bytes each time
    store.create = create  # type: ignore[method-assign]
    await create(*late[0])
    assert await committer.abort(attempt(20)) == 2
    assert log.state.committed == {attempt(10): 1}
    assert await committer.commit(attempt(10), HASH) == 1


async def test_a_write_that_lands_too_late_finds_its_number_taken() -> None:
    store = ScriptedStore()
    log = opened(store, deadline_seconds=5)
    committer = Committer(log, await take_office(log))
    store.script = ("down",) * 1000
    with pytest.raises(UnavailableError, match="unknown"):
        await committer.commit(attempt(10), HASH)
    store.script = ()
    assert await committer.abort(attempt(10)) == 1
    with pytest.raises(RecordRefusedError):
        await committer.commit(attempt(10), HASH)


async def test_before_the_record_nothing_is_in_doubt() -> None:
    store = FaultyStore()
    log = opened(store, deadline_seconds=5)
    office = await take_office(log)

    async def put(key: str, data: bytes) -> None:
        raise UnavailableError("down")

    store.put = put  # type: ignore[method-assign,assignment]
    with pytest.raises(UnavailableError, match="nothing was written"):
        await Committer(log, office).commit(attempt(10), HASH)
    assert await log.tail_is_absent()


async def test_a_hint_that_cannot_be_written_changes_nothing() -> None:
    store = FaultyStore()
    put = store.put

    async def no_hint(key: str, data: bytes) -> None:
        if key == latest_key(JOB):
            raise StoreConfigError("no right to overwrite")
        await put(key, data)

    store.put = no_hint  # type: ignore[method-assign,assignment]
    log = opened(store)
    assert await Committer(log, await take_office(log)).commit(attempt(10), HASH) == 1
    assert latest_key(JOB) not in store.objects
    assert (await opened(store).load()).tail == 1


async def test_the_folded_state_is_stored_before_its_record() -> None:
    store = FaultyStore()
    writes: list[str] = []
    put, create = store.put, store.create

    async def note_put(key: str, data: bytes) -> None:
        writes.append(key)
        await put(key, data)

    async def note_create(key: str, data: bytes) -> None:
        writes.append(key)
        await create(key, data)

    store.put, store.create = note_put, note_create  # type: ignore[method-assign,assignment]
    await take_office(opened(store))
    assert writes == [state_key(JOB, 0, state_hash(EMPTY)), log_key(JOB, 0), latest_key(JOB)]


async def test_a_state_beyond_its_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    store = FaultyStore()
    log = opened(store)
    office = await take_office(log)
    monkeypatch.setattr("ckptd.commit.log.MAX_STATE_BYTES", 100)
    with pytest.raises(ResourceError):
        await Committer(log, office).commit(attempt(10), HASH)
    assert len(store.created) == 1


async def test_appends_of_one_process_go_one_after_the_other() -> None:
    store = FaultyStore(random.Random(3))
    log = opened(store)
    committer = Committer(log, await take_office(log))
    numbers = await asyncio.gather(*(committer.commit(attempt(step), HASH) for step in range(20)))
    assert sorted(numbers) == list(range(1, 21))
    assert len(store.created) == 21


async def test_a_cancelled_append_is_found_by_the_next() -> None:
    store = FaultyStore(random.Random(1))
    log = opened(store)
    committer = Committer(log, await take_office(log))
    for turns in range(1, 30):
        task = asyncio.create_task(committer.commit(attempt(turns), HASH))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await log.refresh()
    assert await opened(store).load() == log.state
    assert len(store.created) == log.state.tail + 1
    assert 1 < len(store.created) < 30


async def test_decide_is_asked_again_after_anothers_record() -> None:
    store = FaultyStore()
    ours, theirs = opened(store), opened(store)
    office = await take_office(ours)
    await Committer(ours, office).commit(attempt(10), HASH)
    await pin(theirs, 1, "reader")
    seen: list[int] = []

    def decide(state: State) -> Body:
        seen.append(state.tail)
        return Abort(attempt(20))

    assert await ours.append(decide, office) == 3
    assert seen == [1, 2]


async def test_on_a_real_directory(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    log = CommitLog(store, JOB)
    committer = Committer(log, await take_office(log))
    await asyncio.gather(*(committer.commit(attempt(step), HASH) for step in range(3)))
    assert await CommitLog(store, JOB).load() == log.state
    (tmp_path / "store" / log_key(JOB, 0)).unlink()
    with pytest.raises(LogTruncatedError):
        await CommitLog(store, JOB).load()
    await store.close()


async def test_state_before_load_is_a_mistake() -> None:
    with pytest.raises(RuntimeError):
        _ = opened(FaultyStore()).state
