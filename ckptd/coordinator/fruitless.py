"""Worlds that fail again and again: pauses between them, one step back, then the end with a diagnosis (PROTOCOLS 5). Pure.

A world counts when workers failed in it and nobody was lost: each of its agents came back by itself, and it was not we who
asked first. Lost nodes, scale-ups, restarts of a coordinator and checkpoints that were quarantined count for nothing: a fleet
of spot nodes that loses some all day is in order. Every commit starts the count anew.

Stepping back is a try: the commit that is stepped over stays what it is until the world that did without it has a commit of
its own. Only then it is quarantined, together with that commit. So a script with a fault costs no checkpoint
(docs/decisions/0006).
"""

from __future__ import annotations

from collections.abc import Iterator

from ckptd.coordinator.actions import Action, AskRegroup, CountWorld, StepBack, StopJob, Wait
from ckptd.coordinator.alive import left_world
from ckptd.coordinator.options import CoordinatorOptions
from ckptd.coordinator.state import Joined, State
from ckptd.coordinator.world import Failure, Target, World

_FREE_TRIES = 2  # failures after which the next world is formed at once: one bad node, one bad moment
_CAUSES = 4
_CAUSE_CHARACTERS = 600


def decide_fruitless(state: State, options: CoordinatorOptions) -> Iterator[Action]:
    """Count a world that is over; after so many, step back or stop."""
    world = state.world
    if world is None or state.over:
        return
    if not world.broken:
        yield from _lost_thread(state, world)
        return
    if world.source == "rendezvous" and not world.counted and not world.finishing and _over(state, world):
        yield CountWorld(_failure(state, world))
    elif spoiled(state) and world.restore == "failed":
        yield StopJob(spoiled_diagnosis(state))
    elif due(state, options):
        over = steppable(state)
        if state.snapshots or state.log_busy:
            yield Wait("failures", "first the open attempts are committed or aborted")
        elif over is not None:
            yield StepBack(over, f"{state.fruitless} worlds in a row failed without a new checkpoint; {_causes(state)}")
        else:
            yield StopJob(diagnosis(state))


def due(state: State, options: CoordinatorOptions) -> bool:
    """Is it time to step back or to stop, so that nothing may be formed first?"""
    limit = options.fruitless_generations
    return state.fruitless >= (limit if steppable(state) is not None or state.stepped_over is None else 2 * limit)


def steppable(state: State) -> int | None:
    """The commit that could be stepped over now: the newest, if there is one before it; once, until there is a new one."""
    seq = state.candidate.seq
    return None if state.previous.seq is None or state.stepped_over is not None else seq


def offered(state: State) -> Target:
    """What a new world restores: the newest commit, or the one before while that is stepped over."""
    stepped = state.stepped_over is not None and state.stepped_over == state.candidate.seq
    return state.previous if stepped and state.previous.seq is not None else state.candidate


def spoiled(state: State) -> bool:
    """Were there checkpoints, of which none is left that is good? Then nobody starts at step 0 in silence."""
    return state.candidate.seq is None and bool(state.bad)


def spoiled_diagnosis(state: State) -> str:
    """What to tell people then."""
    return (
        f"the job is stopped: every checkpoint that it had is quarantined ({_names(state.bad)}), and it must not start at step"
        " 0 unasked. `ckptd verify --all` names what is damaged; bring those objects back under another job id, or start from"
        " scratch under another one"
    )


def loss(state: State, target: Target) -> str:
    """What is lost by restoring ``target``, in words; empty when nothing is (I8)."""
    newer = [*state.bad, *([state.candidate] if state.candidate != target else [])]
    if not newer or target.seq is None:
        return ""
    furthest = max(other.step for other in newer)
    why = [f"{_names(state.bad)} quarantined"] if state.bad else []
    if state.candidate != target:
        why.append(f"{_names((state.candidate,))} stepped over, because {state.fruitless} worlds failed after restoring it")
    lost = f"{furthest - target.step} steps are lost" if furthest > target.step else "an attempt at the same steps is lost"
    return f"{lost}: going on from step {target.step} (record {target.seq}); {', '.join(why)}"


def pause_seconds(state: State, options: CoordinatorOptions) -> float:
    """How long the next world waits after the last one failed: 0, 0, 1, 2, 4 … seconds."""
    tries = state.fruitless - _FREE_TRIES
    return 0.0 if tries <= 0 else min(2.0 ** min(tries - 1, 30), options.backoff_seconds)


def diagnosis(state: State) -> str:
    """Why the job ends, for its people: which rank failed first, and how, each time."""
    stepped = ""
    if state.stepped_over is not None and state.stepped_over == state.candidate.seq:
        stepped = f", also from the checkpoint before the last one (step {state.previous.step})"
    start = state.candidate
    then = "at step 0" if start.seq is None else f"from step {start.step} (record {start.seq})"
    return (
        f"the job is stopped: {state.fruitless} worlds in a row failed without a new checkpoint{stepped}. {_causes(state)}."
        f" Mend the cause and start the job again: it goes on {then}, nothing is lost"
    )


def _causes(state: State) -> str:
    """The last few different causes, newest last."""
    causes: dict[str, list[Failure]] = {}
    for failure in state.failures:
        causes.setdefault(failure.what, []).append(failure)
    latest = sorted(causes.items(), key=lambda item: item[1][-1].generation)[-_CAUSES:]
    told = (
        f"{len(found)} × {what[:_CAUSE_CHARACTERS]} (last in generation {found[-1].generation}, from step {found[-1].step})"
        for what, found in latest
    )
    return "what failed first: " + "; ".join(told)


def _names(targets: tuple[Target, ...]) -> str:
    more = f" and {len(targets) - 5} more" if len(targets) > 5 else ""
    return ", ".join(f"record {target.seq} of step {target.step}" for target in targets[:5]) + more


def _over(state: State, world: World) -> bool:
    return all(left_world(state, world, id) for id in world.members)


def _failure(state: State, world: World) -> Failure | None:
    """How it failed, if it counts."""
    agents = [state.nodes[id].agent if id in state.nodes else None for id in world.members]
    by_itself = all(isinstance(agent, Joined) for agent in agents)
    refused = any(rank.report is not None and rank.report.error for rank in world.ranks.values())
    if world.lost or world.spoilt or not by_itself or not (world.workers_failed or refused):
        return None
    what = world.restore_failure if refused and world.restore == "failed" else ""
    if not what and world.failing:
        node, words = next(iter(world.failing.items()))
        what = f"node {node}: {words}"
    step = world.target.step if world.target is not None else 0
    return Failure(world.id, max(step, world.furthest_step), what or "workers ended; their agent did not say how")


def _lost_thread(state: State, world: World) -> Iterator[Action]:
    """An earlier coordinator's step back, of which the log says nothing: that world's snapshots could not be committed."""
    adopted = world.source == "rendezvous" and world.id.epoch != state.epoch
    if not adopted or state.candidate_generation == world.id or state.previous.seq is None:
        return
    if len(world.ranks) == world.world_size and {rank.base_seq for rank in world.ranks.values()} == {state.previous.seq + 1}:
        yield AskRegroup(
            tuple(world.members), "it restored the checkpoint before the last one, by an earlier coordinator's word"
        )
