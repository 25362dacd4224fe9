"""Retention: what it keeps, on random logs; and what it refuses to be."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptd.commit.fold import EMPTY, State, fold, restore_candidate
from ckptd.commit.retention import Retention, choose, next_to_retire
from ckptd.errors import ConfigError
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.model.records import Body, Commit, Epoch, Office, Pin, Record, Retire, Unpin
from tests.commit.histories import random_history

OFFICE = Office(1, "0" * 32)
HASH = "f" * 64


def after(state: State, body: Body) -> State:
    office = None if isinstance(body, Pin | Unpin) else OFFICE
    state, verdict = fold(state, Record(state.tail + 1, OFFICE.nonce, HASH, HASH, office, body))
    assert verdict.counted, verdict
    return state


def committed(*steps: int, state: State = EMPTY, generation: int = 1) -> State:
    state = state if state.office else after(state, Epoch(1))
    for step in steps:
        newest = restore_candidate(state)
        attempt = Attempt(Snapshot(Generation(1, generation), step), 0)
        state = after(state, Commit(attempt, HASH, newest.n if newest else None, ()))
    return state


def retired(state: State, retention: Retention) -> State:
    """Until nothing is left to do."""
    while (n := next_to_retire(state, retention)) is not None:
        state = after(state, Retire(n))
    return state


def kept(state: State, retention: Retention) -> list[int]:
    return [entry.attempt.snapshot.step for entry in retired(state, retention).commits.values() if entry.live]


def test_the_last_ones_and_the_first_of_every_so_many_steps() -> None:
    state = committed(*range(10, 300, 10))
    assert kept(state, Retention(3)) == [270, 280, 290]
    assert kept(state, Retention(3, 100)) == [100, 200, 270, 280, 290]
    assert kept(state, Retention(1, 75)) == [80, 150, 230, 290]  # the schedule needs not hit them
    assert kept(state, Retention(0)) == list(range(10, 300, 10))
    assert kept(state, Retention(1000)) == list(range(10, 300, 10))


def test_a_step_that_came_again_is_kept_once_and_as_it_was_the_last_time() -> None:
    state = committed(100, 110, 120, state=committed(90, 100, 110, 120), generation=2)
    live = [entry for entry in retired(state, Retention(1, 100)).commits.values() if entry.live]
    assert [(entry.attempt.snapshot.generation.n, entry.attempt.snapshot.step) for entry in live] == [(2, 100), (2, 120)]


def test_a_pin_keeps_and_says_so() -> None:
    state = committed(10, 20, 30)
    state = after(state, Pin(1, "me"))
    assert kept(state, Retention(1)) == [10, 30]
    assert [choice.reason for choice in choose(state, Retention(1))] == [
        "pinned by me",
        "not one of the last 1",
        "one of the last 1",
    ]


@settings(max_examples=200)
@given(st.randoms(use_true_random=False), st.integers(1, 40), st.integers(1, 4), st.sampled_from([0, 1, 7, 10, 15, 40]))
def test_random_logs_stay_within_their_retention(rng: random.Random, length: int, keep_last: int, keep_every: int) -> None:
    state, retention = random_history(rng, length).states[-1], Retention(keep_last, keep_every)
    live = [entry for entry in state.commits.values() if entry.live]
    choices = {choice.entry.n: choice for choice in choose(state, retention)}
    assert list(choices) == [entry.n for entry in live]
    staying = [entry for entry in live if not choices[entry.n].retire]
    assert all(entry in staying for entry in live[-keep_last:])
    assert all(entry in staying for entry in live if entry.n in state.pins)
    if keep_every:
        steps = {entry.attempt.snapshot.step for entry in staying}
        for entry in live:
            begun = entry.attempt.snapshot.step // keep_every
            assert not begun or any(step // keep_every == begun and step <= entry.attempt.snapshot.step for step in steps)
    milestones = len({e.attempt.snapshot.step // keep_every for e in live} - {0}) if keep_every else 0
    of_others = [entry for entry in staying if choices[entry.n].reason.startswith("a base of ")]
    assert len(staying) - len(of_others) <= keep_last + milestones + len(state.pins)
    needed = {base for entry in staying if entry not in of_others for base in entry.bases}
    assert (
        {entry.n for entry in of_others} <= needed <= {entry.n for entry in staying} | (state.commits.keys() - choices.keys())
    )


@pytest.mark.parametrize(("keep_last", "keep_every"), [(-1, 0), (1, -5), (0, 100)])
def test_impossible_retentions_are_refused(keep_last: int, keep_every: int) -> None:
    with pytest.raises(ConfigError):
        Retention(keep_last, keep_every)
