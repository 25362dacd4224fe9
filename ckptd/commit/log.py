"""The commit log in the object store: read it, and append to it so that an acknowledgement is never wrong (PROTOCOLS 4.3, 4.5).

Each record is created at the number after the tail and carries the hash of everything before it, so whether it counts is
settled by its place: our own fold tells it before the write. A record of ours that the fold would void is therefore never
written, and a stalled writer's late request finds its number taken.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from ckptd.commit.fold import EMPTY, State, Verdict, Void, check_chain, fold, judge
from ckptd.commit.patience import Effort, Patience
from ckptd.commit.reader import MAX_HINT_BYTES, decode_hint, encode_hint, find_tail, read_state
from ckptd.commit.state import MAX_STATE_BYTES, encode_state
from ckptd.errors import (
    AlreadyExistsError,
    CkptdError,
    CorruptError,
    LogTruncatedError,
    NotFoundError,
    OfficeLostError,
    ResourceError,
    StoreError,
    UnavailableError,
)
from ckptd.model.canonical import digest
from ckptd.model.ids import check_job
from ckptd.model.keys import latest_key, log_key, log_prefix, state_key
from ckptd.model.records import MAX_RECORD_BYTES, Body, Epoch, Office, Record, decode, encode
from ckptd.store.base import Store, get_small

Decide = Callable[[State], Body | None]
"""What to append after this state, or None: nothing is left to do. Asked again whenever another's record came first."""

_log = structlog.get_logger(__name__)

_NEEDS_YOU: Final = (
    "Nothing was written. Bring the missing or damaged objects back (bucket versions, a backup), and take"
    " them out of the bucket's lifecycle rules; or begin anew under another job id"
)


class RecordRefusedError(CkptdError):
    """The log as it stands makes this record void; it was not written."""

    def __init__(self, body: Body, void: Void, tail: int) -> None:
        super().__init__(f"the commit log can't take {type(body).__name__.upper()}: {void.value} tail={tail} body={body}")
        self.void = void


