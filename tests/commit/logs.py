"""Logs in a store that lies in memory, written without CommitLog, and how they are opened."""

from __future__ import annotations

import random

from ckptd.commit.fold import EMPTY, fold
from ckptd.commit.log import CommitLog
from ckptd.commit.patience import Patience
from ckptd.commit.reader import encode_hint
from ckptd.commit.state import encode_state, state_hash
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.model.keys import latest_key, log_key, state_key
from ckptd.model.records import Body, Commit, Epoch, Office, Pin, Record, Unpin, encode
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
