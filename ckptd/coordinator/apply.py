"""Messages of nodes change what is known. Nothing is decided here, and nothing is sent (PROTOCOLS 5).

Every message may come again, late, or about a generation that is no more: a repeated one changes nothing, a stale one
is ignored with a debug line, and one about a generation that may yet be adopted is held until that is settled. Raises
ProtocolError for what no daemon of ours would send; the caller then ends that stream.
"""

from __future__ import annotations

import structlog

from ckptd.coordinator import members, snapshots
from ckptd.coordinator.convert import attempt_of, generation_of, rank_of, reason_of, report_of, text_of
from ckptd.coordinator.state import Joined, LooseRank, MemberOf, Node, State
from ckptd.coordinator.world import Rank, Report, World
from ckptd.errors import ProtocolError
from ckptd.model.ids import Generation
from ckptd.rpc.v1 import coordinator_pb2 as pb

_log = structlog.get_logger(__name__)


def attach(state: State, node: str, incarnation: str, now: float) -> None:
    """A daemon has (re)connected. It will repeat its facts; what it was told before may be lost, so all is told anew."""
    known = state.nodes.get(node)
    if known is None:
        state.nodes[node] = Node(node, incarnation, True, now)
        return
    if known.incarnation != incarnation:
        members.forget_loose(state, node)
    known.incarnation, known.connected, known.last_heard_seconds, known.left = incarnation, True, now, False
    known.attached_seconds = now
    agent_expected = isinstance(known.agent, Joined | MemberOf)
    known.unconfirmed_seconds = now if _expects_ranks(state, node) or agent_expected else None
    known.told.clear()
    # What was held from its last stream comes again on this one.
    held = [entry for entry in state.held if entry[0] != node]
    state.held.clear()
    state.held.extend(held)


def _expects_ranks(state: State, node: str) -> bool:
    """Without an agent it is the trainers who must say again that they are there, or they died with their daemon."""
    world = state.world
    if world is None or world.source != "ranks":
        return False
    expected = [rank for rank in world.ranks.values() if rank.node == node and not rank.gone and not rank.finished]
    for rank in expected:
        rank.up = False
    return bool(expected)


def detach(state: State, node: str) -> None:
    """The stream has ended. That alone says nothing: the node is silent from now on."""
    if node in state.nodes:
        state.nodes[node].connected = False


def apply(state: State, node_id: str, message: pb.FromNode, now: float) -> None:
    """Apply one message of an attached node (Hello and the Kv messages are not for here)."""
    node = state.nodes[node_id]
    node.last_heard_seconds = now
    match message.WhichOneof("body"):
        case "heartbeat":
            for status in message.heartbeat.ranks:
                _status(state, node_id, status, now)
            node.report = report_of(message.heartbeat.report)
        case "join":
            members.join(state, node, message.join, now)
        case "member":
            members.member(state, node, message.member, now)
        case "agent_gone":
            members.agent_gone(state, node, message.agent_gone)
        case "goodbye":
            node.left = True
            members.forget_loose(state, node_id)
        case "rank_up":
            _rank_up(state, node_id, message, now)
        case "rank_gone":
            _rank_gone(state, node_id, message)
        case "restore_ask" | "restore_report" | "finished":
            _rank_fact(state, node_id, message, now)
        case "sealed" | "missed" | "uploaded":
            _snapshot_fact(state, node_id, message, now)
        case other:
            raise ProtocolError(f"a message out of turn: {other}")


def replay_held(state: State, now: float) -> None:
    """The generation is settled: apply what was held for it."""
    held = list(state.held)
    state.held.clear()
    for node_id, message in held:
        if isinstance(message, pb.FromNode) and node_id in state.nodes:
            heard = state.nodes[node_id].last_heard_seconds
            apply(state, node_id, message, now)
            state.nodes[node_id].last_heard_seconds = heard


def _world_of(state: State, generation: Generation, node_id: str, message: pb.FromNode | None) -> World | None:
    """The current world, if the message is about it; else it is held or dropped."""
    world = state.world
    if world is not None and world.id == generation:
        return world
    if world is None and message is not None:
        state.held.append((node_id, message))
    elif message is not None:
        _log.debug("stale message ignored", node=node_id, kind=message.WhichOneof("body"), generation=str(generation))
    return None


def _rank(world: World, node_id: str, number: int) -> Rank | None:
    """The rank, made known by whatever message names it first; None when another node runs it."""
    if number >= world.world_size and world.whole:
        raise ProtocolError(f"rank {number} in a world of {world.world_size} generation={world.id}")
    host = world.host(number) if world.whole else node_id
    if host != node_id:
        _log.warning("a node speaks for a rank of another", node=node_id, rank=number, host=host, generation=str(world.id))
        return None
    return world.ranks.setdefault(number, Rank(node_id))


def _status(state: State, node_id: str, status: pb.RankStatus, now: float) -> None:
    world = _world_of(state, generation_of(status.generation), node_id, None)
    rank = None if world is None else _rank(world, node_id, rank_of(status.rank))
    if world is None or rank is None:
        return
    rank.counted, rank.free_slots = True, status.free_slots
    if status.step <= rank.step:
        return
    rank.step = status.step
    world.last_progress_seconds = now
    if status.step > world.furthest_step:
        if world.furthest_seconds is not None:
            world.step_seconds.append((now - world.furthest_seconds) / (status.step - world.furthest_step))
        world.furthest_step, world.furthest_seconds = status.step, now