class CommitLog:
    """One process's view of a job's log. Methods may be called concurrently; appends happen one after the other.

    All methods may raise UnavailableError (the store did not answer before the deadline), StoreConfigError, LogTruncatedError
    (a record is missing) and CorruptError (a record or state isn't what was written). The last two need a person.
    """

    def __init__(
        self,
        store: Store,
        job: str,
        patience: Patience | None = None,
        nonce: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        self._store = store
        self._job = check_job(job)
        self._patience = patience or Patience()
        self._nonce = nonce
        self._lock = asyncio.Lock()
        self._state: State | None = None
        self._encoded: tuple[State, bytes, str] | None = None

    @property
    def state(self) -> State:
        """The log as last read, an immutable value. Raises RuntimeError before the first load."""
        if self._state is None:
            raise RuntimeError("the log was not loaded yet")
        return self._state

    async def load(self) -> State:
        """Find the tail and the state there, forgetting what was known: a few dozen reads however long the log.

        An empty log is one of which nothing is there: no record 0, no LATEST, no record in a listing (which may only add to
        our doubts).
        """
        async with self._lock:
            return await self._load(self._patience.start())

    async def refresh(self) -> State:
        """Fold what was appended since; loads if nothing was loaded yet."""
        async with self._lock:
            effort = self._patience.start()
            await self._loaded(effort)
            await self._catch_up(effort)
            return self.state

    async def append(self, decide: Decide, office: Office | None = None) -> int | None:
        """Append the record that ``decide`` wants, as PROTOCOLS 4.3 says; its number, once our own fold has accepted it.

        ``office`` writes the record; None for Epoch, Pin and Unpin. ``decide`` is asked anew each time that another's record
        came first; when it returns None so does this. Raises OfficeLostError when a later EPOCH stands in the log,
        RecordRefusedError when the record would be void, ResourceError when the folded state outgrows its bound: nothing of
        ours is in the log then. UnavailableError: its message says whether nothing was written or **the outcome is unknown**.
        The next append or refresh settles that: it sees either the record, or another at its number, after which a late
        arrival is impossible. After any other exception (StoreConfigError, cancellation) the outcome is as unknown.
        """
        async with self._lock:
            effort = self._patience.start()
            state = await self._loaded(effort)
            while True:
                if office is not None and state.office != office:
                    raise OfficeLostError(f"another coordinator took office ours={office} now={state.office}")
                draft = self._draft(state, decide(state), office)
                void = None if draft is None else judge(state, draft).void
                if draft is None or void is not None:
                    # Somebody may have appended what changes the answer (the PIN that this UNPIN ends).
                    if await self._catch_up(effort):
                        state = self.state
                        continue
                    if draft is None or void is None:
                        return None
                    raise RecordRefusedError(draft.body, void, state.tail)
                if await self._write(state, draft, effort):
                    return draft.seq
                state = self.state
                if effort.spent:
                    raise UnavailableError(
                        f"others kept appending first; nothing was written job={self._job} tail={state.tail}"
                    )

    async def tail_is_absent(self) -> bool:
        """Is there still no record after the tail that we know? Asks the store: who is cut off can't say yes (PROTOCOLS 5)."""
        async with self._lock:
            effort = self._patience.start()
            state = await self._loaded(effort)
            return await self._get_record(state.tail + 1, effort) is None

    def _draft(self, state: State, body: Body | None, office: Office | None) -> Record | None:
        if body is None:
            return None
        nonce = self._nonce()
        if isinstance(body, Epoch):
            office = Office(body.number, nonce)
        return Record(state.tail + 1, nonce, state.last, self._bytes_of(state)[1], office, body)

    def _bytes_of(self, state: State) -> tuple[bytes, str]:
        """The state's bytes and their hash, worked out once: they are as long as all history."""
        if self._encoded is None or self._encoded[0] is not state:
            data = encode_state(state)
            self._encoded = (state, data, digest(data))
        return self._encoded[1:]

    async def _write(self, state: State, draft: Record, effort: Effort) -> bool:
        """Make ``draft`` the next record; False if another's stands there now. Either way what stands there is folded."""
        before, data = self._bytes_of(state)[0], encode(draft)
        if len(before) > MAX_STATE_BYTES:
            raise ResourceError(f"the folded state of the log is too big bytes={len(before)} limit={MAX_STATE_BYTES}")
        try:
            await effort(lambda: self._store.put(state_key(self._job, draft.seq, draft.state), before))
        except UnavailableError as error:
            raise UnavailableError(f"could not append to the commit log; nothing was written: {error}") from error
        try:
            found = await effort(lambda: self._create_or_read(draft.seq, data))
        except UnavailableError as error:
            raise UnavailableError(
                f"the outcome of an append is unknown; the next one will find out: {error} job={self._job} seq={draft.seq}"
            ) from error
        verdict = self._advance(found)
        if found != data:
            return False
        await self._hint(draft.seq)
        if verdict.void is not None:  # can't be: judged at this very place before it was written; but never acknowledge it
            raise RecordRefusedError(draft.body, verdict.void, draft.seq)
        return True

    async def _create_or_read(self, seq: int, data: bytes) -> bytes:
        """One try to create record ``seq``; the bytes that stand there afterwards. UnavailableError while nobody can tell."""
        key = log_key(self._job, seq)
        try:
            await self._store.create(key, data)
            return data
        except (AlreadyExistsError, UnavailableError) as error:
            # Whatever the answer was, our earlier or present try may have landed: only the stored bytes tell. They hold our
            # nonce.
            trouble = error
        try:
            return await get_small(self._store, key, MAX_RECORD_BYTES)
        except NotFoundError:
            raise UnavailableError(f"neither written nor taken: {trouble}") from trouble

    async def _hint(self, tail: int) -> None:
        try:
            await self._store.put(latest_key(self._job), encode_hint(tail))
        except StoreError as error:
            # The record is in the log; a stale hint only costs its readers a few more reads.
            _log.warning("latest hint not written", job=self._job, tail=tail, error=str(error))

    def _advance(self, data: bytes) -> Verdict:
        """Fold the bytes that stand after the tail."""
        state = self.state
        try:
            record = decode(state.tail + 1, data)
            check_chain(state, record, self._bytes_of(state)[1])
        except CorruptError as error:
            key = log_key(self._job, state.tail + 1)
            raise CorruptError(f"the commit log is damaged: {error} key={key} store={self._store.url}. {_NEEDS_YOU}") from None
        self._state, verdict = fold(state, record)
        return verdict

    async def _catch_up(self, effort: Effort) -> bool:
        """Fold what stands after the tail; was there anything?"""
        start = self.state.tail
        while (data := await self._get_record(self.state.tail + 1, effort)) is not None:
            self._advance(data)
        return self.state.tail > start

    async def _loaded(self, effort: Effort) -> State:
        return self._state if self._state is not None else await self._load(effort)

    async def _load(self, effort: Effort) -> State:
        try:
            return await self._find(effort)
        except LogTruncatedError as error:
            raise LogTruncatedError(f"the commit log is truncated: {error} store={self._store.url}. {_NEEDS_YOU}") from None
        except CorruptError as error:
            raise CorruptError(f"the commit log is damaged: {error} store={self._store.url}. {_NEEDS_YOU}") from None

    async def _find(self, effort: Effort) -> State:
        seen: dict[int, bytes] = {}  # what is there stays there; what isn't may come

        async def get(seq: int) -> bytes | None:
            if seq not in seen and (data := await self._get_record(seq, effort)) is not None:
                seen[seq] = data
            return seen.get(seq)

        async def get_state(seq: int, name: str) -> bytes | None:
            return await self._get(state_key(self._job, seq, name), MAX_STATE_BYTES, effort)

        hint = await self._get(latest_key(self._job), MAX_HINT_BYTES, effort)
        if await get(0) is None and await self._is_empty(hint, effort):
            self._state = EMPTY
            return EMPTY
        if await get(0) is None:
            raise LogTruncatedError(f"its first record is gone key={log_key(self._job, 0)}")
        start = decode_hint(hint)
        while True:
            tail = await find_tail(get, self._job, start)
            state = await read_state(get, get_state, self._job, tail)
            if state is not None:
                self._state = state
                return state
            if effort.spent:
                raise UnavailableError(f"others kept appending while we looked for the tail job={self._job} tail={tail}")
            start = tail + 1

    async def _is_empty(self, hint: bytes | None, effort: Effort) -> bool:
        """With record 0 absent: does nothing else say that there was a log?"""

        async def any_listed() -> bool:
            async for _ in self._store.list(log_prefix(self._job)):
                return True
            return False

        return hint is None and not await effort(any_listed)

    async def _get_record(self, seq: int, effort: Effort) -> bytes | None:
        return await self._get(log_key(self._job, seq), MAX_RECORD_BYTES, effort)

    async def _get(self, key: str, limit_bytes: int, effort: Effort) -> bytes | None:
        """The object, cut off one byte after its limit (so that its parser refuses it); None if there is none."""
        with suppress(NotFoundError):
            return await effort(lambda: get_small(self._store, key, limit_bytes))
        return None
