"""What becomes of open snapshots, and when a generation gets its schedule. Pure (PROTOCOLS 2, 4 and 5)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ckptd.coordinator.actions import (
    AbortAttempt,
    Action,
    AnnounceSchedule,
    CommitAttempt,
    PauseSchedule,
    ReleaseBefore,
    Wait,
    WithholdSchedule,
)
from ckptd.coordinator.alive import left_world, silent
from ckptd.coordinator.fruitless import offered
from ckptd.coordinator.options import CoordinatorOptions
from ckptd.coordinator.restoring import starts
from ckptd.coordinator.state import MAX_OPEN_SNAPSHOTS, OpenSnapshot, State
from ckptd.coordinator.world import PAUSED, Schedule, World
from ckptd.model.ids import Attempt


def find(state: State, attempt: Attempt, now: float) -> OpenSnapshot | None:
    """The open snapshot, opened if it is new; None when the attempt is settled already (its outcome is told again then)."""
    id = attempt.snapshot
    known = state.snapshots.get(id)
    if known is not None and known.number == attempt.number:
        return known
    outcome = state.outcomes.get(attempt) or state.outcome_of(attempt)
    if outcome is not None:
        state.settle(attempt, outcome)
        return None
    if known is not None or len(state.snapshots) >= MAX_OPEN_SNAPSHOTS:
        return None
    world = state.world if state.world is not None and state.world.id == id.generation else None
    opened = OpenSnapshot(id, attempt.number, world, now)
    if world is None:
        opened.missed = f"generation {id.generation} is no more"
    state.snapshots[id] = opened
    return opened


def decide_snapshots(now: float, state: State, options: CoordinatorOptions) -> Iterator[Action]:
    """Settle what can be settled, oldest first, so that the log's order is the steps' order."""
    blocked = False
    for id in sorted(state.snapshots):
        snapshot = state.snapshots[id]
        if snapshot.settling:
            continue
        reason = _hopeless(now, state, options, snapshot)
        if reason is not None:
            yield AbortAttempt(id, reason)
        elif snapshot.stored and not blocked:
            yield CommitAttempt(id)
        else:
            blocked = True
            yield Wait("snapshot", _missing(snapshot))
    complete = [id for id, snapshot in state.snapshots.items() if snapshot.complete and snapshot.missed is None]
    committed = [attempt.snapshot for attempt, outcome in state.outcomes.items() if outcome.seq is not None]
    newest = max(complete + committed, default=None)
    older_open = any(newest is not None and id < newest for id in state.snapshots)
    if newest is not None and (state.release is None or newest > state.release) and not older_open:
        yield ReleaseBefore(newest)


def _missing(snapshot: OpenSnapshot) -> str:
    size = 0 if snapshot.world is None else snapshot.world.world_size
    return f"snapshot {snapshot.id}: {len(snapshot.sealed)} of {size} ranks sealed, {len(snapshot.uploaded)} uploaded"


def _hopeless(now: float, state: State, options: CoordinatorOptions, snapshot: OpenSnapshot) -> str | None:
    """Why this snapshot will never be whole, or None."""
    world = snapshot.world
    if snapshot.missed is not None or world is None:
        return snapshot.missed or "its generation is unknown"
    if not world.whole:
        return "not all members of its generation came back to this coordinator"
    if world.unscheduled is not None:
        return world.unscheduled
    if snapshot.stored:
        return None
    newer = [other for id, other in state.snapshots.items() if id > snapshot.id]
    if any(other.stored for other in newer) or (not snapshot.complete and any(other.complete for other in newer)):
        return "a newer snapshot overtook it"
    if world.schedule == PAUSED and not snapshot.complete and _unsealed(now, state, options, snapshot, world):
        # A rank's seal can be lost with its daemon. While there is no schedule, no newer snapshot overtakes this one.
        return f"snapshots pause, and {options.lease_seconds:g} s later not all ranks had sealed it"
    if (reason := _deserted(now, state, options, snapshot, world)) is not None:
        return reason
    if all(rank.finished for rank in world.ranks.values()) and len(world.ranks) == world.world_size and not snapshot.complete:
        return "all ranks have finished and not all of them took part in it"
    return _cut_short(now, state, options, snapshot, world)


def _unsealed(now: float, state: State, options: CoordinatorOptions, snapshot: OpenSnapshot, world: World) -> bool:
    """Has every daemon whose ranks have not sealed it had a lease to say so since the pause began, or since it came back?"""
    hosts = {host for rank in range(world.world_size) if rank not in snapshot.sealed and (host := world.host(rank)) is not None}
    nodes = [state.nodes[id] for id in hosts if id in state.nodes]
    since = max([world.paused_seconds, *(node.attached_seconds for node in nodes)])
    return now - since >= options.lease_seconds and not any(silent(now, node, options) for node in nodes)


def _deserted(now: float, state: State, options: CoordinatorOptions, snapshot: OpenSnapshot, world: World) -> str | None:
    """A member whose part is missing will not send it any more.

    While training goes on a silent daemon is waited for: it is being restarted, and finds what is sealed. Without it nothing
    could be committed anyway. In a broken world the others wait for this snapshot's end, and silence is death.
    """
    ended = world.broken is not None or world is not state.world
    for id in sorted(_hosts_missing(snapshot, world)):
        node = state.nodes.get(id)
        if node is None or node.left:
            return f"node {id} has left"
        if ended and silent(now, node, options):
            return f"nothing was heard of node {id} for {options.lease_seconds:g} s"
    return None


def _cut_short(now: float, state: State, options: CoordinatorOptions, snapshot: OpenSnapshot, world: World) -> str | None:
    """A broken generation's snapshot is whole already or never, and its upload has drain_seconds."""
    ended = world.broken is not None or world is not state.world
    if not ended:
        return None
    if not snapshot.complete and (world is not state.world or all(left_world(state, world, node) for node in world.members)):
        return f"its generation ended first: {world.broken}"
    if now - world.broken_seconds >= options.drain_seconds:
        return f"its generation ended, and {options.drain_seconds:g} s later it was not all uploaded"
    return None


