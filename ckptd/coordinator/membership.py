"""When a generation is broken, over, adopted or formed. Pure; every rule is from PROTOCOLS 5."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ckptd.coordinator.actions import (
    Action,
    Adopt,
    AskRegroup,
    CheckTail,
    CompleteJob,
    Dismiss,
    FormGeneration,
    FormRanks,
    RecallEnd,
    Wait,
)
from ckptd.coordinator.alive import all_finished, left_world, of_ended_run, silent, unheard
from ckptd.coordinator.fruitless import due, pause_seconds, spoiled, spoiled_diagnosis
from ckptd.coordinator.options import CoordinatorOptions
from ckptd.coordinator.state import Claim, Ended, Gone, Joined, LooseRank, MemberOf, Node, State
from ckptd.coordinator.world import World
from ckptd.model.ids import Generation


def decide_broken(state: State) -> Iterator[Action]:
    """Has a member's agent or worker left the running generation?"""
    world = state.world
    if world is None or world.broken or state.over:
        return
    reason = _why_broken(state, world)
    if reason is not None:
        workers = world.source == "rendezvous" and any(map(partial(_came_back, state), world.members))
        yield AskRegroup(tuple(world.members), reason, workers)


def _came_back(state: State, node_id: str) -> bool:
    return node_id in state.nodes and isinstance(state.nodes[node_id].agent, Joined)


def _why_broken(state: State, world: World) -> str | None:
    for number, rank in world.ranks.items():
        if rank.replaced:
            return f"rank {number} was registered again by another process"
        if world.source == "ranks" and rank.gone and not rank.finished:
            return f"rank {number} is gone: {rank.gone}"
    if world.source == "ranks":
        return None
    for id in world.members:
        agent = state.nodes[id].agent if id in state.nodes else None
        if all_finished(world, id):
            continue
        if isinstance(agent, Gone):
            return f"the agent of node {id} {'failed' if agent.failed else 'left'}: {agent.reason or 'no reason given'}"
        if isinstance(agent, Joined):
            said = f": {world.failing[id]}" if id in world.failing else ""
            return f"the workers of node {id} have stopped; its agent joined again{said}"
    return None


def decide_complete(state: State) -> Iterator[Action]:
    """All ranks of one generation finished, or are on nodes that are gone: the job is done, nobody redoes the last steps."""
    world = state.world
    if world is None or state.over or not world.finishing:
        return
    for number in range(world.world_size):
        rank, host = world.ranks.get(number), world.host(number)
        finished = rank is not None and rank.finished
        gone = host is None or left_world(state, world, host) or (world.source == "ranks" and rank is not None and rank.gone)
        if not finished and not gone:
            yield Wait("job", f"some ranks have finished; rank {number} is still at work")
            return
    yield CompleteJob(f"all ranks of generation {world.id} have finished or are gone")


def decide_adoption(now: float, state: State, options: CoordinatorOptions) -> Iterator[Action]:
    """After a restart: go on with the generation that its members report, or end it when not all of them came back."""
    if state.world is not None:
        return
    for generation in sorted(state.claims, reverse=True):
        claim = state.claims[generation]
        claimants = _claimants(state, generation, claim)
        if claimants and _all_there(claimants):
            yield Adopt(generation, None, f"all {len(claimants)} members of generation {generation} are here")
        elif claimants and now - claim.since_seconds >= options.lease_seconds:
            reason = f"the coordinator restarted, and not all members of generation {generation} came back to it"
            yield Adopt(generation, reason, reason)
        elif claimants:
            yield Wait("adoption", f"generation {generation}: {len(claimants)} of {_size(claimants)} members are back")
        elif _ranks_there(now, state, options, claim):
            yield Adopt(generation, None, f"all {claim.world_size} ranks of generation {generation} are here")
        else:
            continue
        return


def decide_recall(now: float, state: State, options: CoordinatorOptions) -> Iterator[Action]:
    """After a restart: with which generation did a run end? Stragglers of it may ask, whoever else is at work by then.

    Ranks of it have finished, so it has no successor, and no agent says to run it. Unless all have finished, a lease must pass:
    an agent whose workers are still at work may be on its way back to us.
    """
    for generation in sorted(state.claims, reverse=True):
        claim = state.claims[generation]
        certain = len(claim.finished) == claim.world_size or now - claim.since_seconds >= options.lease_seconds
        if _ended_unheard(state, generation, claim) and certain:
            yield RecallEnd(generation, f"ranks of generation {generation} have finished, and no agent runs it any more")
            return


