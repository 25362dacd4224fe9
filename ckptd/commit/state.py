"""What the commit log says up to one of its records, as a value; and that value's bytes (PROTOCOLS 4).

The state keeps every commit, whatever became of it, and every aborted attempt, until a FORGET takes those away that are over
and lie before some snapshot: a COMMIT after its ABORT is void for ever, and the collector must find what it may delete. Some
110 bytes a commit, 30 an abort; the state is written anew by every append. MAX_STATE_BYTES bounds it, and an append beyond that
is refused before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ckptd.errors import CorruptError
from ckptd.model.canonical import (
    FORMAT_VERSION,
    canonical,
    digest,
    is_hash,
    is_number,
    parse_canonical,
    read_attempt,
    read_snapshot,
)
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.model.records import GENESIS, Office, is_nonce, is_who

MAX_STATE_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """A counted COMMIT, record ``n``. ``retired_at``, ``quarantined_at``: log number of what ended it; at most one is set."""

    n: int
    attempt: Attempt
    manifest: str
    parent: int | None
    bases: tuple[int, ...]
    retired_at: int | None = None
    quarantined_at: int | None = None

    @property
    def generation(self) -> Generation:
        """The world that made it."""
        return self.attempt.snapshot.generation

    @property
    def live(self) -> bool:
        """Neither retired nor quarantined. What has once stopped being live never is again."""
        return self.retired_at is None and self.quarantined_at is None


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Record ``n`` took what was over of all snapshots before ``before`` out of the state."""

    n: int
    before: Snapshot


@dataclass(frozen=True, slots=True)
class State:
    """The fold of records 0 … ``tail`` (-1: of none). Immutable by convention: a fold copies what it changes.

    ``last`` is the hash of record ``tail``'s bytes. ``commits`` are by log number, in log order. ``committed`` and ``aborted``
    tell which record resolved an attempt. ``pins`` are by log number of the commit; a commit without pins has no entry. The
    parent of a commit, and the bases of one that is neither live nor pinned, may be forgotten.
    """

    tail: int = -1
    last: str = GENESIS
    office: Office | None = None
    commits: Mapping[int, Entry] = field(default_factory=dict)
    committed: Mapping[Attempt, int] = field(default_factory=dict)
    aborted: Mapping[Attempt, int] = field(default_factory=dict)
    pins: Mapping[int, frozenset[str]] = field(default_factory=dict)
    forgotten: Forgotten | None = None

    @property
    def epoch(self) -> int:
        """The current epoch; 0 before the first EPOCH record."""
        return 0 if self.office is None else self.office.epoch

    def is_live(self, n: int) -> bool:
        """Is record ``n`` a counted COMMIT, neither retired nor quarantined?"""
        entry = self.commits.get(n)
        return entry is not None and entry.live

    def forgets(self, attempt: Attempt) -> bool:
        """Is it over with ``attempt``, while nothing but its number says so any more?"""
        before = None if self.forgotten is None else self.forgotten.before
        return before is not None and attempt.snapshot < before and attempt not in self.committed

    def kept(self) -> set[int]:
        """Log numbers of all live and pinned commits, and of their bases.

        Not of the bases' bases: a COMMIT names every commit in whose data its frames lie. What isn't kept never is again: a new
        COMMIT's bases are live, and so is what a PIN names.
        """
        roots = [entry for n, entry in self.commits.items() if entry.live or n in self.pins]
        return {n for entry in roots for n in (entry.n, *entry.bases)}


EMPTY: Final = State()


def encode_state(state: State) -> bytes:
    """The state's canonical bytes: equal states have equal bytes."""
    office = state.office
    return canonical(
        {
            "aborted": sorted([n, str(attempt)] for attempt, n in state.aborted.items()),
            "commits": [
                [e.n, str(e.attempt), e.manifest, e.parent, list(e.bases), e.retired_at, e.quarantined_at]
                for e in state.commits.values()
            ],
            "forgotten": None if state.forgotten is None else [state.forgotten.n, str(state.forgotten.before)],
            "last": state.last,
            "next": state.tail + 1,
            "office": None if office is None else [office.epoch, office.nonce],
            "pins": [[n, sorted(state.pins[n])] for n in sorted(state.pins)],
            "v": FORMAT_VERSION,
        }
    )


def state_hash(state: State) -> str:
    """The name of the state's object: blake2b-256 of its bytes, hex."""
    return digest(encode_state(state))


EMPTY_HASH: Final = state_hash(EMPTY)