def _rank_up(state: State, node_id: str, message: pb.FromNode, now: float) -> None:
    up = message.rank_up
    generation, number, key = generation_of(up.generation), rank_of(up.rank), text_of(up.world_key)
    current = state.world
    if not generation or (current is not None and current.source == "ranks" and _is_newcomer(current, generation, up)):
        _register(state, node_id, up, now)
        return
    members.forget_process(state, (key, up.world_size), number, up.process)
    members.claim_rank(state, node_id, generation, up, now)
    world = _world_of(state, generation, node_id, message)
    rank = None if world is None else _rank(world, node_id, number)
    if world is None or rank is None:
        return
    if rank.process and rank.process != text_of(up.process):
        rank.replaced = not rank.finished
        return
    rank.process, rank.up, rank.bound = up.process, True, True
    rank.base_seq, rank.ready = up.base_seq, rank.ready or up.ready
    members.acknowledge(state, node_id, generation)
    if world.source == "ranks" and all(rank.up or rank.gone for rank in world.ranks.values() if rank.node == node_id):
        state.nodes[node_id].unconfirmed_seconds = None


def _is_newcomer(world: World, generation: Generation, up: pb.RankUp) -> bool:
    """Its daemon knows the master address from an earlier world, but not that this process stands for a new one."""
    rank = world.ranks.get(up.rank)
    same = (world.world_key, world.world_size) == (up.world_key, up.world_size)
    return same and generation <= world.id and (rank is None or rank.process not in ("", up.process) or generation < world.id)


def _register(state: State, node_id: str, up: pb.RankUp, now: float) -> None:
    """A trainer without our rendezvous. Its daemon repeats this until it has heard Formed: look in the world first."""
    world, number, key = state.world, up.rank, (up.world_key, up.world_size)
    if not 0 < up.world_size <= rank_of(up.world_size) or number >= up.world_size:
        raise ProtocolError(f"rank {number} of {up.world_size} can't be")
    if world is not None and world.source == "ranks" and (world.world_key, world.world_size) == key:
        rank = world.ranks[number]
        if rank.process == up.process:
            rank.base_seq, rank.ready = up.base_seq, rank.ready or up.ready
            return
        rank.replaced = not rank.finished
    loose = state.loose.setdefault(key, {}).get(number)
    if loose is not None and (loose.node, loose.process) == (node_id, up.process):
        loose.base_seq, loose.ready = up.base_seq, loose.ready or up.ready
        return
    fresh = LooseRank(node_id, text_of(up.process), up.base_seq, up.ready, False, now)
    state.loose[key][number] = fresh


def _rank_gone(state: State, node_id: str, message: pb.FromNode) -> None:
    gone = message.rank_gone
    generation, number = generation_of(gone.generation), rank_of(gone.rank)
    for key in [key for key in state.loose if key[0] == gone.world_key]:
        members.forget_process(state, key, number, gone.process)
    if not generation:
        world = state.world
        if world is None or world.source != "ranks" or world.world_key != gone.world_key:
            return
    else:
        world = _world_of(state, generation, node_id, message)
    rank = None if world is None else _rank(world, node_id, number)
    if rank is not None and (not rank.process or rank.process == gone.process):
        rank.gone = rank.gone or reason_of(gone.reason) or "its process ended"


def _rank_fact(state: State, node_id: str, message: pb.FromNode, now: float) -> None:
    kind = message.WhichOneof("body")
    fact: pb.RestoreAsk | pb.RestoreReport | pb.Finished = message.finished
    if kind != "finished":
        fact = message.restore_ask if kind == "restore_ask" else message.restore_report
    generation, number = generation_of(fact.generation), rank_of(fact.rank)
    if not generation:
        if kind == "restore_ask":
            members.loose_ask(state, node_id, number)
        return
    if kind == "finished":
        members.claim_finished(state, generation, number, now)
    world = _world_of(state, generation, node_id, message)
    rank = None if world is None else _rank(world, node_id, number)
    if world is None or rank is None:
        return
    if isinstance(fact, pb.RestoreAsk):
        rank.asked = True
    elif isinstance(fact, pb.RestoreReport):
        rank.asked = True
        rank.report = rank.report or Report(reason_of(fact.error), fact.corrupt)
        world.reported_seconds = now if world.reported_seconds is None else world.reported_seconds
    else:
        rank.finished = True


def _snapshot_fact(state: State, node_id: str, message: pb.FromNode, now: float) -> None:
    match message.WhichOneof("body"):
        case "sealed":
            attempt, ranks = attempt_of(message.sealed.attempt), [message.sealed.rank]
        case "missed":
            attempt, ranks = attempt_of(message.missed.attempt), [message.missed.rank]
        case _:
            attempt, ranks = attempt_of(message.uploaded.attempt), list(message.uploaded.ranks)
    if state.world is None:
        state.held.append((node_id, message))
        return
    snapshot = snapshots.find(state, attempt, now)
    if snapshot is None:
        state.nodes[node_id].told = {key for key in state.nodes[node_id].told if key[:2] != ("outcome", attempt)}
        return
    if snapshot.world is not None and not all(_hosts(snapshot.world, node_id, rank_of(rank)) for rank in ranks):
        _log.warning("a node speaks for ranks of another", node=node_id, ranks=ranks[:20], attempt=str(attempt))
        return
    if message.HasField("missed"):
        snapshot.missed = snapshot.missed or f"rank {ranks[0]}: {reason_of(message.missed.reason)}"
        return
    snapshot.sealed.update(ranks)
    if message.HasField("uploaded"):
        snapshot.parts[node_id] = (frozenset(ranks), message.uploaded.part)


def _hosts(world: World, node_id: str, rank: int) -> bool:
    return rank < world.world_size and (world.host(rank) == node_id)