def _ended_unheard(state: State, generation: Generation, claim: Claim) -> bool:
    """Have ranks of it finished, of which an agent that comes back may not know? Without agents, all ranks are waited for."""
    known = state.ended is not None and generation <= state.ended.generation
    agents = any(state.nodes[id].agent is not None for id in claim.ranks.values())
    return bool(claim.finished) and agents and not known and not _claimants(state, generation, claim)


def _claimants(state: State, generation: Generation, claim: Claim) -> list[MemberOf]:
    agents = [state.nodes[id].agent for id in claim.members]
    return [agent for agent in agents if isinstance(agent, MemberOf) and agent.generation == generation]


def _size(claimants: list[MemberOf]) -> int:
    return claimants[0].num_nodes


def _all_there(claimants: list[MemberOf]) -> bool:
    sizes = {agent.num_nodes for agent in claimants}
    return sizes == {len(claimants)} and {agent.node_rank for agent in claimants} == set(range(len(claimants)))


def _ranks_there(now: float, state: State, options: CoordinatorOptions, claim: Claim) -> bool:
    """A heartbeat's grace, because the Member that shows it to be a rendezvous generation may be just behind."""
    agents = any(state.nodes[id].agent is not None for id in claim.ranks.values())
    settled = now - claim.since_seconds >= options.heartbeat_seconds
    return not agents and settled and claim.world_size > 0 and set(claim.ranks) == set(range(claim.world_size))


def waiting(now: float, state: State, options: CoordinatorOptions) -> list[tuple[Node, Joined]]:
    """Nodes that could be in the next generation: the last one's in their old order, then by the time they joined.

    Once the job has ended they are those of the next run.
    """
    place = {id: index for index, id in enumerate(state.order)}
    found = [
        (node, node.agent)
        for node in state.nodes.values()
        if isinstance(node.agent, Joined)
        and not of_ended_run(state, node)
        and node.connected
        and node.unconfirmed_seconds is None  # it waited on an earlier stream: does it still?
        and not silent(now, node, options)
    ]
    return sorted(found, key=lambda pair: (place.get(pair[0].id, len(place)), pair[1].since_seconds, pair[0].id))


def decide_forming(now: float, state: State, options: CoordinatorOptions) -> Iterator[Action]:
    """Form the next generation, or say what it waits for."""
    world = state.world
    running = world is not None and not world.broken and not state.over
    if running and world is not None and world.source == "rendezvous":
        yield from _scale_up(now, state, options, world)
        return
    yield from _form_ranks(now, state, options)
    if running:
        return
    joined = waiting(now, state, options)
    if not joined:
        return
    if state.over:
        pass  # what ran has finished, is gone, or was told to stop
    elif world is not None and world.source == "rendezvous":
        if world.finishing:
            yield Wait("generation", "some ranks have finished: no successor is formed")
            return
        missing = [id for id in world.members if not left_world(state, world, id)]
        if missing:
            yield Wait("generation", f"waiting until these stop their workers or are dead: {', '.join(missing)}")
            return
    elif _claimed(state):
        return
    yield from _form(now, state, options, joined, first=world is None or state.over is not None)


def _claimed(state: State) -> bool:
    claims = state.claims.items()
    return any(_ended_unheard(state, id, claim) or _claimants(state, id, claim) for id, claim in claims)


