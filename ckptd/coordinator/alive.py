"""Who is heard, who has left, who is dead (PROTOCOLS 5: a silent daemon is not a dead node). Pure."""

from __future__ import annotations

from collections.abc import Iterator

from ckptd.coordinator.actions import Action, DeclareDead, Revive, Wait
from ckptd.coordinator.options import CoordinatorOptions
from ckptd.coordinator.state import Gone, Joined, MemberOf, Node, State
from ckptd.coordinator.world import Rank, World
from ckptd.model.ids import NO_GENERATION, Generation


def silent(now: float, node: Node, options: CoordinatorOptions) -> bool:
    """Is its lease over? Also when its new daemon has not found the agent or the trainers that the old one had."""
    orphaned = node.unconfirmed_seconds is not None and now - node.unconfirmed_seconds >= options.lease_seconds
    return node.left or unheard(now, node, options) or orphaned


def unheard(now: float, node: Node, options: CoordinatorOptions) -> bool:
    """Has its daemon said nothing for a lease?"""
    return now - node.last_heard_seconds >= options.lease_seconds


def left_world(state: State, world: World, node_id: str) -> bool:
    """Has this member nothing running in ``world`` any more, for certain or by our declaration?"""
    node = state.nodes.get(node_id)
    if node is None or node_id in world.lost or node.left:
        return True
    if world.source == "ranks":
        return all(rank.gone or rank.finished for rank in world.ranks.values() if rank.node == node_id)
    if isinstance(node.agent, Joined):
        return node.connected
    return isinstance(node.agent, Gone) or (isinstance(node.agent, MemberOf) and node.agent.generation > world.id)


def of_ended_run(state: State, node: Node) -> bool:
    """Is the node's living agent of the run that ended last, and not of the one after it?

    Generations only go up, and an agent lives for one run: so the last generation that it was in tells. Who was in none is of
    the next run, unless it waited when that one ended.
    """
    ended, agent, last = state.ended, node.agent, last_generation(node)
    if ended is None or agent is None or last is None:
        return False
    return NO_GENERATION < last <= ended.generation or (node.id, agent.agent) in ended.agents


def last_generation(node: Node) -> Generation | None:
    """The last one that the node's living agent was in, NO_GENERATION for none; None: there is no agent."""
    if isinstance(node.agent, Joined):
        return node.agent.after
    return node.agent.generation if isinstance(node.agent, MemberOf) else None


def ranks_of(world: World, node_id: str) -> list[Rank]:
    """The known ranks on one node."""
    return [rank for rank in world.ranks.values() if rank.node == node_id]


def all_finished(world: World, node_id: str) -> bool:
    """Have all ranks of the node finished? So what it does now breaks nothing."""
    ranks = ranks_of(world, node_id)
    return len(ranks) == world.members[node_id].local_world_size and all(rank.finished for rank in ranks)


def blind_nodes(now: float, state: State, options: CoordinatorOptions) -> list[str]:
    """Members of the current generation that are silent, but not dead."""
    world = state.world
    if world is None:
        return []
    return [id for id in world.members if not left_world(state, world, id) and silent(now, state.nodes[id], options)]


def decide_revival(now: float, state: State, options: CoordinatorOptions) -> Iterator[Action]:
    """A world without our rendezvous can't be formed anew by us: if those called dead come back to it, it goes on.

    (Under a rendezvous the others have been asked to regroup by then.)
    """
    world = state.world
    if world is None or world.source != "ranks" or not world.lost or state.over or not world.whole:
        return
    if world.restore == "failed" or any(rank.gone or rank.replaced or not rank.up for rank in world.ranks.values()):
        return
    if all(
        id in state.nodes and state.nodes[id].connected and not silent(now, state.nodes[id], options) for id in world.members
    ):
        yield Revive(f"{', '.join(world.lost)} came back with all trainers")


def decide_dead(now: float, state: State, options: CoordinatorOptions) -> Iterator[Action]:
    """A silent member is dead only if the world shows that it is: something broke, or nobody advances."""
    world = state.world
    if world is None:
        return
    blind = blind_nodes(now, state, options)
    if not blind:
        return
    broke = world.broken or next((rank.gone for rank in world.ranks.values() if rank.gone and not rank.finished), None)
    patience = max(options.lease_seconds, 2 * world.median_step_seconds)
    stalled = now - world.last_progress_seconds >= patience
    # With nobody left to hear from, standstill proves nothing: it may be we who are cut off.
    heard = any(node.connected and not silent(now, node, options) for node in state.nodes.values())
    for node_id in blind:
        how = _how_silent(now, state.nodes[node_id], options)
        if broke:
            yield DeclareDead(node_id, f"{how}, and the generation is broken: {broke}")
        elif stalled and heard:
            yield DeclareDead(node_id, f"{how}, and no rank advanced for {patience:.1f} s")
        else:
            yield Wait(f"node {node_id}", f"node {node_id} is blind: it is silent, but training goes on; snapshots pause")


def _how_silent(now: float, node: Node, options: CoordinatorOptions) -> str:
    if node.left or unheard(now, node, options) or node.unconfirmed_seconds is None:
        return f"node {node.id} is silent for {now - node.last_heard_seconds:.1f} s"
    return f"the new daemon of node {node.id} has not heard of its workers for {now - node.unconfirmed_seconds:.1f} s"
