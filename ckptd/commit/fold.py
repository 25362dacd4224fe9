"""What each record of the commit log means at its place (PROTOCOLS 4.2): pure, and the only code that decides it.

A record is counted or void; a void one changes nothing but the tail. Whether it is at its right place in an unbroken chain is
another question, put by ``check_chain`` to every record before it is folded: a broken chain is damage, never just a void
record.

Where PROTOCOLS leaves a choice:

- A COMMIT's parent must be the newest live commit at its place, so what it descends from is what a restore would have offered.
- A RETIRE or QUARANTINE counts for a live commit only, so each commit ends once and says where.
- A RETIRE of a pinned commit counts: a reader that died without its UNPIN must not keep retention from going on. The pin holds
  back collection instead (I7), see ``collectable``.
- A PIN counts for a live commit only. A pin on anything else could come after its deletion, and I6 would be lost. The same
  holder's second PIN changes nothing; one UNPIN ends both, so a holder's name must be its own.
- A COMMIT of an earlier generation than that of a commit before it is void: worlds come one after the other (I10), and so
  a generation that has been followed by another one's commit needs no layout but those that its kept commits have.
- A QUARANTINE doesn't reach the commits that have the bad one as a base: each shows itself when it is verified or restored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

from ckptd.commit.state import EMPTY, Entry, State, decode_state, encode_state, state_hash
from ckptd.errors import CorruptError
from ckptd.model.ids import Attempt, Generation
from ckptd.model.records import Abort, Commit, Epoch, Office, Pin, Quarantine, Record, Retire, Unpin, digest, encode

__all__ = [
    "EMPTY",
    "Collectable",
    "Entry",
    "State",
    "Verdict",
    "Void",
    "check_chain",
    "collectable",
    "decode_state",
    "encode_state",
    "fold",
    "judge",
    "restore_candidate",
    "state_hash",
]


class Void(Enum):
    """Why a record doesn't count."""

    WRONG_EPOCH = "its number isn't the current epoch + 1"
    STALE_OFFICE = "its office isn't the current one"
    ATTEMPT_COMMITTED = "the attempt is already committed"
    ATTEMPT_ABORTED = "the attempt is already aborted"
    BASE_NOT_LIVE = "a base is no live commit"
    GENERATION_PASSED = "a commit of a later generation stands before it"
    PARENT_NOT_NEWEST = "its parent isn't the newest live commit"
    NOT_LIVE = "it names no live commit"
    NOT_PINNED = "it ends a pin that isn't there"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Counted, or void with the reason."""

    void: Void | None = None

    @property
    def counted(self) -> bool:
        """Did the record take effect?"""
        return self.void is None

    def __str__(self) -> str:
        return "counted" if self.void is None else f"void: {self.void.value}"


def judge(state: State, record: Record) -> Verdict:
    """Would ``record`` count right after ``state``? A writer asks before it writes, and the fold when it reads."""
    return Verdict(_void(state, record))


def fold(state: State, record: Record) -> tuple[State, Verdict]:
    """The state after ``record``, and whether it counted. Raises CorruptError unless its number is the next one."""
    if record.seq != state.tail + 1:
        raise CorruptError(f"log records out of order: seq={record.seq} tail={state.tail}")
    verdict = judge(state, record)
    after = _apply(state, record) if verdict.counted else state
    return replace(after, tail=record.seq, last=digest(encode(record))), verdict


def check_chain(state: State, record: Record, name: str) -> None:
    """Raise CorruptError unless ``record`` was written to stand right after this very history; ``name``: state_hash(state)."""
    if record.seq != state.tail + 1 or record.previous != state.last:
        raise CorruptError(
            f"the log's chain is broken: record doesn't follow the one before seq={record.seq} tail={state.tail}"
        )
    if record.state != name:
        raise CorruptError(f"the log's chain is broken: record names another folded state than ours seq={record.seq}")


def restore_candidate(state: State) -> Entry | None:
    """The last live commit in log order (PROTOCOLS 4.8), which is also the parent of the next one; None if there is none."""
    return next((entry for entry in reversed(tuple(state.commits.values())) if entry.live), None)


@dataclass(frozen=True, slots=True)
class Collectable:
    """What may be deleted for good: commits' own data and manifests, aborted attempts' data, and generations' layouts.

    Each is with the log number from whose Last-Modified its grace counts: the commit's RETIRE or QUARANTINE, the attempt's
    ABORT; for layouts the last of those of the generation's commits and of the first commit of a later generation.
    """

    commits: tuple[tuple[Entry, int], ...]
    aborted: tuple[tuple[Attempt, int], ...]
    layouts: tuple[tuple[Generation, int], ...]


def collectable(state: State) -> Collectable:
    """What may go at this state (PROTOCOLS 4.7), and therefore at every later one (I6).

    Kept: every live or pinned commit, and whatever those reach through bases of bases. What isn't reached can't become so: a
    new COMMIT's bases are live, and so is what a PIN names. An attempt without a record is never listed, however old. Layouts
    are listed of generations of which no commit is kept and none can come any more.
    """
    kept = _reach(state, (n for n, entry in state.commits.items() if entry.live or n in state.pins))
    ended = ((entry, entry.retired_at or entry.quarantined_at) for n, entry in state.commits.items() if n not in kept)
    return Collectable(
        commits=tuple((entry, since) for entry, since in ended if since is not None),
        aborted=tuple(state.aborted.items()),
        layouts=tuple(_passed(state, {state.commits[n].generation for n in kept})),
    )


def _passed(state: State, kept: set[Generation]) -> Iterator[tuple[Generation, int]]:
    """Generations that nobody needs, each with the record since which that is so."""
    since: dict[Generation, int] = {}
    for attempt, at in state.aborted.items():
        since[attempt.snapshot.generation] = max(since.get(attempt.snapshot.generation, 0), at)
    for entry in state.commits.values():
        end = entry.retired_at or entry.quarantined_at or entry.n
        since[entry.generation] = max(since.get(entry.generation, 0), end)
    newest = _newest_generation(state)
    first: dict[Generation, int] = {}  # of each generation's commits, in log order and so in the order of generations
    for entry in state.commits.values():
        first.setdefault(entry.generation, entry.n)
    for generation in since.keys() - kept:
        if newest is not None and generation < newest:
            follower = next(n for later, n in first.items() if later > generation)
            yield generation, max(since[generation], follower)


def _newest_generation(state: State) -> Generation | None:
    """Of the commits, whatever became of them: the last one's, because generations only go up."""
    return next((entry.generation for entry in reversed(tuple(state.commits.values()))), None)


