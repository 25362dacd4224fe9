"""The job as people want to see it: the state as one message. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ckptd.coordinator.alive import left_world, ranks_of, silent
from ckptd.coordinator.convert import to_generation
from ckptd.coordinator.membership import waiting
from ckptd.coordinator.options import CoordinatorOptions
from ckptd.coordinator.state import Gone, Joined, Node, State
from ckptd.coordinator.world import World
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd.troubles import Trouble


def status_of(
    now: float,
    job: str,
    state: State,
    options: CoordinatorOptions,
    waits: Mapping[str, tuple[str, float]],
    troubles: Sequence[Trouble],
) -> pb.StatusReply:
    """``waits`` is {topic: (reason, since when on our clock)}."""
    phase, why = _phase(state, bool(waiting(now, state, options)))
    reply = pb.StatusReply(
        job=job,
        epoch=state.epoch,
        in_office_seconds=now - state.started_seconds,
        phase=phase,
        why=why,
        nodes=[_node(now, state, options, node) for _, node in sorted(state.nodes.items())],
        waiting=[pb.Wait(topic=topic, reason=reason, seconds=now - since) for topic, (reason, since) in waits.items()],
        troubles=[trouble_to_pb(trouble) for trouble in troubles],
        snapshots=_snapshots(now, state),
    )
    world, candidate = state.world, state.candidate
    if world is not None:
        reply.world.CopyFrom(_world(now, world))
    if candidate.seq is not None:
        ours = world is not None and world.last_commit_seconds is not None and state.candidate_generation == world.id
        seconds = now - world.last_commit_seconds if ours and world is not None and world.last_commit_seconds else 0.0
        reply.newest.CopyFrom(pb.Newest(seq=candidate.seq, step=candidate.step, seconds=seconds, manifest=candidate.manifest))
    return reply


def trouble_to_pb(trouble: Trouble) -> pb.Trouble:
    """For a message."""
    return pb.Trouble(topic=trouble.topic, what=trouble.what, since_unix_seconds=trouble.since, times=trouble.times)


def _phase(state: State, waited_for: bool) -> tuple[str, str]:
    world = state.world
    if state.over is not None and waited_for:
        return "forming", "the job is started again"
    if state.over is not None:
        return "stopped" if state.over.failed else "complete", state.over.reason
    if world is None:
        return "forming", "no world was formed yet"
    if world.broken is not None:
        return "regrouping", world.broken
    if world.finishing:
        return "finishing", "some ranks have finished"
    ranks = world.ranks.values()
    if world.target is not None and world.restore == "open" and any(rank.asked for rank in ranks) and world.schedule is None:
        return "restoring", f"step {world.target.step}" if world.target.seq is not None else "there is nothing to restore"
    return "training", ""


def _world(now: float, world: World) -> pb.World:
    schedule = world.schedule
    return pb.World(
        generation=to_generation(world.id),
        world_size=world.world_size,
        nodes=sorted(world.members, key=lambda id: world.members[id].node_rank),
        seconds=now - world.formed_seconds,
        furthest_step=world.furthest_step,
        step_seconds=world.median_step_seconds,
        first_snapshot=schedule.first if schedule else 0,
        every_steps=schedule.every if schedule else 0,
        no_snapshots=world.unscheduled or "",
    )


def _node(now: float, state: State, options: CoordinatorOptions, node: Node) -> pb.NodeStatus:
    word, why = _node_state(now, state, options, node)
    world = state.world
    here = ranks_of(world, node.id) if world is not None and not left_world(state, world, node.id) else []
    numbers = [number for number, rank in world.ranks.items() if rank.node == node.id] if world is not None and here else []
    return pb.NodeStatus(
        node=node.id,
        state=word,
        why=why,
        ranks=sorted(numbers),
        step=max((rank.step for rank in here), default=0),
        free_slots=min((rank.free_slots for rank in here), default=0),
        silent_seconds=now - node.last_heard_seconds,
        report=node.report,
    )


def _node_state(now: float, state: State, options: CoordinatorOptions, node: Node) -> tuple[str, str]:
    world, agent = state.world, node.agent
    member = world is not None and node.id in world.members
    if world is not None and node.id in world.lost:
        return "lost", world.lost[node.id]
    if node.left or isinstance(agent, Gone):
        reason = agent.reason if isinstance(agent, Gone) else "its daemon ended"
        return "left", reason
    if silent(now, node, options):
        return ("blind" if member else "silent"), ""
    if isinstance(agent, Joined):
        running = world is not None and not world.broken and not state.over
        return ("spare" if running else "waiting"), ""
    if world is not None and member and not left_world(state, world, node.id):
        return ("regrouping" if world.broken else "alive"), ""
    return ("idle" if agent is None else "regrouping"), ""


def _snapshots(now: float, state: State) -> Iterator[pb.OpenSnapshot]:
    for id, snapshot in sorted(state.snapshots.items()):
        yield pb.OpenSnapshot(
            step=id.step,
            generation=to_generation(id.generation),
            sealed=len(snapshot.sealed),
            uploaded=len(snapshot.uploaded),
            seconds=now - snapshot.since_seconds,
        )
