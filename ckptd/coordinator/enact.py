"""Actions change the state. What needs the commit log becomes a job for its worker; what nodes must know, ``tell`` finds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import structlog

from ckptd.coordinator import actions as act
from ckptd.coordinator.alive import all_finished, last_generation
from ckptd.coordinator.apply import replay_held
from ckptd.coordinator.state import Ended, Gone, Joined, MemberOf, Node, State
from ckptd.coordinator.world import PAUSED, Place, Rank, World
from ckptd.model.ids import NO_GENERATION, Attempt, Generation

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CheckTailJob:
    """Read log[tail + 1]."""


@dataclass(frozen=True, slots=True)
class CommitJob:
    """Make a checkpoint of these parts, one from each node. ``over``: the newest commit, which it does not descend from."""

    attempt: Attempt
    world_size: int
    parts: tuple[bytes, ...]
    over: int | None


@dataclass(frozen=True, slots=True)
class AbortJob:
    """Record that the attempt is given up."""

    attempt: Attempt
    reason: str


@dataclass(frozen=True, slots=True)
class QuarantineJob:
    """Record that a commit is bad."""

    seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class PinJob:
    """Pin a commit while it is restored."""

    seq: int
    holder: str


LogJob = CheckTailJob | CommitJob | AbortJob | QuarantineJob | PinJob


def enact(state: State, action: act.Action, now: float) -> LogJob | None:
    """Make ``action`` so; returns the log's share of it. ``state.log_busy`` counts jobs until their result is reported back."""
    job = _enact(state, action, now)
    if job is not None:
        state.log_busy += 1
    return job


def _enact(state: State, action: act.Action, now: float) -> LogJob | None:
    match action:
        case act.CheckTail():
            state.permit_asked = True
            return CheckTailJob()
        case act.CommitAttempt(id):
            snapshot = state.snapshots[id]
            snapshot.settling = True
            assert snapshot.stored and snapshot.world is not None, "only what is stored whole is committed"
            parts = tuple(part for _, part in snapshot.parts.values())
            return CommitJob(snapshot.attempt, snapshot.world.world_size, parts, _stepped_over(state, snapshot.world))
        case act.AbortAttempt(id, reason):
            state.snapshots[id].settling = True
            return AbortJob(state.snapshots[id].attempt, reason)
        case act.ReleaseBefore(id):
            state.release = id
        case act.FormGeneration(members, _):
            _form(state, members, now)
        case act.FormRanks(key, size, _):
            _form_ranks(state, key, size, now)
        case act.Adopt(generation, broken, _):
            _adopt(state, generation, broken, now)
        case act.CompleteJob(reason):
            state.ended = _end(state, reason, False, now)
        case act.StepBack(over, _):
            state.stepped_over = over
        case act.StopJob(diagnosis):
            state.ended = _end(state, diagnosis, True, now)
        case act.RecallEnd(generation, reason):
            state.ended = Ended(generation, reason, False, now, frozenset(), frozenset())
        case act.Dismiss(agents, _):
            assert state.over is not None, "only an end can be told"
            state.ended = replace(state.over, agents=state.over.agents | set(agents))
        case act.Wait():
            pass
        case _:
            return _enact_on_world(state, action, now)
    return None


def _enact_on_world(state: State, action: act.Action, now: float) -> LogJob | None:
    world = state.world
    assert world is not None, "these are about the current generation"
    match action:
        case act.DeclareDead(node, reason):
            world.lost[node] = reason
            _break(state, world, reason, now)
        case act.AskRegroup(_, reason, workers):
            world.workers_failed = workers
            _break(state, world, reason, now)
        case act.Revive():
            world.lost.clear()
            world.broken = None
        case act.CountWorld(failure):
            world.counted = True
            if failure is not None:
                state.fruitless, state.failed_seconds = state.fruitless + 1, now
                state.failures.append(failure)
        case act.AnnounceSchedule(schedule):
            world.schedule, world.paused, world.unscheduled = schedule, "", None
        case act.PauseSchedule(reason):
            world.schedule, world.paused, world.paused_seconds = PAUSED, reason, now
            for rank in world.ranks.values():
                rank.free_slots = 0  # what was said before the pause is old
        case act.WithholdSchedule(reason):
            world.unscheduled = reason
        case act.PinRestore(seq, holder):
            world.holder = holder
            return PinJob(seq, holder)
        case act.NameRestore(target, loss):
            world.target, world.restore_loss = target, loss
        case act.RestoreGo():
            world.restore = "go"
        case act.FailRestore(reason, quarantine):
            world.restore, world.restore_failure, world.spoilt = "failed", reason, quarantine is not None
            _break(state, world, reason, now)
            return None if quarantine is None else QuarantineJob(quarantine, reason)
    return None


def _stepped_over(state: State, world: World) -> int | None:
    """The newest commit, if this world was told to do without it."""
    over, target = state.stepped_over, world.target
    stepped = over is not None and over == state.candidate.seq and target is not None and target.seq == state.previous.seq
    return over if stepped else None


