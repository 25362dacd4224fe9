"""Until where the log may forget (FORGET), so that its folded state stays as small as what is kept: pure.

Safety doesn't hang on this choice: the fold and the collector hold whatever is forgotten for over. What does hang on it is
work: an attempt that is still under way before the chosen snapshot could not be committed any more, and what isn't collected
yet would lose its own reason and its own grace.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from ckptd.commit.state import State
from ckptd.model.ids import Attempt, Snapshot

FORGET_AT_ONCE: Final = 64
"""One record for so many commits and aborts that leave the state. Until then `ckptd ls` still counts them."""


def next_to_forget(state: State, pending: Collection[Attempt], settled: Snapshot | None) -> Snapshot | None:
    """The snapshot before which a FORGET is worth its record; None if none is yet.

    ``pending``: attempts with objects that wait for their deletion, or that nobody has settled. ``settled``: the snapshot
    before which no attempt is under way, as far as the nodes know; None while nobody can tell.
    """
    newest = next(reversed(tuple(state.commits.values())), None)
    if newest is None or settled is None:
        return None
    before = min(newest.attempt.snapshot, settled, *(attempt.snapshot for attempt in pending))
    kept = state.kept()
    over = [entry.attempt for n, entry in state.commits.items() if n not in kept] + list(state.aborted)
    return before if sum(attempt.snapshot < before for attempt in over) >= FORGET_AT_ONCE else None
