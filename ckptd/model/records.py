"""Records of the commit log and their bytes (PROTOCOLS 1 and 4).

Equal records have equal bytes (see `canonical`), and ``decode`` accepts exactly what ``encode`` writes: anything else is
CorruptError (I11).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ckptd.errors import CorruptError
from ckptd.model.canonical import (
    FORMAT_VERSION,
    canonical,
    digest,
    exact_fields,
    is_hash,
    is_number,
    parse_canonical,
    read_attempt,
    read_snapshot,
)
from ckptd.model.ids import Attempt, Snapshot

MAX_RECORD_BYTES: Final = 64 * 1024
MAX_BASES: Final = 1000
MAX_REASON_CHARACTERS: Final = 500
_NONCE = re.compile(r"[0-9a-f]{32}")
_WHO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")


@dataclass(frozen=True, slots=True)
class Office:
    """The reign of one coordinator: the epoch number alone doesn't tell two candidates apart, the nonce does."""

    epoch: int
    nonce: str


@dataclass(frozen=True, slots=True)
class Epoch:
    """A candidate takes office; ``number`` must be the current epoch + 1."""

    number: int


@dataclass(frozen=True, slots=True)
class Commit:
    """An attempt becomes a checkpoint. ``parent`` and ``bases`` are log numbers of commits; bases ascend."""

    attempt: Attempt
    manifest: str
    parent: int | None
    bases: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Abort:
    """An attempt will never become a checkpoint; its objects may go."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Retire:
    """Commit ``n`` is no longer offered and may be collected once nothing needs it."""

    n: int


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Commit ``n`` turned out to be bad: it is never restored again."""

    n: int
    reason: str


@dataclass(frozen=True, slots=True)
class Pin:
    """``who`` reads commit ``n``: it must stay readable until the Unpin."""

    n: int
    who: str


@dataclass(frozen=True, slots=True)
class Unpin:
    """``who`` is done with commit ``n``."""

    n: int
    who: str


@dataclass(frozen=True, slots=True)
class Forget:
    """What is over and lies before snapshot ``before`` leaves the folded state; no attempt before it is settled any more."""

    before: Snapshot


Body = Epoch | Commit | Abort | Retire | Quarantine | Pin | Unpin | Forget


@dataclass(frozen=True, slots=True)
class Record:
    """One numbered record.

    ``previous`` is the hash of the bytes of record seq - 1 (GENESIS for record 0), ``state`` the hash of the folded state
    before this record, ``nonce`` tells its writer its own record from another's. ``office`` is None for Pin and Unpin only;
    that of an Epoch record is (its number, its nonce).
    """

    seq: int
    nonce: str
    previous: str
    state: str
    office: Office | None
    body: Body


GENESIS: Final = digest(b"ckptd commit log, format 1: nothing before record 0")


def is_nonce(value: object) -> bool:
    """Is it 128 random bits in hex?"""
    return isinstance(value, str) and _NONCE.fullmatch(value) is not None


def is_who(value: object) -> bool:
    """May it name the holder of a pin? 1 to 128 of letters, digits and ``._:@-``, the first a letter or digit."""
    return isinstance(value, str) and _WHO.fullmatch(value) is not None


def clean_reason(text: str) -> str:
    """Make any text fit to be a Quarantine's reason: printable, one line, bounded."""
    words = "".join(c if c.isprintable() else " " for c in text).split()
    return " ".join(words)[:MAX_REASON_CHARACTERS].strip() or "no reason given"


def encode(record: Record) -> bytes:
    """The record's bytes, at most MAX_RECORD_BYTES. Raises ValueError for a record that ``decode`` would refuse."""
    problem = _problem(record)
    if problem:
        raise ValueError(f"not a log record: {problem} seq={record.seq}")
    office = record.office
    return canonical(
        {
            "body": _body_fields(record.body),
            "nonce": record.nonce,
            "office": None if office is None else [office.epoch, office.nonce],
            "previous": record.previous,
            "seq": record.seq,
            "state": record.state,
            "v": FORMAT_VERSION,
        }
    )


def decode(seq: int, data: bytes) -> Record:
    """Read the bytes of log record ``seq``. Raises CorruptError for everything that ``encode`` would not have written."""
    try:
        fields = parse_canonical(data, MAX_RECORD_BYTES, "body nonce office previous seq state v")
        office = fields["office"]
        if not (office is None or (isinstance(office, list) and len(office) == 2)):
            raise CorruptError("office is no pair")
        # What the checks below admit is typed; the casts before them only carry the values there.
        record = Record(
            seq=fields["seq"],  # type: ignore[arg-type]
            nonce=fields["nonce"],  # type: ignore[arg-type]
            previous=fields["previous"],  # type: ignore[arg-type]
            state=fields["state"],  # type: ignore[arg-type]
            office=None if office is None else Office(*office),
            body=_read_body(fields["body"]),
        )
        problem = _problem(record)
        if problem:
            raise CorruptError(problem)
    except CorruptError as error:
        raise type(error)(f"log record doesn't parse: {error} seq={seq}") from None
    if record.seq != seq:
        raise CorruptError(f"a log record stands at another's number: seq={seq} says={record.seq}")
    return record


