"""Reading the log, one case at a time; the races are in test_races.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ckptd.commit.fold import EMPTY
from ckptd.commit.office import take_office
from ckptd.commit.reader import encode_hint
from ckptd.commit.state import encode_state, state_hash
from ckptd.errors import CorruptError, LogTruncatedError
from ckptd.model.keys import latest_key, log_key, state_key
from ckptd.model.records import Record, Unpin, encode
from tests.commit.faulty_store import FaultyStore
from tests.commit.logs import HASH, JOB, built, opened


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
