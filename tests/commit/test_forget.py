"""Until where the log may forget: never past what is pending, and only when it is worth a record."""

from __future__ import annotations

from dataclasses import replace

from ckptd.commit.fold import fold
from ckptd.commit.forget import FORGET_AT_ONCE, next_to_forget
from ckptd.commit.state import EMPTY, State
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.model.records import GENESIS, Abort, Body, Commit, Epoch, Forget, Office, Pin, Record, Retire
from tests.commit.test_state import HASH

OFFICE = Office(1, "0" * 32)
END = Snapshot(Generation(9, 1), 0)


def snapshot(step: int) -> Snapshot:
    return Snapshot(Generation(1, 1), step)


def attempt(step: int) -> Attempt:
    return Attempt(snapshot(step), 0)


def then(state: State, body: Body) -> State:
    seq = state.tail + 1
    office = None if isinstance(body, Pin) else OFFICE
    state, verdict = fold(state, Record(seq, f"{seq:032x}", GENESIS, HASH, office, body))
    assert verdict.counted, verdict
    return state


def training(commits: int, state: State = EMPTY, first: int = 0) -> State:
    """Commits at steps 10, 20, …; each retires the one before."""
    state = state if state.office else then(state, Epoch(1))
    for step in range(10 * (first + 1), 10 * (first + commits) + 1, 10):
        newest = max((n for n, entry in state.commits.items() if entry.live and n not in state.pins), default=None)
        parent = max((n for n, entry in state.commits.items() if entry.live), default=None)
        state = then(state, Commit(attempt(step), HASH, parent, ()))
        if newest is not None:
            state = then(state, Retire(newest))
    return state


def test_it_waits_until_it_is_worth_a_record() -> None:
    assert next_to_forget(EMPTY, [], END) is None
    assert next_to_forget(training(FORGET_AT_ONCE), [], END) is None
    state = training(FORGET_AT_ONCE + 1)
    assert next_to_forget(state, [], END) == snapshot(10 * FORGET_AT_ONCE + 10)
    assert next_to_forget(state, [], None) is None, "nobody can tell what is under way"


def test_nothing_that_is_pending_is_passed() -> None:
    state = training(2 * FORGET_AT_ONCE + 1)
    middle = 10 * FORGET_AT_ONCE + 10
    assert next_to_forget(state, [attempt(middle + 50), attempt(middle)], END) == snapshot(middle)
    assert next_to_forget(state, [attempt(middle - 10)], END) is None
    assert next_to_forget(state, [], snapshot(middle)) == snapshot(middle)


def test_it_stays_small_for_ever_and_a_pinned_commit_stays() -> None:
    state = then(training(1), Pin(1, "me"))
    for times in range(20):
        state = training(FORGET_AT_ONCE, state, 1 + times * FORGET_AT_ONCE)
        for step in range(3):  # aborts leave the state, too
            state = then(state, Abort(attempt(10 * (1 + times * FORGET_AT_ONCE) + 1 + step)))
        before = next_to_forget(state, [], END)
        assert before is not None
        state = then(state, Forget(before))
        assert len(state.commits) <= 3 and not state.aborted and 1 in state.commits
        assert next_to_forget(state, [], END) is None
    assert state.commits[1] == replace(training(1).commits[1])
