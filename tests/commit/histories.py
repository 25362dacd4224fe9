"""Random adversarial logs: writers that act on old views, in offices lost or never won, and repeat themselves."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckptd.commit import fold as folding
from ckptd.commit.fold import EMPTY, State, Verdict
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.model.records import Abort, Body, Commit, Epoch, Forget, Office, Pin, Quarantine, Record, Retire, Unpin
from tests.commit.oracle import Deletable, Raw

ATTEMPTS = [Attempt(Snapshot(Generation(1 + i // 3, 1), 10 * (i % 3)), i % 2) for i in range(6)]
TEXTS = {attempt: str(attempt) for attempt in ATTEMPTS}
MANIFESTS = [f"{i:064x}" for i in range(3)]
NONCES = [f"{i:032x}" for i in range(64)]
HASH = "f" * 64
KINDS = ["EPOCH"] * 2 + ["COMMIT"] * 7 + ["ABORT"] + ["RETIRE"] * 2 + ["QUARANTINE"] + ["FORGET"]
KINDS += ["PIN"] * 2 + ["UNPIN"] * 2 + ["AGAIN"]


@dataclass
class History:
    """A log as records and as raw dicts, and what the fold said of each record and prefix."""

    records: list[Record] = field(default_factory=list)
    raw: list[Raw] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    states: list[State] = field(default_factory=lambda: [EMPTY])
    deletable: list[Deletable] = field(default_factory=list)

    @property
    def counted(self) -> list[bool]:
        return [verdict.counted for verdict in self.verdicts]


def random_history(rng: random.Random, length: int, seen: Callable[[State], State] = lambda state: state) -> History:
    """A log of ``length`` records, folded as it grows; the writers' views are the fold's states, old and new.

    ``seen``: what a collector takes a state for.
    """
    history = History()
    offices = [Office(1, NONCES[-1])]  # an office that was never taken
    commits: dict[int, Attempt] = {}
    for seq in range(length):
        raw, record = _next(rng, history, offices, seq)
        state, verdict = folding.fold(history.states[-1], record)
        if isinstance(record.body, Epoch):
            assert record.office is not None
            offices.append(record.office)
        history.records.append(record)
        history.raw.append(raw)
        history.verdicts.append(verdict)
        history.states.append(state)
        commits |= {n: entry.attempt for n, entry in state.commits.items()}
        history.deletable.append(told(seen(state), commits, ATTEMPTS))
    return history


def told(state: State, commits: Mapping[int, Attempt], attempts: Iterable[Attempt]) -> Deletable:
    """What a collector would delete of all that can lie in the store, as the oracle wants it.

    Asked by the things themselves: what the state has forgotten is in none of its lists. ``commits`` are all that ever counted.
    """
    may_go = folding.collectable(state)
    attempts = list(attempts)
    generations = {attempt.snapshot.generation for attempt in attempts}
    return (
        {n for n, attempt in commits.items() if may_go.commit(n, attempt) is not None},
        {_text(attempt) for attempt in attempts if may_go.attempt(attempt) is not None},
        {str(generation) for generation in generations if may_go.layouts(generation) is not None},
    )


def _text(attempt: Attempt) -> str:
    return TEXTS.get(attempt) or str(attempt)


def _next(rng: random.Random, history: History, offices: list[Office], seq: int) -> tuple[Raw, Record]:
    chance = rng.random
    view = history.states[-1] if chance() < 0.8 else rng.choice(history.states)
    kind = rng.choice(KINDS) if seq or chance() < 0.1 else "EPOCH"
    if kind == "AGAIN" and history.records:  # a reply was lost, and the writer sends the same thing to the next number
        old = rng.randrange(len(history.records))
        before = history.records[old]
        again = Record(seq, before.nonce, before.previous, before.state, before.office, before.body)
        return {**history.raw[old], "seq": seq}, again
    nonce = NONCES[seq]
    office: Office | None = view.office if view.office and chance() < 0.9 else rng.choice(offices)
    fields, body = _body(rng, view, kind)
    if isinstance(body, Epoch):
        office = Office(body.number, nonce)
    elif isinstance(body, Pin | Unpin):
        office = None
    raw = {"seq": seq, "nonce": nonce, "office": None if office is None else [office.epoch, office.nonce], "body": fields}
    return raw, Record(seq, nonce, HASH, HASH, office, body)


def _body(rng: random.Random, view: State, kind: str) -> tuple[dict[str, Any], Body]:
    chance = rng.random
    commits = list(view.commits)
    n = rng.choice(commits) if commits and chance() < 0.95 else rng.randrange(12)
    if kind in ("EPOCH", "AGAIN"):
        number = view.epoch + rng.choice((1, 1, 1, 1, 0, 2)) or 1
        return {"type": "EPOCH", "number": number}, Epoch(number)
    if kind == "COMMIT":
        attempt = _attempt(rng, view)
        manifest = rng.choice(MANIFESTS)
        living = [c for c in commits if view.commits[c].live]
        parent = (living[-1] if living else None) if chance() < 0.85 else (n if chance() < 0.7 else None)
        among = living if living and chance() < 0.7 else commits
        bases = sorted({rng.choice(among) for _ in range(rng.randrange(3))}) if among else []
        fields = {"type": kind, "attempt": TEXTS[attempt], "manifest": manifest, "parent": parent, "bases": bases}
        return fields, Commit(attempt, manifest, parent, tuple(bases))
    if kind == "ABORT":
        attempt = _attempt(rng, view)
        return {"type": kind, "attempt": TEXTS[attempt]}, Abort(attempt)
    if kind == "FORGET":
        before = _attempt(rng, view).snapshot
        if commits and chance() < 0.6:
            before = view.commits[n if n in view.commits else commits[-1]].attempt.snapshot
        return {"type": kind, "before": str(before)}, Forget(before)
    if kind == "RETIRE":
        return {"type": kind, "n": n}, Retire(n)
    if kind == "QUARANTINE":
        return {"type": kind, "n": n, "reason": "bad"}, Quarantine(n, "bad")
    if kind == "UNPIN" and view.pins and chance() < 0.8:
        n = rng.choice(list(view.pins))
    who = rng.choice(("a", "b"))
    return {"type": kind, "n": n, "who": who}, Pin(n, who) if kind == "PIN" else Unpin(n, who)


def _attempt(rng: random.Random, view: State) -> Attempt:
    """Mostly an open one, as far as the view knows."""
    start = rng.randrange(len(ATTEMPTS))
    attempts = ATTEMPTS[start:] + ATTEMPTS[:start]
    if rng.random() < 0.75:
        return next((a for a in attempts if a not in view.committed and a not in view.aborted), attempts[0])
    return attempts[0]
