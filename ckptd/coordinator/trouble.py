"""What is wrong with the job as a whole, from the state alone. Pure; the words are for people."""

from __future__ import annotations

from typing import Final

from ckptd.coordinator.alive import blind_nodes
from ckptd.coordinator.fruitless import offered
from ckptd.coordinator.membership import waiting
from ckptd.coordinator.options import CoordinatorOptions
from ckptd.coordinator.state import State
from ckptd.coordinator.world import World

ABORTS: Final = 3
"""So many snapshots given up in a row are no accident."""
OVERDUE_SNAPSHOTS: Final = 3
OVERDUE_SECONDS: Final = 30.0


def troubles_of(now: float, state: State, options: CoordinatorOptions, hanging: str | None) -> dict[str, str]:
    """{topic: what}, as of ``now`` on the coordinator's clock. ``hanging``: why the store doesn't even refuse."""
    found: dict[str, str] = {}
    trouble = state.log_trouble or state.hint_trouble or hanging
    if trouble:
        found["store"] = f"the coordinator can't write; training goes on, commits wait: {trouble}"
    for node in blind_nodes(now, state, options):
        found[f"node {node}"] = f"nothing is heard of the daemon of node {node}; training goes on, snapshots pause"
    if (short := _too_few(now, state, options)) is not None:
        found["nodes"] = short
    if state.over is not None and state.over.failed:
        found["job"] = state.over.reason
    elif state.fruitless:
        back = ", and the checkpoint before the last one is tried" if offered(state) != state.candidate else ""
        last = state.failures[-1].what
        found["failures"] = f"{state.fruitless} worlds in a row failed without a new checkpoint{back}: {last}"
    world = state.world
    if world is None or state.over:
        return found
    if world.unscheduled is not None:
        found["snapshots"] = f"no snapshots are taken: {world.unscheduled}"
    elif (overdue := _overdue(now, state, world)) is not None:
        found["commits"] = overdue
    outcomes = [outcome for attempt, outcome in state.outcomes.items() if attempt.snapshot.generation == world.id]
    if len(outcomes) >= ABORTS and all(outcome.seq is None for outcome in outcomes[-ABORTS:]):
        found["aborts"] = f"the last {ABORTS} snapshots or more were given up: {outcomes[-1].reason}"
    return found


def _too_few(now: float, state: State, options: CoordinatorOptions) -> str | None:
    joined = waiting(now, state, options)
    running = state.world is not None and not state.world.broken and not state.over
    least = max((agent.min_nodes for _, agent in joined), default=0)
    if running or len(joined) >= least:
        return None
    return f"{len(joined)} of min {least} nodes are there; training waits for more"


def _overdue(now: float, state: State, world: World) -> str | None:
    """Steps go by, and none of them becomes durable."""
    if world.schedule is None or world.broken or world.finishing:
        return None
    every = world.schedule.every
    durable = state.candidate.step if state.candidate_generation == world.id else world.schedule.first - every
    behind = world.furthest_step - durable
    since = world.last_commit_seconds if world.last_commit_seconds is not None else world.formed_seconds
    if behind <= OVERDUE_SNAPSHOTS * every or now - since < OVERDUE_SECONDS:
        return None
    return (
        f"step {world.furthest_step} is done, and the newest durable one is {max(durable, 0)}, though every {every} should be"
    )