def _body_fields(body: Body) -> dict[str, object]:
    match body:
        case Epoch(number):
            return {"type": "EPOCH", "number": number}
        case Commit(attempt, manifest, parent, bases):
            names = {"attempt": str(attempt), "manifest": manifest}
            return {"type": "COMMIT", **names, "parent": parent, "bases": list(bases)}
        case Abort(attempt):
            return {"type": "ABORT", "attempt": str(attempt)}
        case Retire(n):
            return {"type": "RETIRE", "n": n}
        case Quarantine(n, reason):
            return {"type": "QUARANTINE", "n": n, "reason": reason}
        case Pin(n, who):
            return {"type": "PIN", "n": n, "who": who}
        case Unpin(n, who):
            return {"type": "UNPIN", "n": n, "who": who}
        case Forget(before):
            return {"type": "FORGET", "before": str(before)}


_FIELDS: Final = {
    "EPOCH": "type number",
    "COMMIT": "type attempt manifest parent bases",
    "ABORT": "type attempt",
    "RETIRE": "type n",
    "QUARANTINE": "type n reason",
    "PIN": "type n who",
    "UNPIN": "type n who",
    "FORGET": "type before",
}


def _read_body(value: object) -> Body:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise CorruptError("unknown type of record")
    fields = dict(exact_fields(value, _FIELDS[kind]))
    del fields["type"]
    if "attempt" in fields:
        fields["attempt"] = read_attempt(fields["attempt"])
    if "before" in fields:
        fields["before"] = read_snapshot(fields["before"])
    if "bases" in fields:
        if not isinstance(fields["bases"], list):
            raise CorruptError("bases is no list")
        fields["bases"] = tuple(fields["bases"])
    return _CLASSES[kind](**fields)  # type: ignore[arg-type]  # checked by _problem


_CLASSES: Final[dict[str, type[Body]]] = {
    "EPOCH": Epoch,
    "COMMIT": Commit,
    "ABORT": Abort,
    "RETIRE": Retire,
    "QUARANTINE": Quarantine,
    "PIN": Pin,
    "UNPIN": Unpin,
    "FORGET": Forget,
}


def _problem(record: Record) -> str | None:
    """Why this is no well-formed record, or None. Says nothing about whether it counts: that depends on its place."""
    office, body = record.office, record.body
    if not is_number(record.seq) or not is_nonce(record.nonce):
        return "bad number or nonce"
    if not is_hash(record.previous) or not is_hash(record.state):
        return "bad hash"
    if office is not None and not (is_number(office.epoch) and is_nonce(office.nonce)):
        return "bad office"
    if isinstance(body, Epoch) and office != Office(body.number, record.nonce):
        return "an EPOCH's office is its own number and nonce"
    if (office is None) != isinstance(body, Pin | Unpin):
        return "PIN and UNPIN have no office, all others have one"
    return _body_problem(body)


def _body_problem(body: Body) -> str | None:
    match body:
        case Epoch(number):
            return None if is_number(number) else "bad epoch"
        case Commit(attempt, manifest, parent, bases):
            if not _attempt_fits(attempt):
                return "attempt out of bounds"
            if not is_hash(manifest) or not (parent is None or is_number(parent)):
                return "bad manifest or parent"
            ascending = len(bases) <= MAX_BASES and all(map(is_number, bases)) and list(bases) == sorted(set(bases))
            return None if ascending else f"bases are at most {MAX_BASES} ascending numbers"
        case Abort(attempt):
            return None if _attempt_fits(attempt) else "attempt out of bounds"
        case Retire(n):
            return None if is_number(n) else "bad commit number"
        case Quarantine(n, reason):
            fits = isinstance(reason, str) and 0 < len(reason) <= MAX_REASON_CHARACTERS and reason.isprintable()
            return None if is_number(n) and fits else "bad commit number or reason"
        case Pin(n, who) | Unpin(n, who):
            return None if is_number(n) and is_who(who) else "bad commit number or name"
        case Forget(before):
            return None if _snapshot_fits(before) else "snapshot out of bounds"


def _attempt_fits(attempt: Attempt) -> bool:
    """Will its text form parse again? (Attempt.parse bounds the digits of each part.)"""
    return _snapshot_fits(attempt.snapshot) and 0 <= attempt.number < 10**6


def _snapshot_fits(snapshot: Snapshot) -> bool:
    generation = snapshot.generation
    return 0 <= generation.epoch < 10**10 and 0 <= generation.n < 10**10 and 0 <= snapshot.step < 10**15
