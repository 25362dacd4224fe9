"""Any layout to any layout: random tensors on random meshes, saved by one world and loaded by another, every element looked at.

What runs is the real code: each rank's client makes a plan of its pieces and copies them into an arena, ckptd writes parts and
a checkpoint of them, the reshard plan serves what each rank of the other world wants, into its tensors. `placed` says what must
come out.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch.distributed.device_mesh import DeviceMesh

from chaos.campaign import Say
from chaos.placed import DTYPES, Placed, draw_placed, noise, odd_memory, same_bits, spoil
from chaos.scene import ChaosError
from ckptd.commit.assemble import assemble
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.model.region import Ints
from ckptd.pipeline.budget import ByteBudget
from ckptd.pipeline.write import RankSource, WriteOptions, write_part
from ckptd.restore.buffers import HeapBuffers
from ckptd.restore.checkpoint import Checkpoint, open_checkpoint
from ckptd.restore.fetch import fetch
from ckptd.restore.plan import plan
from ckptd.store.directory import DirectoryStore
from ckptd_client.arena import ID_BYTES, Arena, Shape, make_arena
from ckptd_client.capture import Plan
from ckptd_client.messages.restoring import RestoreInfo
from ckptd_client.parts import Names, part_of
from ckptd_client.restore import Targets, merge
from ckptd_client.scopes import over, per_index, per_rank, scope_of
from ckptd_client.shares import pieces_of
from ckptd_client.tree import Collector

RANKS_MAX: Final = 8
TENSORS: Final = 25  # of a state: each is on a mesh of its own before and after, and so is one pair of layouts
JOB: Final = "layouts"


@dataclass(frozen=True)
class Group:
    """Some ranks and what they hold alike: a whole state, or a stage of one. ``given`` wraps it for `Checkpointer.register`."""

    ranks: tuple[int, ...]
    tensors: dict[str, Placed]
    given: Callable[[Any], Any]


class _State:
    """Something with a state dict."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        """The state itself."""
        return self.state


def _draw_groups(draw: random.Random, world: int, whole: dict[str, torch.Tensor]) -> list[Group]:
    everybody = tuple(range(world))
    names = list(whole)
    if world == 1 or draw.random() < 0.4:
        return [_group(draw, everybody, names, whole, lambda thing: thing)]
    cut = draw.randrange(1, world)
    draw.shuffle(names)
    at = draw.randrange(len(names) + 1)
    stages = ((everybody[:cut], names[:at]), (everybody[cut:], names[at:]))
    return [_group(draw, ranks, mine, whole, _over(ranks)) for ranks, mine in stages]


def _over(ranks: tuple[int, ...]) -> Callable[[Any], Any]:
    return lambda thing: over(thing, ranks)


def _group(
    draw: random.Random,
    ranks: tuple[int, ...],
    names: Sequence[str],
    whole: dict[str, torch.Tensor],
    given: Callable[[Any], Any],
) -> Group:
    return Group(ranks, {name: draw_placed(draw, ranks, whole[name].dim()) for name in names}, given)


class Save:
    """One world's state in a store."""

    def __init__(self, store: DirectoryStore, pool: ThreadPoolExecutor) -> None:
        self._store, self._pool = store, pool
        self._arenas: list[Arena] = []

    async def write(self, world: int, states: Sequence[Sequence[tuple[str, Any]]], number: int) -> Checkpoint:
        """``states``: for each rank the parts that it registers."""
        attempt = Attempt(Snapshot(Generation(1, number), 1), 0)
        half = -(-world // 2)
        parts = []
        for node, ranks in enumerate([range(half), range(half, world)]):
            sources = [self._rank(rank, world, states[rank]) for rank in ranks]
            if sources:
                options = WriteOptions(frame_bytes=256, segment_bytes=4096)
                writer = f"n{node}.aa"
                parts.append(
                    await write_part(self._store, JOB, attempt, writer, sources, options, self._pool, itertools.count())
                )
        _, name = await assemble(self._store, JOB, attempt, world, None, parts)
        return await open_checkpoint(self._store, JOB, name)

    def _rank(self, rank: int, world: int, parts: Sequence[tuple[str, Any]]) -> RankSource:
        """As `Checkpointer` registers and stages."""
        trees = [part_of(name, *scope_of(name, given, rank, world), Names()) for name, given in parts]
        found = Collector(rank).collect(trees)
        layout = Plan(found, pieces_of(found, rank, world))
        shape = Shape(1, layout.slot_bytes, len(layout.objects), 0)
        fd = os.memfd_create("ckptd-layouts")
        try:
            os.ftruncate(fd, shape.total_bytes)
            arena = make_arena(fd, bytes(ID_BYTES), shape, b"")
        finally:
            os.close(fd)
        lengths = layout.copy_into(arena, 0, found)
        self._arenas.append(arena)
        return RankSource(rank, layout.items, lengths, memoryview(arena.slot(0)))


async def load(
    store: DirectoryStore,
    pool: ThreadPoolExecutor,
    checkpoint: Checkpoint,
    rank: int,
    world: int,
    parts: Sequence[tuple[str, Any]],
) -> None:
    """As `Checkpointer.restore`, into the tensors of each part's state."""
    common, own = await checkpoint.read_objects(store, [-1, rank])
    saved = checkpoint.manifest.world_size
    info = RestoreInfo(1, (1, 1), 0, 1, saved, common, own, checkpoint.tensors(), "")
    targets = Targets(info, rank, world)
    for name, given in parts:
        thing, scope = scope_of(name, given, rank, world)
        tree = targets.tree(name, scope)
        merge(targets, thing.state, {key: tree[key] for key in thing.state}, name)
    reads = await asyncio.to_thread(plan, checkpoint.layout, checkpoint.index, targets.wants)
    ring = HeapBuffers(max((read.raw_bytes for read in reads), default=1), 2)
    frames = [torch.frombuffer(memory, dtype=torch.uint8).numpy() for memory in ring.memory]
    bodies = [memory.numpy() for memory in targets.memory]

    def deliver(number: int, copies: Ints) -> None:
        for start, want, at, count in copies.tolist():
            bodies[want][at : at + count] = frames[number][start : start + count]
        ring.give_back(number)

    await fetch(store, checkpoint, reads, ring, deliver, pool, ByteBudget(1 << 20))
    for finish in targets.finish:
        finish()


@dataclass
class Round:
    """One state, and the worlds that save and load it."""

    draw: random.Random
    number: int

    def __post_init__(self) -> None:
        draw = self.draw
        self.before, self.after = draw.randint(1, RANKS_MAX), draw.randint(1, RANKS_MAX)
        if draw.random() < 0.2:
            self.after = self.before
        self.whole: dict[str, torch.Tensor] = {}
        for number in range(TENSORS):
            shape = [draw.choice((0, 1, 2, 3, 5, 6, 7, 8, 9, 12, 13)) for _ in range(draw.randint(0, 3))]
            if 0 in shape and draw.random() < 0.7:
                shape = [length or 4 for length in shape]
            self.whole[f"t{number}"] = noise(draw, draw.choice(DTYPES), shape)
        self.own = {rank: noise(draw, torch.float32, (3,)) for rank in range(RANKS_MAX)}

    def states(self, world: int, groups: Sequence[Group], filled: bool) -> list[list[tuple[str, Any]]]:
        """What each rank registers: with the right bytes, or with others."""
        found = []
        for rank in range(world):
            (group,) = [group for group in groups if rank in group.ranks]
            state: dict[str, Any] = {}
            for name, placed in group.tensors.items():
                true = placed.local(self.whole[name], rank)
                memory = odd_memory(self.draw, true)
                memory.copy_(true) if filled else spoil(memory, true)
                state[name] = placed.tensor(memory, self.whole[name], rank)
            found.append([("state", group.given(_State(state))), *self._scoped(rank, world, filled)])
        return found

    def _scoped(self, rank: int, world: int, filled: bool) -> Iterator[tuple[str, Any]]:
        """What is no rank's else; only as many ranks can load it."""
        if self.before != self.after:
            return
        zero = torch.zeros(3)
        yield "own", per_rank(_State({"x": self.own[rank] if filled else zero}))
        if world % 2 == 0:
            mesh = DeviceMesh(
                "cpu", torch.arange(world).view(2, -1), mesh_dim_names=("dp", "tp"), _init_backend=False, _rank=rank
            )
            place = rank // (world // 2)
            yield "loader", per_index(_State({"x": self.own[place] if filled else zero.clone()}), mesh, "dp")

    async def run(self, directory: Path, pool: ThreadPoolExecutor) -> None:
        """Raises ChaosError when an element is wrong."""
        store = DirectoryStore(directory)
        before, after = _draw_groups(self.draw, self.before, self.whole), _draw_groups(self.draw, self.after, self.whole)
        checkpoint = await Save(store, pool).write(self.before, self.states(self.before, before, True), self.number)
        states = self.states(self.after, after, False)
        for rank, parts in enumerate(states):
            await load(store, pool, checkpoint, rank, self.after, parts)
            self._check(rank, after, parts, before)

    def _check(self, rank: int, groups: Sequence[Group], parts: Sequence[tuple[str, Any]], before: Sequence[Group]) -> None:
        (group,) = [group for group in groups if rank in group.ranks]
        held = {name: scope_of(name, given, rank, self.after)[0].state for name, given in parts}
        for name, placed in group.tensors.items():
            got = held["state"][name]
            local = got._local_tensor if placed.shape is not None else got
            if not same_bits(local, placed.local(self.whole[name], rank)):
                (was,) = [one.tensors[name] for one in before if name in one.tensors]
                shape = tuple(self.whole[name].shape)
                raise ChaosError(
                    f"round {self.number}, rank {rank}: {name} {shape} is wrong, saved as {was}, loaded as {placed}"
                )
        places = {"own": rank, "loader": rank // max(1, self.after // 2)}
        for name, place in places.items():
            if name in held and not same_bits(held[name]["x"], self.own[place]):
                raise ChaosError(f"round {self.number}, rank {rank}: {name!r} is somebody else's")


def run(seed: int, directory: Path, say: Say, pairs: int) -> None:
    """Check so many pairs of layouts. Raises ChaosError naming the first that doesn't come out right."""
    rounds = -(-pairs // TENSORS)
    with ThreadPoolExecutor(2) as pool:
        for number in range(rounds):
            one = Round(random.Random(f"{seed} {number}"), number)
            place = directory / "store"
            asyncio.run(one.run(place, pool))
            if number % 100 == 99:
                say(f"{(number + 1) * TENSORS} of {pairs} pairs of layouts")
    say(f"{rounds * TENSORS} pairs of layouts, every element of every tensor right")
