"""The commit log as its bytes say: a reader of its own, which shares no code with ckptd's (FORMAT.md is what both follow).

It is stricter than the protocol has to be: in these campaigns each job has one coordinator at a time, so every record must
count. A record that the protocol would call void is a problem here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from chaos.objects import Objects

_GENESIS = hashlib.blake2b(b"ckptd commit log, format 1: nothing before record 0", digest_size=32).hexdigest()
_SNAPSHOT = re.compile(r"(\d+)-(\d+)\.(\d+)")
_ATTEMPT = re.compile(r"(\d+)-(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class Committed:
    """A COMMIT that counts."""

    seq: int
    attempt: str
    generation: tuple[int, int]
    step: int
    manifest: str
    parent: int | None
    bases: tuple[int, ...] = ()


@dataclass(slots=True)
class Story:
    """What the log tells, and what is wrong with it."""

    commits: list[Committed] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    aborted: set[str] = field(default_factory=set)
    ended: dict[int, str] = field(default_factory=dict)  # retired or quarantined commits
    passed: tuple[int, int, int] = (0, 0, 0)  # (epoch, n, step) of the last FORGET: nothing before it is settled any more
    problems: list[str] = field(default_factory=list)

    @property
    def newest(self) -> Committed | None:
        """What a restore must be told now."""
        return next((commit for commit in reversed(self.commits) if commit.seq not in self.ended), None)

    def restorable(self, generation: tuple[int, int]) -> list[int]:
        """The steps that this generation may have restored, the likeliest first: that of the last commit of an earlier one,
        and, if a later record puts that aside as damaged, of the one before, and so on; [0] without any.

        Exact otherwise, because a generation is told what to restore only when all earlier attempts are settled, and commits
        nothing before it has been told.
        """
        steps = []
        for commit in reversed(self.commits):
            if commit.generation < generation:
                steps.append(commit.step)
                if self.ended.get(commit.seq) != "QUARANTINE":
                    return steps
        return [*steps, 0]


def log_key(job: str, seq: int) -> str:
    """Where record ``seq`` lies."""
    return f"{job}/log/{seq:020d}"


class Logbook:
    """Reads the log again and again, and remembers what it read: a record may never change."""

    def __init__(self, objects: Objects, job: str) -> None:
        self._objects = objects
        self._job = job
        self._teller = _Teller()
        self.bodies: list[bytes] = []

    def read(self) -> Story:
        """Read on from where it ended the last time; the story of all of it."""
        while (body := self._objects.get(log_key(self._job, len(self.bodies)))) is not None:
            self._teller.add(len(self.bodies), body)
            self.bodies.append(body)
        return self._teller.story

    def audit(self, last: int | None = None) -> list[str]:
        """Read everything (or the ``last`` records) again: what was there must still be (I1), nothing lies beyond a gap."""
        problems = []
        for seq in range(max(0, len(self.bodies) - last) if last is not None else 0, len(self.bodies)):
            again = self._objects.get(log_key(self._job, seq))
            if again != self.bodies[seq]:
                problems.append(f"I1: log record {seq} was {'removed' if again is None else 'replaced'}")
        names = [name for name in self._objects.names(f"{self._job}/log/") if re.fullmatch(r"\d{20}", name[-20:])]
        if names != [log_key(self._job, seq) for seq in range(len(names))] or len(names) < len(self.bodies):
            problems.append(f"the log has a gap: {len(names)} records, the last {names[-1] if names else 'none'}")
        return problems


def tell(bodies: Sequence[bytes]) -> Story:
    """The story that these records tell. Pure."""
    teller = _Teller()
    for seq, data in enumerate(bodies):
        teller.add(seq, data)
    return teller.story


class _Teller:
    """Goes through the records in order."""

    def __init__(self) -> None:
        self.story = Story()
        self._office: object = None
        self._previous = _GENESIS
        self._nonces: set[str] = set()

    def add(self, seq: int, data: bytes) -> None:
        """The next record."""
        story, previous = self.story, self._previous
        self._previous = hashlib.blake2b(data, digest_size=32).hexdigest()
        try:
            record = json.loads(data)
            body, nonce = record["body"], record["nonce"]
            kind = body["type"]
        except (ValueError, KeyError, TypeError):
            story.problems.append(f"log record {seq} doesn't parse")
            return
        if record["seq"] != seq:
            story.problems.append(f"log record {seq} says that it is {record['seq']}")
        if record["previous"] != previous:
            story.problems.append(f"the hash chain breaks before log record {seq}")
        if nonce in self._nonces:
            story.problems.append(f"log record {seq} has the nonce of an earlier one")
        self._nonces.add(nonce)
        if kind == "EPOCH":
            self._office = _take_office(story, seq, record)
        elif record["office"] is not None and record["office"] != self._office:
            wrong = f"is of office {record['office']}, the current one is {self._office}"
            story.problems.append(f"I3: log record {seq} ({kind}) {wrong}")
        _effect(story, seq, kind, body)


def _take_office(story: Story, seq: int, record: dict[str, object]) -> object:
    body = record["body"]
    number = body["number"] if isinstance(body, dict) else None
    current = story.epochs[-1] if story.epochs else 0
    if number != current + 1 or record["office"] != [number, record["nonce"]]:
        story.problems.append(f"I3: log record {seq} is an EPOCH {number} after epoch {current}")
    if isinstance(number, int):
        story.epochs.append(number)
    return record["office"]


def _effect(story: Story, seq: int, kind: str, body: dict[str, object]) -> None:
    attempt = str(body.get("attempt"))
    if kind == "COMMIT":
        _commit(story, seq, attempt, body)
    elif kind == "ABORT":
        if attempt in story.aborted or any(commit.attempt == attempt for commit in story.commits):
            story.problems.append(f"log record {seq} aborts attempt {attempt}, which was settled before")
        story.aborted.add(attempt)
        _check_passed(story, seq, attempt)
    elif kind in ("RETIRE", "QUARANTINE"):
        story.ended[int(str(body["n"]))] = kind
    elif kind == "FORGET":
        _forget(story, seq, str(body.get("before")))


def _forget(story: Story, seq: int, before: str) -> None:
    parts = _SNAPSHOT.match(before)
    mark = (int(parts[1]), int(parts[2]), int(parts[3])) if parts else (0, 0, 0)
    last = story.commits[-1] if story.commits else None
    if last is None or not story.passed < mark <= (*last.generation, last.step):
        story.problems.append(f"log record {seq} forgets what was before {before}: no further than before, or too far")
    story.passed = mark


def _check_passed(story: Story, seq: int, attempt: str) -> None:
    parts = _SNAPSHOT.match(attempt)
    if parts and (int(parts[1]), int(parts[2]), int(parts[3])) < story.passed:
        story.problems.append(f"log record {seq} settles attempt {attempt}, which a FORGET had passed")


def _commit(story: Story, seq: int, attempt: str, body: dict[str, object]) -> None:
    parts = _ATTEMPT.fullmatch(attempt)
    if parts is None:
        story.problems.append(f"log record {seq} commits {attempt!r}, which is no attempt")
        return
    if attempt in story.aborted or any(commit.attempt == attempt for commit in story.commits):
        story.problems.append(f"log record {seq} commits attempt {attempt}, which was settled before")
    _check_passed(story, seq, attempt)
    newest = story.newest
    parent = body["parent"]
    if parent != (newest.seq if newest else None):
        story.problems.append(
            f"I8: log record {seq} has parent {parent}, the newest commit was {newest.seq if newest else None}"
        )
    epoch, n, step = int(parts[1]), int(parts[2]), int(parts[3])
    live = {commit.seq for commit in story.commits} - story.ended.keys()
    bases = tuple(body["bases"]) if isinstance(body["bases"], list) else ()
    if not live >= set(bases):
        story.problems.append(f"log record {seq} has bases {bases}, of which {sorted(set(bases) - live)} are no live commits")
    parent = parent if isinstance(parent, int) else None
    commit = Committed(seq, attempt, (epoch, n), step, str(body["manifest"]), parent, bases)
    if newest is not None and (commit.generation, step) <= (newest.generation, newest.step):
        story.problems.append(f"I10: log record {seq} commits {attempt} after {newest.attempt}")
    story.commits.append(commit)
