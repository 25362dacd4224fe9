"""The fold against the oracle: a hundred thousand adversarial logs, and folds broken on purpose that the oracle must catch."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptd.commit import fold as folding
from ckptd.commit.fold import (
    EMPTY,
    State,
    Verdict,
    Void,
    decode_state,
    encode_state,
    fold,
    restore_candidate,
)
from ckptd.errors import CorruptError
from ckptd.model.records import Abort, Commit, Epoch, Pin, Record, decode, encode
from tests.commit import oracle
from tests.commit.histories import History, random_history

LOGS = 100_000
CHUNKS = 10
SEED = 20_251


KINDS = ("Epoch", "Commit", "Abort", "Retire", "Quarantine", "Pin", "Unpin", "Forget")


def complaints(history: History) -> list[str]:
    """All that the oracle has to say against what the fold claimed."""
    log, counted = history.raw, history.counted
    found = oracle.violations(log, counted, history.deletable) + oracle.leaks(log, counted, history.deletable[-1])
    expected = oracle.rules(log)
    found += [f"rule: record {i} {history.verdicts[i]}, not so" for i in range(len(log)) if counted[i] != expected[i]]
    end, newest = history.states[-1], restore_candidate(history.states[-1])
    if (newest.n if newest else None) != oracle.newest(log, counted, len(log)):
        found.append("the restore candidate is another")
    commits, aborted = oracle.remembered(log, counted)
    if list(end.commits) != sorted(commits) or {str(attempt) for attempt in end.aborted} != aborted:
        found.append("I4: a later fold doesn't have what it must remember, or has what it must forget")
    return found


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_logs_hold_every_invariant(chunk: int) -> None:
    seen: Counter[object] = Counter()
    for i in range(chunk, LOGS, CHUNKS):
        rng = random.Random(SEED * 1_000_000 + i)
        history = random_history(rng, rng.randrange(4, 19))
        found = complaints(history)
        assert not found, f"seed={SEED * 1_000_000 + i}: {found}\n" + "\n".join(map(json.dumps, history.raw))
        seen.update((type(r.body).__name__, v.void) for r, v in zip(history.records, history.verdicts, strict=True))
    # The logs must exercise every verdict, or they prove little.
    assert {void for _, void in seen} == {None, *Void}
    assert all(seen[(kind, None)] > 500 for kind in KINDS), seen


@settings(max_examples=300)
@given(st.randoms(use_true_random=False), st.integers(1, 25))
def test_random_logs_shrink(rng: random.Random, length: int) -> None:
    assert not complaints(random_history(rng, length))


@settings(max_examples=200)
@given(st.randoms(use_true_random=False), st.integers(1, 40))
def test_bytes_and_states_come_back_the_same(rng: random.Random, length: int) -> None:
    """A reader that starts from any stored state, and from stored bytes, sees what the writer saw."""
    history = random_history(rng, length)
    start = rng.randrange(length + 1)
    stored = encode_state(history.states[start])
    state = decode_state(stored)
    assert state == history.states[start]
    assert encode_state(state) == stored
    for record, raw in zip(history.records[start:], history.raw[start:], strict=True):
        data = encode(record)
        assert {key: json.loads(data)[key] for key in raw} == raw
        state, verdict = fold(state, decode(record.seq, data))
        assert verdict == history.verdicts[record.seq]
    assert state == history.states[-1]


def test_a_record_out_of_order_is_damage() -> None:
    record = random_history(random.Random(0), 3).records[2]
    with pytest.raises(CorruptError, match="out of order"):
        fold(EMPTY, record)


Judge = Callable[[State, Record], Verdict]


def _accepts(kind: type, *voids: Void) -> Judge:
    """A fold that forgot one rule."""
    right = folding.judge

    def judge(state: State, record: Record) -> Verdict:
        verdict, body = right(state, record), record.body
        if isinstance(body, Pin) and body.n not in state.commits:
            return verdict
        if isinstance(body, Commit) and not state.commits.keys() >= set(body.bases):
            return verdict
        return Verdict() if isinstance(body, kind) and verdict.void in voids else verdict

    return judge


def _without_nonce() -> Judge:
    right = folding.judge

    def judge(state: State, record: Record) -> Verdict:
        same = record.office and state.office and record.office.epoch == state.epoch
        return right(state, replace(record, office=state.office) if same else record)

    return judge


MUTANTS: dict[str, tuple[Callable[[], Judge], str]] = {
    "epoch check dropped": (lambda: _accepts(Epoch, Void.WRONG_EPOCH), "I3"),
    "nonce of the office not compared": (_without_nonce, "I3"),
    "stale office commits": (lambda: _accepts(Commit, Void.STALE_OFFICE), "I3"),
    "stale office aborts": (lambda: _accepts(Abort, Void.STALE_OFFICE), "I3"),
    "late ABORT accepted": (lambda: _accepts(Abort, Void.ATTEMPT_COMMITTED), "I6"),
    "COMMIT after its ABORT accepted": (lambda: _accepts(Commit, Void.ATTEMPT_ABORTED), "I6"),
    "second COMMIT accepted": (lambda: _accepts(Commit, Void.ATTEMPT_COMMITTED), "I4"),
    "bases not checked": (lambda: _accepts(Commit, Void.BASE_NOT_LIVE), "I6"),
    "parent not checked": (lambda: _accepts(Commit, Void.PARENT_NOT_NEWEST), "I8"),
    "earlier generation commits": (lambda: _accepts(Commit, Void.GENERATION_PASSED), "I6"),
    "COMMIT of before a FORGET accepted": (lambda: _accepts(Commit, Void.FORGOTTEN), "I6"),
    "PIN after RETIRE accepted": (lambda: _accepts(Pin, Void.NOT_LIVE), "I7"),
}


def _logs_until(invariant: str, seen: Callable[[State], State] = lambda state: state, limit: int = 2000) -> int:
    """How many random logs show that ``invariant`` broken, without asking for the rules; 0 if ``limit`` don't."""
    for i in range(limit):
        history = random_history(random.Random(i), 14, seen)
        found = oracle.violations(history.raw, history.counted, history.deletable)
        if any(violation.startswith(invariant) for violation in found):
            return i + 1
    return 0


@pytest.mark.parametrize("name", MUTANTS)
def test_the_oracle_catches_a_fold_that(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, invariant = MUTANTS[name]
    monkeypatch.setattr(folding, "judge", make())
    assert _logs_until(invariant)


def test_the_oracle_catches_a_fold_that_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "judge", lambda state, record: Verdict(Void.STALE_OFFICE))
    assert any(found.startswith("rule") for found in complaints(random_history(random.Random(1), 14)))


def test_the_oracle_catches_a_collector_that_ignores_pins() -> None:
    assert _logs_until("I7", lambda state: replace(state, pins={}))


def test_the_oracle_catches_a_collector_that_ignores_bases() -> None:
    def seen(state: State) -> State:
        return replace(state, commits={n: replace(entry, bases=()) for n, entry in state.commits.items()})

    assert _logs_until("I6", seen)


def test_the_oracle_catches_a_state_that_forgets_what_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    right = State.kept
    monkeypatch.setattr(State, "kept", lambda state: right(replace(state, pins={})))
    assert any("must remember" in found for i in range(2000) for found in complaints(random_history(random.Random(i), 14)))


def test_the_oracle_passes_the_fold_on_the_same_logs() -> None:
    assert not _logs_until("I")
