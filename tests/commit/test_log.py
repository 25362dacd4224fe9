"""Reading and appending, one case at a time; the races are in test_races.py."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ckptd.commit.fold import EMPTY, State, fold
from ckptd.commit.log import CommitLog, RecordRefusedError
from ckptd.commit.office import Committer, pin, take_office, unpin
from ckptd.commit.patience import Patience
from ckptd.commit.reader import encode_hint
from ckptd.commit.state import encode_state, state_hash
from ckptd.errors import (
    AlreadyExistsError,
    CorruptError,
    LogTruncatedError,
    OfficeLostError,
    ResourceError,
    StoreConfigError,
    UnavailableError,
)
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.model.keys import latest_key, log_key, state_key
from ckptd.model.records import Abort, Body, Commit, Epoch, Office, Pin, Record, Unpin, encode
from ckptd.store.directory import DirectoryStore
from tests.clock import FakeClock
from tests.commit.faulty_store import FaultyStore

JOB = "job"
HASH = "ab" * 32


def attempt(step: int) -> Attempt:
    return Attempt(Snapshot(Generation(1, 1), step), 0)


def opened(store: FaultyStore, deadline_seconds: float = 30.0) -> CommitLog:
    return CommitLog(store, JOB, Patience(deadline_seconds, clock=FakeClock(), chance=random.Random(0)))


def built(length: int) -> FaultyStore:
    """A log of ``length`` records, written without CommitLog: some commits, then pins and unpins."""
    store, state = FaultyStore(), EMPTY
    office = Office(1, f"{0:032x}")
    for seq in range(length):
        parent = seq - 1 if seq > 1 else None
        body: Body
        if seq == 0:
            body = Epoch(1)
        elif seq <= 20:
            body = Commit(attempt(seq), HASH, parent, () if parent is None else (parent,))
        else:
            body = Pin(3, "me") if seq % 2 else Unpin(3, "me")
        free = isinstance(body, Pin | Unpin)
        record = Record(seq, f"{seq:032x}", state.last, state_hash(state), None if free else office, body)
        store.objects[state_key(JOB, seq, record.state)] = encode_state(state)
        store.objects[log_key(JOB, seq)] = encode(record)
        state, _ = fold(state, record)
    store.objects[latest_key(JOB)] = encode_hint(length - 1)
    return store


@pytest.fixture(scope="module")
def long_log() -> FaultyStore:
    return built(10_000)


@pytest.mark.parametrize("hint", [9_999, 9_998, 9_000, 5_000, 1, 0, None, b"", b"garbage", b'{"tail":-1,"v":1}', b"x" * 9_999])
async def test_a_long_log_is_read_in_a_few_dozen_gets(long_log: FaultyStore, hint: int | bytes | None) -> None:
    store = FaultyStore()
    store.objects = dict(long_log.objects)
    if hint is None:
        del store.objects[latest_key(JOB)]
    else:
        store.objects[latest_key(JOB)] = hint if isinstance(hint, bytes) else encode_hint(hint)
    state = await opened(store).load()
    assert state.tail == 9_999
    assert list(state.commits) == list(range(1, 21))
    assert state.pins == {3: {"me"}}
    assert store.gets <= 40
    if hint == 9_999:
        assert store.gets <= 12


@pytest.mark.parametrize("length", range(1, 40))
async def test_a_log_of_any_length_is_read(length: int) -> None:
    store = built(length)
    assert (await opened(store).load()).tail == length - 1
    del store.objects[latest_key(JOB)]
    assert (await opened(store).load()).tail == length - 1


async def test_a_store_without_anything_has_an_empty_log() -> None:
    log = opened(FaultyStore())
    assert await log.load() == EMPTY
    assert await log.tail_is_absent()


def _only(*keep: str) -> Callable[[FaultyStore], None]:
    def damage(store: FaultyStore) -> None:
        store.objects = {key: data for key, data in store.objects.items() if any(part in key for part in keep)}

    return damage


def _lose(*seqs: int, hint: int | None = None) -> Callable[[FaultyStore], None]:
    def damage(store: FaultyStore) -> None:
        for seq in seqs:
            del store.objects[log_key(JOB, seq)]
        if hint is not None:
            store.objects[latest_key(JOB)] = encode_hint(hint)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        _only("LATEST"),
        _only("/log/00000000000000000099"),
        _lose(0),
        _lose(*range(50)),
        _lose(99),
        _lose(98),
        _lose(50, hint=50),
        _lose(50, hint=49),
        _lose(50, 51, 52, hint=49),
        _lose(1, hint=0),
    ],
)
async def test_a_lost_record_is_never_an_empty_or_shorter_log(damage: Callable[[FaultyStore], None]) -> None:
    store = built(100)
    damage(store)
    before = dict(store.objects)
    with pytest.raises(LogTruncatedError):
        await opened(store).load()
    with pytest.raises(LogTruncatedError):
        await take_office(opened(store))
    assert store.objects == before


@pytest.mark.parametrize("seq", [0, 98, 99])
async def test_a_changed_record_is_noticed(seq: int) -> None:
    store = built(100)
    key = log_key(JOB, seq)
    store.objects[key] = store.objects[key].replace(f'"nonce":"{seq:032x}"'.encode(), f'"nonce":"{seq + 1:032x}"'.encode())
    if seq == 0:  # an EPOCH names its nonce twice
        store.objects[key] = store.objects[key].replace(f"{0:032x}".encode(), f"{1:032x}".encode())
        store.objects = {k: v for k, v in store.objects.items() if k in (key, log_key(JOB, 1), latest_key(JOB))}
        store.objects[state_key(JOB, 0, state_hash(EMPTY))] = encode_state(EMPTY)
    if seq == 99:  # the last record's own hash stands nowhere yet: it is another valid record
        assert (await opened(store).load()).tail == 99
        return
    with pytest.raises((CorruptError, LogTruncatedError)):
        await opened(store).load()


@pytest.mark.parametrize("what", ["record", "state"])
async def test_damaged_bytes_are_an_error(what: str) -> None:
    for place in range(0, 400, 7):
        store = built(30)
        log = opened(store)
        key = log_key(JOB, 29)
        if what == "state":
            key = state_key(JOB, 29, state_hash(await opened(built(29)).load()))
        data = bytearray(store.objects[key])
        data[place % len(data)] ^= 0x80
        store.objects[key] = bytes(data)
        if what == "state":  # only a shortcut: all records say the same
            assert await log.load() == await opened(built(30)).load()
            continue
        with pytest.raises(CorruptError):
            await log.load()


async def test_lost_states_are_folded_anew_unless_a_record_is_lost_or_changed_too() -> None:
    store, whole = built(100), await opened(built(100)).load()
    _only("/log/", "LATEST")(store)
    assert await opened(store).load() == whole
    key = log_key(JOB, 40)
    good = store.objects[key]
    store.objects[key] = good.replace(f'"nonce":"{40:032x}"'.encode(), f'"nonce":"{41:032x}"'.encode())
    with pytest.raises(CorruptError, match="doesn't follow the one before"):
        await opened(store).load()
    del store.objects[key]
    with pytest.raises(LogTruncatedError, match="lacks a record"):
        await opened(store).load()


async def test_a_state_of_another_history_is_an_error() -> None:
    """A record must name the state of what stands before it, not just any state there is."""
    store, other = built(30), built(20)
    stray = await opened(other).load()
    key = log_key(JOB, 29)
    store.objects |= other.objects | {state_key(JOB, 29, state_hash(stray)): encode_state(stray), key: store.objects[key]}
    right = state_hash(await opened(built(29)).load())
    store.objects[key] = store.objects[key].replace(right.encode(), state_hash(stray).encode())
    store.objects[latest_key(JOB)] = encode_hint(29)
    with pytest.raises(CorruptError, match="another history"):
        await opened(store).load()


async def test_a_reader_that_folds_on_checks_the_chain() -> None:
    store = built(30)
    log = opened(store)
    state = await log.load()
    for wrong in ({"previous": HASH}, {"state": HASH}):
        record = replace(Record(30, "f" * 32, state.last, state_hash(state), None, Unpin(3, "me")), **wrong)  # type: ignore[arg-type]
        store.objects[log_key(JOB, 30)] = encode(record)
        with pytest.raises(CorruptError, match="chain is broken"):
            await log.refresh()
        with pytest.raises((CorruptError, LogTruncatedError)):
            await opened(store).load()


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
