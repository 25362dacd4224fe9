"""What to do now: ``decide(now, state, options)`` is pure, and every action and every wait has a reason (PROTOCOLS 5).

The caller enacts the first action that is no Wait and asks again, until only Waits are left: so no action rests on a state that
another one has just changed. Every action, once enacted, removes the reason for which it was wanted.
"""

from __future__ import annotations

from ckptd.coordinator.actions import Action
from ckptd.coordinator.alive import decide_dead, decide_revival
from ckptd.coordinator.fruitless import decide_fruitless
from ckptd.coordinator.membership import decide_adoption, decide_broken, decide_complete, decide_forming, decide_recall
from ckptd.coordinator.options import CoordinatorOptions
from ckptd.coordinator.restoring import decide_pin, decide_restore
from ckptd.coordinator.snapshots import decide_schedule, decide_snapshots
from ckptd.coordinator.state import State


def decide(now: float, state: State, options: CoordinatorOptions) -> list[Action]:
    """All that could be done at ``now`` (monotonic seconds), the most urgent first. Changes nothing."""
    return [
        *decide_complete(state),
        *decide_broken(state),
        *decide_dead(now, state, options),
        *decide_revival(now, state, options),
        *decide_adoption(now, state, options),
        *decide_recall(now, state, options),
        *decide_snapshots(now, state, options),
        *decide_fruitless(state, options),
        *decide_forming(now, state, options),
        # The schedule goes out before the ranks may start, so that none of them passes its first step unaware.
        *decide_schedule(state, options),
        *decide_pin(state),
        *decide_restore(now, state, options),
    ]
