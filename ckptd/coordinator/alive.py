"""Who is heard, who has left, who is dead (PROTOCOLS 5: a silent daemon is not a dead node). Pure."""

from __future__ import annotations

from collections.abc import Iterator

from ckptd.coordinator.actions import Action, DeclareDead, Wait
from ckptd.coordinator.options import CoordinatorOptions
from ckptd.coordinator.state import Gone, Joined, MemberOf, Node, Rank, State, World


def silent(now: float, node: Node, options: CoordinatorOptions) -> bool:
    """Is its lease over? Also when its new daemon has not found the agent that the old one had."""
    unheard = now - node.last_heard_seconds >= options.lease_seconds
    orphaned = node.unconfirmed_seconds is not None and now - node.unconfirmed_seconds >= options.lease_seconds
    return node.left or unheard or orphaned


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
        quiet = now - state.nodes[node_id].last_heard_seconds
        if broke:
            yield DeclareDead(node_id, f"node {node_id} is silent for {quiet:.1f} s, and the generation is broken: {broke}")
        elif stalled and heard:
            yield DeclareDead(node_id, f"node {node_id} is silent for {quiet:.1f} s, and no rank advanced for {patience:.1f} s")
        else:
            yield Wait(f"node {node_id}", f"node {node_id} is blind: it is silent, but training goes on; snapshots pause")