def _hosts_missing(snapshot: OpenSnapshot, world: World) -> set[str]:
    missing = set(range(world.world_size)) - snapshot.uploaded
    return {host for rank in missing if (host := world.host(rank)) is not None}


def decide_schedule(state: State, options: CoordinatorOptions) -> Iterator[Action]:
    """A schedule once every rank is there and knows what it starts from; a pause when a rank missed its step.

    Ranks whose slots come free at different times would otherwise miss different steps for ever, and nothing would complete.
    """
    world = state.world
    if world is None or world.broken or not world.whole or state.over:
        return
    if world.schedule is not None:
        yield from _pause_or_resume(state, options, world)
        return
    ranks = [world.ranks.get(number) for number in range(world.world_size)]
    ready = sum(1 for rank in ranks if rank is not None and rank.up and (rank.ready or starts(rank, world.target)))
    unheard = world.id.epoch != state.epoch and not all(rank.counted for rank in world.ranks.values())
    if ready < world.world_size or unheard:
        yield Wait("schedule", f"{ready} of {world.world_size} ranks are ready")
    elif any(id.generation != world.id for id in state.snapshots) or state.log_busy:
        yield Wait("schedule", "first earlier attempts are committed or aborted")
    elif not _descends(state, world):
        yield from _withhold(state, world)
    else:
        yield AnnounceSchedule(_next_schedule(world, options))


def _pause_or_resume(state: State, options: CoordinatorOptions, world: World) -> Iterator[Action]:
    if world.schedule != PAUSED:
        missed = next((s.missed for s in state.snapshots.values() if s.world is world and s.missed is not None), None)
        if missed is not None:
            yield PauseSchedule(missed)
        return
    full = [number for number, rank in sorted(world.ranks.items()) if not rank.free_slots]
    opened = sum(1 for snapshot in state.snapshots.values() if snapshot.world is world)
    if full or opened:
        what = f"{opened} snapshots are on their way, {len(full)} ranks have no free slot"
        yield Wait("schedule", f"snapshots pause ({world.paused}): {what}")
    else:
        yield AnnounceSchedule(_next_schedule(world, options))


def _next_schedule(world: World, options: CoordinatorOptions) -> Schedule:
    """From the first step on the grid that no rank will have passed before it hears of it.

    A step is known up to a heartbeat late, and the schedule may take as long to arrive.
    """
    restored = world.target.step if world.target is not None else 0
    furthest = max([restored, *(rank.step for rank in world.ranks.values())])
    pace = world.median_step_seconds
    lead = max(2, math.ceil(2 * options.heartbeat_seconds / pace) if pace > 0 else 0)
    every = options.every_steps
    return Schedule(-(-(furthest + lead) // every) * every, every)


def _descends(state: State, world: World) -> bool:
    """I8: would this world's snapshots descend from the last commit?"""
    newest = offered(state).seq
    if newest is None or state.candidate_generation == world.id:
        return True
    if {rank.base_seq for rank in world.ranks.values()} == {newest + 1}:
        return True
    target = world.target
    return target is not None and target.seq == newest and all(starts(rank, target) for rank in world.ranks.values())


def _withhold(state: State, world: World) -> Iterator[Action]:
    candidate = offered(state)
    reason = (
        f"this world did not restore the last commit (record {candidate.seq}, step {candidate.step}), so its snapshots would"
        " not descend from it: call restore() before training, or use another job id"
    )
    asked = any(rank.asked for rank in world.ranks.values())
    if asked and world.furthest_step == 0:
        yield Wait("schedule", f"the ranks restore record {candidate.seq} first")
    elif world.unscheduled is None:
        yield WithholdSchedule(reason)
