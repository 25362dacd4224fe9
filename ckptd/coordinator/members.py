"""What nodes say about their agents and unformed worlds: joins, memberships, claims of an earlier coordinator's generation."""

from __future__ import annotations

from dataclasses import replace

import structlog

from ckptd.coordinator.alive import of_ended_run
from ckptd.coordinator.convert import generation_of, rank_of, reason_of, text_of
from ckptd.coordinator.state import Claim, Gone, Joined, MemberOf, Node, State
from ckptd.errors import ProtocolError
from ckptd.model.ids import Generation
from ckptd.rpc.v1 import coordinator_pb2 as pb

_log = structlog.get_logger(__name__)


def join(state: State, node: Node, message: pb.Join, now: float) -> None:
    """The agent waits. If we just made it a member and it hasn't said so, our Formed crossed this or was lost: again."""
    if not 0 < message.local_world_size <= rank_of(message.local_world_size):
        raise ProtocolError(f"a node of {message.local_world_size} ranks can't be")
    if not 0 < message.min_nodes <= message.max_nodes:
        raise ProtocolError(f"min_nodes={message.min_nodes} max_nodes={message.max_nodes} can't be")
    node.unconfirmed_seconds = None
    agent = node.agent
    running = state.world is not None and not state.world.broken and not state.over
    if (
        isinstance(agent, MemberOf)
        and agent.agent == message.agent
        and not agent.acknowledged
        and running
        and state.world is not None
        and agent.generation == state.world.id
    ):
        node.told = {key for key in node.told if key[0] != "formed"}
        return
    world = state.world
    if message.failure and world is not None and node.id in world.members and generation_of(message.after) == world.id:
        world.failing.setdefault(node.id, reason_of(message.failure))
    node.told = {key for key in node.told if key[0] != "complete"}
    since = agent.since_seconds if isinstance(agent, Joined) and agent.agent == message.agent else now
    size, least, most = message.local_world_size, message.min_nodes, message.max_nodes
    node.agent = Joined(text_of(message.agent), size, least, most, since, generation_of(message.after))
    if state.over and not of_ended_run(state, node):
        _log.warning("somebody starts the job again", node=node.id)
        state.begin_anew()


def member(state: State, node: Node, message: pb.Member, now: float) -> None:
    """The agent runs workers: of the current generation, of one that we may adopt, or it must regroup."""
    generation = generation_of(message.generation)
    if not generation or not message.node_rank < message.num_nodes <= rank_of(message.num_nodes):
        raise ProtocolError(f"not a member's place: node_rank={message.node_rank} num_nodes={message.num_nodes}")
    if not 0 < message.local_world_size <= rank_of(message.local_world_size):
        raise ProtocolError(f"a node of {message.local_world_size} ranks can't be")
    node.unconfirmed_seconds = None
    node.agent = MemberOf(
        text_of(message.agent),
        generation,
        message.node_rank,
        message.num_nodes,
        message.local_world_size,
        message.min_nodes,
        message.max_nodes,
        acknowledged=True,
    )
    node.told = {key for key in node.told if key[0] != "regroup"}
    if state.world is None:
        _claim(state, generation, now).members.add(node.id)


def agent_gone(state: State, node: Node, message: pb.AgentGone) -> None:
    """The agent has ended; a late word about an earlier agent says nothing about the present one."""
    if state.ended is not None:  # some kernels give its name to another process later
        state.ended = replace(state.ended, agents=state.ended.agents - {(node.id, message.agent)})
    if node.agent is None or node.agent.agent == message.agent:
        node.agent = Gone(text_of(message.agent), message.failed, reason_of(message.reason))
        node.unconfirmed_seconds = None


def acknowledge(state: State, node_id: str, generation: Generation) -> None:
    """Ranks of ``generation`` run there, so its Formed did arrive."""
    agent = state.nodes[node_id].agent
    if isinstance(agent, MemberOf) and agent.generation == generation:
        state.nodes[node_id].agent = replace(agent, acknowledged=True)


def claim_rank(state: State, node_id: str, generation: Generation, up: pb.RankUp, now: float) -> None:
    """While there is no world, remember who says to be of an earlier coordinator's."""
    if state.world is None:
        claim = _claim(state, generation, now)
        claim.ranks[up.rank] = node_id
        claim.world_key, claim.world_size = up.world_key, up.world_size


def claim_finished(state: State, generation: Generation, number: int, now: float) -> None:
    """While there is no world, remember which ranks of an earlier coordinator's have finished: it has no successor."""
    if state.world is None:
        _claim(state, generation, now).finished.add(number)


def _claim(state: State, generation: Generation, now: float) -> Claim:
    return state.claims.setdefault(generation, Claim(now))


def loose_ask(state: State, node_id: str, number: int) -> None:
    """A rank whose world is not formed wants to restore."""
    for ranks in state.loose.values():
        if number in ranks and ranks[number].node == node_id:
            ranks[number].asked = True
    world = state.world
    if world is not None and world.source == "ranks" and number in world.ranks and world.ranks[number].node == node_id:
        world.ranks[number].asked = True


def forget_process(state: State, key: tuple[str, int], number: int, process: str) -> None:
    """This process is no longer waiting for its world."""
    ranks = state.loose.get(key, {})
    if number in ranks and ranks[number].process == process:
        del ranks[number]
    if not ranks:
        state.loose.pop(key, None)


def forget_loose(state: State, node_id: str) -> None:
    """All waiting trainers of a node: it left, or is another daemon now and will repeat what still holds."""
    for key, ranks in list(state.loose.items()):
        for number in [number for number, rank in ranks.items() if rank.node == node_id]:
            del ranks[number]
        if not ranks:
            del state.loose[key]
