"""Which commits may be referred to: long random histories in which nothing is lost, and the store stays bounded."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptd.commit.bases as rule
from ckptd.commit.bases import MOST_KEPT, Use, Uses, referable
from ckptd.commit.fold import EMPTY, State, fold, judge
from ckptd.commit.retention import Retention, choose, next_to_retire
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.model.records import Body, Commit, Epoch, Office, Pin, Quarantine, Record, Retire, Unpin

OFFICE = Office(1, "0" * 32)
HASH = "f" * 64
FRAMES = 24  # of 100 bytes each


def then(state: State, *bodies: Body) -> State:
    for body in bodies:
        office = None if isinstance(body, Pin | Unpin) else OFFICE
        state, verdict = fold(state, Record(state.tail + 1, OFFICE.nonce, HASH, HASH, office, body))
        assert verdict.counted, (verdict, body)
    return state


@dataclass
class Run:
    """A job whose checkpoints refer to what has not changed, its coordinator's rules, and what is in the store."""

    rng: random.Random
    retention: Retention
    state: State = field(default_factory=lambda: then(EMPTY, Epoch(1)))
    holders: dict[int, list[int]] = field(default_factory=dict)
    """By commit, in whose data each of its frames lies."""
    uses: Uses | None = None
    void: int = 0
    written_frames: int = 0

    def checkpoint(self, changed: set[int], late: Callable[[], None] = lambda: None) -> None:
        """The next one, in which these frames have changed; ``late`` happens while it is uploaded."""
        allowed = referable(self.state, self.uses)
        live = [n for n, entry in self.state.commits.items() if entry.live]
        newest = self.holders[live[-1]] if live else [-1] * FRAMES
        frames = [newest[i] if i not in changed and newest[i] in allowed else -1 for i in range(FRAMES)]
        self.written_frames += frames.count(-1)
        late()
        n = self.state.tail + 1
        parent = max((n for n, entry in self.state.commits.items() if entry.live), default=None)
        bases = tuple(sorted(set(frames) - {-1}))
        attempt = Attempt(Snapshot(Generation(1, 1), n), 0)
        commit = Commit(attempt, HASH, parent, bases)
        if not judge(self.state, Record(n, OFFICE.nonce, HASH, HASH, OFFICE, commit)).counted:
            self.void += 1
            return
        self.state = then(self.state, commit)
        self.holders[n] = [n if holder == -1 else holder for holder in frames]
        used = Counter(self.holders[n])
        sizes = {base: Counter(self.holders[base])[base] for base in bases}
        self.uses = Uses(n, 100 * used[n], {base: Use(100 * used[base], 100 * sizes[base]) for base in bases})

    def tidy(self) -> None:
        while (n := next_to_retire(self.state, self.retention)) is not None:
            self.state = then(self.state, Retire(n))

    def check(self) -> None:
        kept = self.state.kept()
        for n, entry in self.state.commits.items():
            if entry.live or n in self.state.pins:
                assert set(self.holders[n]) <= kept, f"commit {n} has lost frames"
                assert set(self.holders[n]) <= {n, *entry.bases}

    @property
    def stored_frames(self) -> int:
        return sum(Counter(self.holders[n])[n] for n in self.state.kept())


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 4), st.sampled_from([0, 40]), st.integers(0, FRAMES))
def test_nothing_that_is_needed_goes_and_the_store_stays_bounded(
    rng: random.Random, keep_last: int, keep_every: int, churn: int
) -> None:
    run = Run(rng, Retention(keep_last, keep_every))
    for _ in range(60):
        before = set(run.state.commits)
        run.checkpoint({i for i in range(FRAMES) if rng.randrange(FRAMES) < churn}, lambda: _incident(run))
        if rng.random() < 0.8:
            run.tidy()
        run.check()
        for n in set(run.state.commits) - before:
            bases = run.state.commits[n].bases
            kept = {m for base in bases for m in (base, *run.state.commits[base].bases)}
            assert len(kept) <= MOST_KEPT
    run.tidy()
    roots = [choice for choice in choose(run.state, run.retention) if "a base of" not in choice.reason]
    pinned = len(run.state.pins)
    assert len(run.state.kept()) <= (len(roots) + pinned) * (1 + MOST_KEPT)