def _reach(state: State, roots: Iterable[int]) -> set[int]:
    reached: set[int] = set()
    todo = list(roots)
    while todo:
        n = todo.pop()
        if n not in reached:
            reached.add(n)
            todo.extend(state.commits[n].bases)
    return reached


def _void(state: State, record: Record) -> Void | None:
    body = record.body
    match body:
        case Epoch(number):
            return None if number == state.epoch + 1 else Void.WRONG_EPOCH
        case Pin(n, _):
            return None if state.is_live(n) else Void.NOT_LIVE
        case Unpin(n, who):
            return None if who in state.pins.get(n, ()) else Void.NOT_PINNED
    if state.office is None or record.office != state.office:
        return Void.STALE_OFFICE
    if isinstance(body, Retire | Quarantine):
        return None if state.is_live(body.n) else Void.NOT_LIVE
    if body.attempt in state.committed:
        return Void.ATTEMPT_COMMITTED
    if body.attempt in state.aborted:
        return Void.ATTEMPT_ABORTED
    return _void_links(state, body) if isinstance(body, Commit) else None


def _void_links(state: State, commit: Commit) -> Void | None:
    if not all(state.is_live(base) for base in commit.bases):
        return Void.BASE_NOT_LIVE
    generation = _newest_generation(state)
    if generation is not None and commit.attempt.snapshot.generation < generation:
        return Void.GENERATION_PASSED
    newest = restore_candidate(state)
    return None if commit.parent == (newest.n if newest else None) else Void.PARENT_NOT_NEWEST


def _apply(state: State, record: Record) -> State:
    """The effect of a counted record, but for the place."""
    seq = record.seq
    match record.body:
        case Epoch(number):
            return replace(state, office=Office(number, record.nonce))
        case Commit(attempt, manifest, parent, bases):
            entry = Entry(seq, attempt, manifest, parent, bases)
            return replace(state, commits={**state.commits, seq: entry}, committed={**state.committed, attempt: seq})
        case Abort(attempt):
            return replace(state, aborted={**state.aborted, attempt: seq})
        case Retire(n):
            return replace(state, commits={**state.commits, n: replace(state.commits[n], retired_at=seq)})
        case Quarantine(n, _):
            return replace(state, commits={**state.commits, n: replace(state.commits[n], quarantined_at=seq)})
        case Pin(n, who):
            return replace(state, pins={**state.pins, n: state.pins.get(n, frozenset()) | {who}})
        case Unpin(n, who):
            left = state.pins[n] - {who}
            others = {commit: holders for commit, holders in state.pins.items() if commit != n}
            return replace(state, pins={**others, n: left} if left else others)
