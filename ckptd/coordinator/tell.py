"""What one node should know now, as messages with keys. Pure.

The engine sends whatever is not yet in ``node.told``, and forgets ``told`` when the node reconnects. So nothing is lost with a
stream, and there is no second path for repeating things.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from ckptd.coordinator.alive import of_ended_run, ranks_of
from ckptd.coordinator.convert import to_attempt, to_generation, to_snapshot
from ckptd.coordinator.state import Ended, Joined, MemberOf, Node, Outcome, State
from ckptd.coordinator.world import Schedule, Target, World
from ckptd.model.ids import Attempt
from ckptd.rpc.v1 import coordinator_pb2 as pb

Told = tuple[object, ...]
Make = Callable[[], pb.ToNode]

_FORMING = ("generation", "scale up", "adoption")  # what keeps a waiting agent from its next world


def messages_for(state: State, node: Node, waits: Mapping[str, str]) -> Iterator[tuple[Told, Make]]:
    """Everything that holds and concerns ``node``, in the order in which it must hear it; made when it is sent.

    ``waits``: by topic, what nothing can be done about yet, and why.
    """
    world = state.world
    yield ("bases", state.bases), lambda: pb.ToNode(bases=pb.Bases(seqs=state.bases))
    for attempt, outcome in state.outcomes.items():
        yield ("outcome", attempt), partial(_outcome, attempt, outcome)
    if state.release is not None:
        release = pb.Release(before=to_snapshot(state.release))
        yield ("release", state.release), lambda: pb.ToNode(release=release)
    if world is not None and node.id in world.members:
        yield from _of_world(world, node)
    if state.ended is not None and (of_ended_run(state, node) or (state.over and node.agent is None)):
        agent = "" if node.agent is None else node.agent.agent
        yield ("complete", state.ended.generation, agent), partial(_complete, state.ended, agent)
    else:
        if world is not None:
            yield from _regroup(world, node)
        reason = next((waits[topic] for topic in _FORMING if topic in waits), None)
        if isinstance(node.agent, Joined) and reason is not None:
            yield ("waiting", reason), lambda: pb.ToNode(waiting=pb.Waiting(reason=reason))


def _complete(ended: Ended, agent: str) -> pb.ToNode:
    return pb.ToNode(complete=pb.Complete(reason=ended.reason, failed=ended.failed, agent=agent))


def _outcome(attempt: Attempt, outcome: Outcome) -> pb.ToNode:
    if outcome.seq is not None:
        return pb.ToNode(committed=pb.Committed(attempt=to_attempt(attempt), seq=outcome.seq))
    return pb.ToNode(aborted=pb.Aborted(attempt=to_attempt(attempt), reason=outcome.reason))


def _of_world(world: World, node: Node) -> Iterator[tuple[Told, Make]]:
    ranks = ranks_of(world, node.id)
    agent = node.agent
    awaits = isinstance(agent, MemberOf) and agent.generation == world.id and not agent.acknowledged
    unbound = world.source == "ranks" and any(rank.up and not rank.bound for rank in ranks)
    if (awaits or unbound) and not world.broken:
        yield ("formed", world.id), partial(_formed, world, node)
    restoring = any(rank.asked for rank in ranks)
    if restoring and world.target is not None and world.restore != "failed":
        yield ("target", world.id), partial(_target, world, world.target)
    if world.schedule is not None:
        yield ("schedule", world.id, world.schedule), partial(_schedule, world, world.schedule)
    if restoring and world.restore == "go":
        yield ("go", world.id), lambda: pb.ToNode(restore_go=pb.RestoreGo(generation=to_generation(world.id)))
    if world.restore == "failed":
        yield ("failed", world.id), partial(_failed, world)


def _formed(world: World, node: Node) -> pb.ToNode:
    return pb.ToNode(
        formed=pb.Formed(
            generation=to_generation(world.id),
            node_rank=world.members[node.id].node_rank,
            num_nodes=len(world.members),
            world_size=world.world_size,
            world_key=world.world_key,
        )
    )


def _target(world: World, target: Target) -> pb.ToNode:
    seq_plus_one = 0 if target.seq is None else target.seq + 1
    message = pb.RestoreTarget(
        generation=to_generation(world.id),
        seq_plus_one=seq_plus_one,
        step=target.step,
        manifest=target.manifest,
        loss=world.restore_loss,
    )
    return pb.ToNode(restore_target=message)


def _schedule(world: World, schedule: Schedule) -> pb.ToNode:
    return pb.ToNode(schedule=pb.Schedule(generation=to_generation(world.id), first=schedule.first, every=schedule.every))


def _failed(world: World) -> pb.ToNode:
    return pb.ToNode(restore_failed=pb.RestoreFailed(generation=to_generation(world.id), reason=world.restore_failure))


def _regroup(world: World, node: Node) -> Iterator[tuple[Told, Make]]:
    agent = node.agent
    if not isinstance(agent, MemberOf):
        return
    if agent.generation != world.id or world.broken or node.id not in world.members:
        reason = (world.broken if agent.generation == world.id else None) or f"generation {world.id} was formed"
        regroup = pb.Regroup(generation=to_generation(agent.generation), reason=reason)
        yield ("regroup", agent.generation), lambda: pb.ToNode(regroup=regroup)
