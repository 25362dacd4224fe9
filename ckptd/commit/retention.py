"""Which commits to offer no more (RETIRE): pure. What a RETIRE lets go of, and when, is ``collect``'s to say.

A commit is kept when any of these says so, and retired when none does:

- it is one of the newest ``keep_last`` live ones, in log order; so the newest one is never retired;
- it is the first of its ``keep_every_steps`` steps: among the live commits from step k × n to step (k + 1) × n - 1, k ≥ 1, the
  one with the lowest step (the later one in the log, where a step came again). So n need not be a multiple of the schedule;
- somebody pins it;
- it is a base of one that is kept for another reason than this: only live commits may be bases of the next ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from ckptd.commit.state import Entry, State
from ckptd.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Retention:
    """``keep_last`` 0: keep all. ``keep_every_steps`` 0: no others than the last. Raises ConfigError for what can't be."""

    keep_last: int
    keep_every_steps: int = 0

    def __post_init__(self) -> None:
        if self.keep_last < 0 or self.keep_every_steps < 0:
            raise ConfigError(
                "keep_last and keep_every can't be negative; 0 turns them off"
                f" keep_last={self.keep_last} keep_every={self.keep_every_steps}"
            )
        if self.keep_every_steps and not self.keep_last:
            raise ConfigError("keep_last = 0 keeps every checkpoint, so keep_every has nothing to choose; set keep_last, too")


@dataclass(frozen=True, slots=True)
class Choice:
    """What becomes of one live commit, and why."""

    entry: Entry
    retire: bool
    reason: str


def choose(state: State, retention: Retention) -> tuple[Choice, ...]:
    """The choice about each live commit, in log order."""
    live = [entry for entry in state.commits.values() if entry.live]
    last = {entry.n for entry in live[-retention.keep_last :]}  # all of them for 0
    milestones = _milestones(live, retention.keep_every_steps)
    reasons = {entry.n: _reason(state, entry, entry.n in last, entry.n in milestones, retention) for entry in live}
    base_of = {n: entry for entry in live if reasons[entry.n] is not None for n in entry.bases}
    return tuple(_choice(entry, reasons[entry.n], base_of.get(entry.n), retention) for entry in live)


def next_to_retire(state: State, retention: Retention) -> int | None:
    """The oldest commit to retire now; None when there is nothing to do."""
    if not retention.keep_last:
        return None
    return next((choice.entry.n for choice in choose(state, retention) if choice.retire), None)


def _milestones(live: list[Entry], every_steps: int) -> set[int]:
    """Log numbers of the first commits of every so many steps."""
    if not every_steps:
        return set()
    first: dict[int, Entry] = {}
    for entry in live:
        step = entry.attempt.snapshot.step
        known = first.get(step // every_steps)
        if step >= every_steps and (known is None or step <= known.attempt.snapshot.step):
            first[step // every_steps] = entry
    return {entry.n for entry in first.values()}


def _reason(state: State, entry: Entry, last: bool, milestone: bool, retention: Retention) -> str | None:
    """Why it is kept for its own sake, if it is."""
    if not retention.keep_last:
        return "all are kept"
    if last:
        return f"one of the last {retention.keep_last}"
    if milestone:
        return f"the first of {retention.keep_every_steps} steps"
    return f"pinned by {', '.join(sorted(state.pins[entry.n]))}" if entry.n in state.pins else None


def _choice(entry: Entry, reason: str | None, base_of: Entry | None, retention: Retention) -> Choice:
    if reason is not None:
        return Choice(entry, False, reason)
    if base_of is not None:
        return Choice(entry, False, f"a base of step {base_of.attempt.snapshot.step}")
    return Choice(entry, True, f"not one of the last {retention.keep_last}")