def _incident(run: Run) -> None:
    """What people and damage do while a snapshot is uploaded: any of it may make the snapshot void, and the next is well."""
    commits = [n for n, entry in run.state.commits.items() if entry.live]
    chance = run.rng.random()
    if not commits or chance < 0.8:
        return
    n = run.rng.choice(commits)
    if chance < 0.85:
        run.state = then(run.state, Pin(n, "me"))
    elif chance < 0.88 and n in run.state.pins:
        run.state = then(run.state, Unpin(n, "me"))
    elif chance < 0.94 and n != commits[-1]:
        run.state = then(run.state, Retire(n))
    elif chance < 0.97:
        run.state = then(run.state, Quarantine(n, "bad"))


def test_a_void_one_is_followed_by_one_that_counts() -> None:
    run = Run(random.Random(1), Retention(1))
    run.checkpoint(set(range(FRAMES)))
    run.checkpoint({0})
    first = min(run.state.commits)

    def retired() -> None:
        run.state = then(run.state, Retire(first))

    run.checkpoint({0}, retired)
    assert run.void == 1
    run.checkpoint({0})
    assert run.void == 1 and first not in run.holders[max(run.holders)]


def test_a_frozen_backbone_is_written_once_and_kept_for_ever() -> None:
    run = Run(random.Random(1), Retention(2))
    for _ in range(100):
        run.checkpoint({0, 1})
        run.tidy()
    assert run.written_frames == FRAMES + 2 * 99 and run.stored_frames == FRAMES + 2 * 2
    reasons = [choice.reason for choice in choose(run.state, run.retention)]
    assert reasons == [f"a base of step {max(run.holders)}", "one of the last 2", "one of the last 2"]


def test_seldom_touched_experts_do_not_keep_every_old_checkpoint() -> None:
    run = Run(random.Random(7), Retention(1))
    worst = 0
    for step in range(300):
        run.checkpoint({0, 1, 2, 3 + step % 21})  # one expert in turn
        run.tidy()
        run.check()
        worst = max(worst, run.stored_frames)
    assert worst <= 2 * (1 + MOST_KEPT) * FRAMES / 2 and run.written_frames < 300 * FRAMES / 2


def uses(own_bytes: int, **of: tuple[int, int]) -> Uses:
    return Uses(3, own_bytes, {int(n[1:]): Use(*use) for n, use in of.items()})


CHAIN = then(
    EMPTY,
    Epoch(1),
    *(
        Commit(Attempt(Snapshot(Generation(1, 1), n), 0), HASH, n - 1 or None, bases)
        for n, bases in ((1, ()), (2, ()), (3, (1, 2)))
    ),
)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (None, (1, 2, 3)),  # another coordinator's: taken to be used whole
        (Uses(2, 5, {1: Use(0, 100)}), (1, 2, 3)),  # of another commit
        (uses(10, n1=(50, 100), n2=(20, 20)), (1, 2, 3)),
        (uses(10, n1=(24, 100), n2=(100, 100)), (2, 3)),  # too little of record 1 is in use
        (uses(10, n1=(25, 100), n2=(100, 100)), (1, 2, 3)),
        (uses(10, n1=(40, 150), n2=(45, 160)), (3,)),  # each alone would keep more unused than the checkpoint has
        (uses(30, n1=(40, 100), n2=(45, 110)), (2, 3)),  # both together would
    ],
)
def test_a_base_must_be_worth_what_it_keeps(known: Uses | None, expected: tuple[int, ...]) -> None:
    assert referable(CHAIN, known) == expected


def test_only_live_ones_and_none_that_is_about_to_be_put_aside() -> None:
    assert referable(EMPTY, None) == ()
    assert referable(then(CHAIN, Retire(1)), None) == (2, 3)
    assert referable(then(CHAIN, Quarantine(2, "bad")), None) == (1, 3)
    assert referable(then(CHAIN, Quarantine(3, "bad")), None) == (2,)
    assert referable(CHAIN, None, without=3) == (2,)
    assert referable(CHAIN, None, without=1) == (2, 3)


@pytest.mark.parametrize(
    ("name", "value", "often"),
    [("MOST_KEPT", 10**6, lambda step: {step % 20, *range(20, FRAMES)}), ("LEAST_SHARE", 0.0, lambda _: set(range(4, FRAMES)))],
)
def test_without_its_bounds_more_would_be_kept(
    name: str, value: float, often: Callable[[int], set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stored() -> int:
        run, total = Run(random.Random(3), Retention(1)), 0
        for step in range(80):
            run.checkpoint(often(step))
            run.tidy()
            total += run.stored_frames
        return total

    bounded = stored()
    monkeypatch.setattr(rule, name, value)
    assert stored() > 1.2 * bounded
