"""One thing to restore for all ranks of a generation, and one answer to all of them (I5). Pure (PROTOCOLS 4.4 and 5)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from ckptd.coordinator.actions import Action, FailRestore, NameRestore, PinRestore, RestoreGo, Wait
from ckptd.coordinator.fruitless import loss, offered, spoiled, spoiled_diagnosis
from ckptd.coordinator.options import CoordinatorOptions
from ckptd.coordinator.state import State
from ckptd.coordinator.world import Rank, Target, World
from ckptd.model.ids import Generation

_HOLDER: Final = re.compile(r"restore-(\d{1,10})-\d{1,10}-\d{1,10}")


def holder_of(epoch: int, generation: Generation) -> str:
    """In whose name the office of ``epoch`` pins what a generation restores. No other pin may have such a name."""
    return f"restore-{epoch}-{generation}"


def epoch_of_holder(who: str) -> int | None:
    """Whose restore's pin is it? None: no restore's."""
    found = _HOLDER.fullmatch(who)
    return None if found is None else int(found[1])


def decide_pin(state: State) -> Iterator[Action]:
    """Pin what the current generation will restore, before it is named (PROTOCOLS 4.7).

    As soon as it is known, while the workers still start: so no restart waits for the record.
    """
    world, wanted = state.world, offered(state).seq
    if world is None or world.broken or not world.whole or world.restore != "open" or world.target is not None:
        return
    if wanted is None or wanted == world.pinned or state.over or _restored_long_ago(state, world):
        return
    if not state.log_busy and all(id.generation == world.id for id in state.snapshots):
        yield PinRestore(wanted, holder_of(state.epoch, world.id))


def holder_in_use(state: State) -> str | None:
    """Whose pin must stay: that of the restore under way or to come."""
    world = state.world
    if world is None or world.broken or world.restore != "open" or state.over or _restored_long_ago(state, world):
        return None
    return world.holder


def _restored_long_ago(state: State, world: World) -> bool:
    """Has it commits of its own? So it doesn't restore the last one, whose number it would be told.

    When it was adopted, its ranks repeat that they asked, but those whose daemon is new do not: they would seem to train
    without it.
    """
    return state.candidate_generation == world.id


def decide_restore(now: float, state: State, options: CoordinatorOptions) -> Iterator[Action]:
    """Name the target once every earlier attempt is settled; then wait for all ranks, or fail all."""
    world = state.world
    if world is None or world.broken or not world.whole or world.restore != "open" or state.over:
        return
    if not any(rank.asked for rank in world.ranks.values()):
        return
    if world.target is None and _restored_long_ago(state, world):
        return
    if world.target is None:
        earlier = [id for id in state.snapshots if id.generation != world.id]
        if earlier or state.log_busy:
            yield Wait("restore", f"first {len(earlier)} attempts of earlier generations are committed or aborted")
        elif offered(state).seq not in (None, world.pinned):
            yield Wait("restore", f"first record {offered(state).seq} is pinned")
        else:
            target = offered(state)
            yield FailRestore(spoiled_diagnosis(state), None) if spoiled(state) else NameRestore(target, loss(state, target))
        return
    failure = _failure(now, options, world, world.target)
    if failure is not None:
        yield failure
        return
    ranks = [world.ranks.get(number) for number in range(world.world_size)]
    done = sum(1 for rank in ranks if rank is not None and starts(rank, world.target))
    if done == world.world_size:
        yield RestoreGo()
    else:
        yield Wait("restore", f"{done} of {world.world_size} ranks have restored step {world.target.step}")


def starts(rank: Rank, target: Target | None) -> bool:
    """Does this rank have what the target says? With nothing to restore, asking is enough."""
    if target is None:
        return rank.ready
    verified = rank.report is not None and not rank.report.error
    if target.seq is None:
        return rank.asked or rank.ready
    return verified or (rank.ready and rank.base_seq == target.seq + 1)


def _failure(now: float, options: CoordinatorOptions, world: World, target: Target) -> FailRestore | None:
    for number, rank in sorted(world.ranks.items()):
        if rank.report is not None and rank.report.error:
            reason = f"rank {number} on node {rank.node} could not restore step {target.step}: {rank.report.error}"
            return FailRestore(reason, target.seq if rank.report.corrupt else None)
    if target.seq is None or world.reported_seconds is None:
        return None  # who only asks what there is may go on without it
    for number, rank in sorted(world.ranks.items()):
        if rank.step > 0 and not rank.asked and not starts(rank, target):
            return FailRestore(f"rank {number} trains without the checkpoint that the others restored", None)
    late = [number for number in range(world.world_size) if not _has_started(world, number, target)]
    if late and now - world.reported_seconds >= options.restore_seconds:
        return FailRestore(f"not all ranks restored within {options.restore_seconds:g} s; missing: {late[:20]}", None)
    return None


def _has_started(world: World, number: int, target: Target) -> bool:
    rank = world.ranks.get(number)
    return rank is not None and starts(rank, target)