def decode_state(data: bytes) -> State:
    """Read what ``encode_state`` wrote; CorruptError for anything else. Whether it is the right state, its hash must say."""
    try:
        fields = parse_canonical(data, MAX_STATE_BYTES, "aborted commits forgotten last next office pins v")
        following, last = fields["next"], fields["last"]
        if not (is_number(following) and isinstance(following, int) and isinstance(last, str) and is_hash(last)):
            raise CorruptError("bad place in the log")
        commits = _read_commits(fields["commits"], following)
        state = State(
            tail=following - 1,
            last=last,
            office=_read_office(fields["office"]),
            commits=commits,
            committed={entry.attempt: n for n, entry in commits.items()},
            aborted=_read_aborted(fields["aborted"], following),
            pins=_read_pins(fields["pins"], commits),
            forgotten=_read_forgotten(fields["forgotten"], following),
        )
        if len(state.committed) != len(commits) or not state.aborted.keys().isdisjoint(state.committed):
            raise CorruptError("an attempt is resolved twice")
        _check_forgotten(state)
        if encode_state(state) != data:
            raise CorruptError("not in order")
    except CorruptError as error:
        raise type(error)(f"folded state doesn't parse: {error}") from None
    return state


def _rows(value: object, width: int) -> list[list[object]]:
    if not isinstance(value, list) or not all(isinstance(row, list) and len(row) == width for row in value):
        raise CorruptError(f"expected rows of {width}")
    return value


def _read_office(value: object) -> Office | None:
    match value:
        case None:
            return None
        case [int(epoch), str(nonce)] if is_number(epoch) and is_nonce(nonce):
            return Office(epoch, nonce)
    raise CorruptError("bad office")


def _before(value: object, limit: int) -> int:
    """A log number below ``limit``."""
    if not isinstance(value, int) or not is_number(value) or value >= limit:
        raise CorruptError("bad log number")
    return value


def _read_commits(value: object, following: int) -> dict[int, Entry]:
    commits: dict[int, Entry] = {}
    for number, attempt, manifest, parent, bases, retired, quarantined in _rows(value, 7):
        n = _before(number, following)
        if not isinstance(manifest, str) or not is_hash(manifest) or not isinstance(bases, list):
            raise CorruptError("bad commit")
        if commits and n <= next(reversed(commits)):
            raise CorruptError("commits out of order")
        entry = Entry(
            n=n,
            attempt=read_attempt(attempt),
            manifest=manifest,
            parent=None if parent is None else _before(parent, n),
            bases=tuple(_before(base, n) for base in bases),
            retired_at=None if retired is None else _before(retired, following),
            quarantined_at=None if quarantined is None else _before(quarantined, following),
        )
        if commits and entry.generation < commits[next(reversed(commits))].generation:
            raise CorruptError("generations out of order")
        ends = [end for end in (entry.retired_at, entry.quarantined_at) if end is not None]
        if len(ends) > 1 or any(end <= n for end in ends):
            raise CorruptError("a commit ended twice, or before it began")
        commits[n] = entry
    return commits


def _read_forgotten(value: object, following: int) -> Forgotten | None:
    match value:
        case None:
            return None
        case [n, before]:
            return Forgotten(_before(n, following), read_snapshot(before))
    raise CorruptError("bad watermark")


def _check_forgotten(state: State) -> None:
    """What must be there is, and what is forgotten isn't."""
    links = {link for entry in state.commits.values() for link in (entry.parent, *entry.bases) if link is not None}
    if state.forgotten is None:
        if not state.commits.keys() >= links:
            raise CorruptError("a commit's parent or base is none")
        return
    if not state.commits.keys() >= state.kept():
        raise CorruptError("a base of a commit that is live or pinned is none")
    # What was kept and was over only later is still there.
    later = [entry.attempt for n, entry in state.commits.items() if n > state.forgotten.n]
    before = state.forgotten.before
    if not state.commits or any(attempt.snapshot < before for attempt in (*later, *state.aborted)):
        raise CorruptError("it remembers what it forgot")


def _read_aborted(value: object, following: int) -> dict[Attempt, int]:
    rows = _rows(value, 2)
    aborted = {read_attempt(attempt): _before(n, following) for n, attempt in rows}
    if len(aborted) != len(rows):
        raise CorruptError("an attempt aborted twice")
    return aborted


def _read_pins(value: object, commits: Mapping[int, Entry]) -> dict[int, frozenset[str]]:
    pins: dict[int, frozenset[str]] = {}
    for n, holders in _rows(value, 2):
        if not isinstance(n, int) or not is_number(n) or n not in commits or not isinstance(holders, list) or not holders:
            raise CorruptError("bad pin")
        if not all(isinstance(who, str) and is_who(who) for who in holders):
            raise CorruptError("bad holder of a pin")
        pins[n] = frozenset(holders)
    return pins