def _form(
    now: float, state: State, options: CoordinatorOptions, joined: list[tuple[Node, Joined]], first: bool
) -> Iterator[Action]:
    least = max(agent.min_nodes for _, agent in joined)
    most = max(least, min(agent.max_nodes for _, agent in joined))
    waited = now - min(agent.since_seconds for _, agent in joined)
    # Survivors of a world that an earlier coordinator formed: its other members, if they live, are back within a lease.
    survivors = any(agent.after for _, agent in joined)
    patience = options.lease_seconds if survivors else options.join_seconds
    if state.over is not None and (why := _nothing_to_begin(state, state.over, joined, least, waited >= options.join_seconds)):
        yield Dismiss(tuple((node.id, agent.agent) for node, agent in joined), why)
    elif len(joined) < least:
        yield Wait("generation", f"{len(joined)} of min {least} nodes")
    elif due(state, options):
        yield Wait("generation", "too many worlds failed in a row: first it is decided what becomes of the job")
    elif now - state.failed_seconds < (pause := pause_seconds(state, options)):
        yield Wait("generation", f"{state.fruitless} worlds in a row failed; the next one {pause:g} s after the last")
    elif first and len(joined) < most and waited < patience:
        whose = "this coordinator's first world" if survivors else "the first world"
        yield Wait("generation", f"{len(joined)} of max {most} nodes; {whose} waits {patience:g} s for all")
    else:
        members = tuple(node.id for node, _ in joined[:most])
        yield from _permitted(now, state, options, FormGeneration(members, f"{len(members)} nodes: {', '.join(members)}"))


def _nothing_to_begin(state: State, over: Ended, joined: list[tuple[Node, Joined]], least: int, long: bool) -> str | None:
    """Why these agents, of which none was there when the job ended, don't begin its next run. ``long``: they had patience."""
    if over.failed and spoiled(state) and over.reason == spoiled_diagnosis(state):
        return "the job is stopped, and nothing has changed since"
    if len(joined) < least and long and over.absent.issuperset(node.id for node, _ in joined):
        return f"the job was completed without them, and they are only {len(joined)} of min {least} nodes"
    return None


def _permitted(now: float, state: State, options: CoordinatorOptions, form: FormGeneration | FormRanks) -> Iterator[Action]:
    """Only who sees that log[tail + 1] is absent may publish a generation."""
    if state.permit_seconds is not None and now - state.permit_seconds <= options.heartbeat_seconds:
        yield form
    elif not state.permit_asked:
        yield CheckTail(form.reason)
    else:
        trouble = f", which does not answer: {state.log_trouble}" if state.log_trouble else ""
        yield Wait("generation", f"asking the store if we are still in office{trouble}")


def _scale_up(now: float, state: State, options: CoordinatorOptions, world: World) -> Iterator[Action]:
    spare = [(node, agent) for node, agent in waiting(now, state, options) if node.id not in world.members]
    if not spare or world.finishing:
        return
    names = ", ".join(node.id for node, _ in spare)
    if len(world.members) >= min(agent.max_nodes for _, agent in spare):
        yield Wait("scale up", f"the world is full; spare: {names}")
        return
    oldest, newest = min(agent.since_seconds for _, agent in spare), max(agent.since_seconds for _, agent in spare)
    if world.last_commit_seconds is None or world.last_commit_seconds <= oldest:
        yield Wait("scale up", f"after the next commit these are taken in: {names}")
    elif now - newest < options.debounce_seconds:
        yield Wait("scale up", f"{options.debounce_seconds:g} s after the last newcomer these are taken in: {names}")
    else:
        yield AskRegroup(tuple(world.members), f"scale up: {names}")


def _form_ranks(now: float, state: State, options: CoordinatorOptions) -> Iterator[Action]:
    """All W ranks of one master address have registered: they are a world, unless another one is at work."""
    for (key, size), ranks in state.loose.items():
        there = [rank for rank in ranks.values() if _present(now, state, options, rank)]
        if len(there) < size:
            yield Wait(f"world {key}", f"{len(there)} of {size} ranks have registered")
            continue
        busy = _busy(state)
        if busy:
            yield Wait(f"world {key}", busy)
            continue
        yield from _permitted(now, state, options, FormRanks(key, size, f"all {size} ranks of {key} have registered"))
        return


def _present(now: float, state: State, options: CoordinatorOptions, rank: LooseRank) -> bool:
    node = state.nodes[rank.node]
    if isinstance(node.agent, Joined | MemberOf):
        return False  # a worker of our own rendezvous, whose agent has not said yet which world it is of
    return node.connected and not unheard(now, node, options)


def _busy(state: State) -> str | None:
    world = state.world
    if world is None or world.broken or state.over:
        return None
    if all(left_world(state, world, id) for id in world.members):
        return None
    return f"another world of this job is at work: generation {world.id}"
