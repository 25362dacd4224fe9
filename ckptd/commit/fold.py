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
- A FORGET takes all that is over of the snapshots before the one that it names out of the state: retired and quarantined
  commits that nothing kept needs, and aborts. In their place stands the rule that no attempt before that snapshot can be
  committed or aborted any more; whatever lies there without a kept commit may be deleted. It counts only if it goes further
  than the one before and not beyond the newest commit, so what comes next is never void by it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from ckptd.commit.state import EMPTY, Entry, Forgotten, State, decode_state, encode_state, state_hash
from ckptd.errors import CorruptError
from ckptd.model.canonical import digest
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.model.records import Abort, Commit, Epoch, Forget, Office, Pin, Quarantine, Record, Retire, Unpin, encode

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
    FORGOTTEN = "its attempt lies before what the log has forgotten"
    FORGETS_NOTHING = "an earlier one forgets as much"
    FORGETS_TOO_MUCH = "it reaches beyond the newest commit"


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


class Collectable:
    """What may be deleted for good at a state (PROTOCOLS 4.7), and therefore at every later one (I6).

    Each answer is the number of the record from whose Last-Modified the grace counts, or None: it must stay. Kept is every
    live or pinned commit, and every base of one. An attempt of which the log says nothing stays, however old, until a
    FORGET passes it.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._kept = state.kept()

    def commit(self, n: int, attempt: Attempt) -> int | None:
        """Commit ``n``, which made ``attempt`` a checkpoint: since its RETIRE or QUARANTINE."""
        entry = self._state.commits.get(n)
        if entry is None:
            return self._forgotten(attempt)
        return None if n in self._kept else entry.retired_at or entry.quarantined_at

    def attempt(self, attempt: Attempt) -> int | None:
        """The data of an attempt that is no checkpoint: since its ABORT."""
        aborted = self._state.aborted.get(attempt)
        return self._forgotten(attempt) if aborted is None else aborted

    def layouts(self, generation: Generation) -> int | None:
        """Layouts of a generation of which no commit is kept and none can come any more: since the last that is known of it.

        That is the end of its commits and attempts, and the first commit that we know of a later generation.
        """
        commits = self._state.commits.values()
        newest = _newest_generation(self._state)
        if newest is None or generation >= newest or any(e.n in self._kept for e in commits if e.generation == generation):
            return None
        ends = [next(e.n for e in commits if e.generation > generation)]
        ends += [at for attempt, at in self._state.aborted.items() if attempt.snapshot.generation == generation]
        ends += [e.retired_at or e.quarantined_at or e.n for e in commits if e.generation == generation]
        return max(ends)

    def _forgotten(self, attempt: Attempt) -> int | None:
        forgotten = self._state.forgotten
        return forgotten.n if forgotten is not None and self._state.forgets(attempt) else None


def collectable(state: State) -> Collectable:
    """What may go at this state."""
    return Collectable(state)


def _newest_generation(state: State) -> Generation | None:
    """Of the commits, whatever became of them: the last one's, because generations only go up."""
    return next((entry.generation for entry in reversed(tuple(state.commits.values()))), None)


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
    if isinstance(body, Forget):
        return _void_forget(state, body.before)
    if body.attempt in state.committed:
        return Void.ATTEMPT_COMMITTED
    if body.attempt in state.aborted:
        return Void.ATTEMPT_ABORTED
    if state.forgets(body.attempt):
        return Void.FORGOTTEN
    return _void_links(state, body) if isinstance(body, Commit) else None


def _void_links(state: State, commit: Commit) -> Void | None:
    if not all(state.is_live(base) for base in commit.bases):
        return Void.BASE_NOT_LIVE
    generation = _newest_generation(state)
    if generation is not None and commit.attempt.snapshot.generation < generation:
        return Void.GENERATION_PASSED
    newest = restore_candidate(state)
    return None if commit.parent == (newest.n if newest else None) else Void.PARENT_NOT_NEWEST


def _void_forget(state: State, before: Snapshot) -> Void | None:
    newest = next(reversed(tuple(state.commits.values())), None)
    if newest is None or newest.attempt.snapshot < before:
        return Void.FORGETS_TOO_MUCH
    return None if state.forgotten is None or state.forgotten.before < before else Void.FORGETS_NOTHING


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
        case Forget(before):
            return _forget(state, Forgotten(seq, before))


def _forget(state: State, forgotten: Forgotten) -> State:
    """Without what is over of the snapshots before it. The newest commit isn't among them, so generations still only go up."""
    kept, before = state.kept(), forgotten.before
    commits = {n: entry for n, entry in state.commits.items() if n in kept or entry.attempt.snapshot >= before}
    return replace(
        state,
        commits=commits,
        committed={entry.attempt: n for n, entry in commits.items()},
        aborted={attempt: n for attempt, n in state.aborted.items() if attempt.snapshot >= before},
        forgotten=forgotten,
    )
