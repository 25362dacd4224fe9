"""Finding the tail of a log in a few dozen reads, and the state there, without trusting anybody's word (PROTOCOLS 4.5)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from ckptd.commit.fold import EMPTY, State, check_chain, fold
from ckptd.commit.state import EMPTY_HASH, decode_state, state_hash
from ckptd.errors import CorruptError, LogTruncatedError
from ckptd.model.canonical import MAX_NUMBER, canonical, digest, is_number, parse_canonical
from ckptd.model.keys import log_key, state_key
from ckptd.model.records import GENESIS, decode

MAX_HINT_BYTES: Final = 200
# How far past the tail we look for records that would show it to be a hole. Doubling distances: a lost record, or a lost run
# of them.
_LOOK_BEYOND: Final = (1, 2, 4, 8, 16)
_GALLOP: Final = 4
MAX_REFOLD_RECORDS: Final = 100_000
_AT_ONCE: Final = 32
_log = structlog.get_logger(__name__)

Get = Callable[[int], Awaitable[bytes | None]]
GetState = Callable[[int, str], Awaitable[bytes | None]]


def encode_hint(tail: int) -> bytes:
    """The bytes of LATEST: the log was at least this long once."""
    return canonical({"tail": tail, "v": 1})


def decode_hint(data: bytes | None) -> int | None:
    """The tail that LATEST names; None if it is absent or not ours to read: it is only a hint."""
    if data is None:
        return None
    try:
        tail = parse_canonical(data, MAX_HINT_BYTES, "tail v")["tail"]
    except CorruptError:
        return None
    return tail if isinstance(tail, int) and is_number(tail) else None


async def find_tail(get: Get, job: str, hint: int | None) -> int:
    """The number of the last record, given that record 0 is there: about 2 log4(n) + log2(n) reads, 8 with a fresh hint.

    Raises LogTruncatedError when the hint names a record that isn't there (LATEST is written after its record), or when one
    stands beyond an absent one.
    """
    low = hint or 0
    if await get(low) is None:
        raise LogTruncatedError(f"it once had a record that is gone key={log_key(job, low)}")
    while True:
        low = await _boundary(get, low)
        if not await _anything_beyond(get, low + 1):
            return low
        # Either writers were faster than our reads, or record low + 1 is a hole.
        if await get(low + 1) is None:
            raise LogTruncatedError(f"it has later records but lacks this one key={log_key(job, low + 1)}")


async def _boundary(get: Get, low: int) -> int:
    """Some number that is there while the next one isn't, starting from ``low``, which is there."""
    distance = 1
    while await get(low + distance) is not None:
        low, distance = low + distance, distance * _GALLOP
        if low > MAX_NUMBER // _GALLOP:
            raise CorruptError(f"no log is that long seq={low}")
    high = low + distance
    while high - low > 1:
        middle = (low + high) // 2
        if await get(middle) is None:
            high = middle
        else:
            low = middle
    return low


async def _anything_beyond(get: Get, absent: int) -> bool:
    for distance in _LOOK_BEYOND:
        if await get(absent + distance) is not None:
            return True
    return False


async def read_state(get: Get, get_state: GetState, job: str, tail: int) -> State | None:
    """The state after record ``tail``, from the folded state that the record names; checks both against the record before.

    None when ``tail`` isn't the tail any more and its folded state was collected: look for the tail again, from the next
    record on, which is there. A missing or damaged folded state at the very tail, which nobody may collect, is made anew from
    all records. Raises LogTruncatedError for a missing record; CorruptError when they don't fit together.
    """
    data = await _present(get, job, tail)
    try:
        record = decode(tail, data)
    except CorruptError as error:
        raise CorruptError(f"{error} key={log_key(job, tail)}") from None
    if tail == 0:
        before, previous, name = EMPTY, GENESIS, EMPTY_HASH
    else:
        previous = digest(await _present(get, job, tail - 1))
        found = await get_state(tail, record.state)
        # Asked after the state was seen missing: whoever deleted it had seen later records before.
        if found is None and await get(tail + 1) is not None:
            return None
        if found is None or digest(found) != record.state:
            before = await _refold(get, job, tail, record.state)
            name = state_hash(before)
        else:
            before, name = decode_state(found), record.state
    if before.tail != tail - 1 or before.last != previous:
        raise CorruptError(f"a log record names the folded state of another history key={log_key(job, tail)}")
    check_chain(before, record, name)
    return fold(before, record)[0]


async def _refold(get: Get, job: str, tail: int, name: str) -> State:
    """The folded state before record ``tail``, from all records before it: the object that holds it is gone or damaged.

    Nothing is believed that isn't in a record, and the result must have the hash that record ``tail`` names.
    """
    key = state_key(job, tail, name)
    if tail > MAX_REFOLD_RECORDS:
        raise CorruptError(f"the folded state is missing or damaged, and the log too long to do without key={key}")
    _log.error("A FOLDED STATE IS MISSING OR DAMAGED; folding all records instead", key=key, records=tail)
    state = EMPTY
    for start in range(0, tail, _AT_ONCE):
        numbers = range(start, min(start + _AT_ONCE, tail))
        for seq, body in zip(numbers, await asyncio.gather(*(_present(get, job, seq) for seq in numbers)), strict=True):
            try:
                record = decode(seq, body)
            except CorruptError as error:
                raise CorruptError(f"{error} key={log_key(job, seq)}") from None
            if record.previous != state.last:
                raise CorruptError(f"a log record doesn't follow the one before key={log_key(job, seq)}")
            state = fold(state, record)[0]
    if state_hash(state) != name:
        raise CorruptError(f"the records before don't make the folded state that the last one names key={log_key(job, tail)}")
    return state


async def _present(get: Get, job: str, seq: int) -> bytes:
    data = await get(seq)
    if data is None:
        raise LogTruncatedError(f"it lacks a record below its tail key={log_key(job, seq)}")
    return data