def _break(state: State, world: World, reason: str, now: float) -> None:
    if world.broken is None:
        world.broken, world.broken_seconds = reason, now
    for id in world.members:
        node = state.nodes.get(id)
        agent = node.agent if node is not None else None
        # Never told: to its agent this generation has not existed, and it still waits.
        if node is None or not isinstance(agent, MemberOf) or agent.generation != world.id or agent.acknowledged:
            continue
        if ("formed", world.id) not in node.told:
            node.agent = Joined(agent.agent, agent.local_world_size, agent.min_nodes, agent.max_nodes, now, NO_GENERATION)


def _end(state: State, reason: str, failed: bool, now: float) -> Ended:
    """The run of the present world is over."""
    world, nodes = state.world, state.nodes.values()
    assert world is not None, "only a run with a world ends"
    told = frozenset((node.id, node.agent.agent) for node in nodes if node.agent is not None and _was_there(state, world, node))
    absent = frozenset() if failed else frozenset(node.id for node in nodes if _missed_end(world, node))
    return Ended(world.id, reason, failed, now, told, absent)


def _was_there(state: State, world: World, node: Node) -> bool:
    """Is the node's agent of the run that ends with ``world``?

    Who waits but was in no world is a spare of it; if an earlier coordinator formed the world, it may as well be of the next
    run, which after all ends by itself where nothing is left to do.
    """
    last = last_generation(node)
    return last is not None and last <= world.id and (last != NO_GENERATION or world.id.epoch == state.epoch)


def _missed_end(world: World, node: Node) -> bool:
    """Was there an agent, of which nobody is left to hear that the job is complete, and whose ranks are not why it is?"""
    if node.agent is None or (isinstance(node.agent, Gone) and not node.agent.failed):
        return False
    hears = node.connected and isinstance(node.agent, Joined | MemberOf)
    return not hears and not (node.id in world.members and all_finished(world, node.id))


def _install(state: State, world: World, now: float) -> None:
    old = state.world
    if old is not None and old.broken is None:
        old.broken, old.broken_seconds = f"generation {world.id} was formed", now
    assert old is None or old.id < world.id, "generations only go up"
    if state.over:
        for node in state.nodes.values():
            node.agent = None if isinstance(node.agent, Gone) else node.agent  # how the last run's agents ended is history
    state.world = world
    state.permit_seconds = None
    state.claims.clear()
    state.order = tuple(sorted(world.members, key=lambda id: world.members[id].node_rank))
    replay_held(state, now)


def _form(state: State, members: tuple[str, ...], now: float) -> None:
    state.last_n += 1
    id = Generation(state.epoch, state.last_n)
    places: dict[str, Place] = {}
    for node_rank, name in enumerate(members):
        node = state.nodes[name]
        agent = node.agent
        assert isinstance(agent, Joined), "only waiting agents are made members"
        places[name] = Place(node_rank, agent.local_world_size)
        size, least, most = agent.local_world_size, agent.min_nodes, agent.max_nodes
        node.agent = MemberOf(agent.agent, id, node_rank, len(members), size, least, most, acknowledged=False)
    world_size = sum(place.local_world_size for place in places.values())
    _install(state, World(id, "rendezvous", "", world_size, places, now, now), now)


def _form_ranks(state: State, key: str, size: int, now: float) -> None:
    state.last_n += 1
    loose = state.loose.pop((key, size))
    ranks = {
        number: Rank(rank.node, rank.process, rank.base_seq, up=True, ready=rank.ready, asked=rank.asked)
        for number, rank in sorted(loose.items())
    }
    world = World(Generation(state.epoch, state.last_n), "ranks", key, size, _places(ranks), now, now, ranks=ranks)
    _install(state, world, now)


def _places(ranks: dict[int, Rank]) -> dict[str, Place]:
    """Nodes in the order of their lowest ranks."""
    names = list(dict.fromkeys(ranks[number].node for number in sorted(ranks)))
    return {name: Place(index, sum(rank.node == name for rank in ranks.values())) for index, name in enumerate(names)}


def _adopt(state: State, generation: Generation, broken: str | None, now: float) -> None:
    claim = state.claims[generation]
    members: dict[str, Place] = {}
    for name in claim.members:
        agent = state.nodes[name].agent
        if isinstance(agent, MemberOf) and agent.generation == generation:
            members[name] = Place(agent.node_rank, agent.local_world_size)
    if members:
        size = sum(place.local_world_size for place in members.values())
        world = World(generation, "rendezvous", "", size, members, now, now, whole=broken is None)
    else:
        ranks = {number: Rank(node) for number, node in sorted(claim.ranks.items())}
        world = World(generation, "ranks", claim.world_key, claim.world_size, _places(ranks), now, now, ranks=ranks)
    world.broken, world.broken_seconds = broken, now
    _install(state, world, now)
