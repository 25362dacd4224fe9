"""Any layout to any layout: random tensors on random meshes, saved by one world and loaded by another, every element looked at.

What runs is the real code: each rank's client makes a plan of its pieces and copies them into an arena, ckptd writes parts and
a checkpoint of them, the reshard plan serves what each rank of the other world wants, into its tensors. What a rank holds is
said by torch alone: its placements come from `DTensorSpec`, its shard from `torch.chunk` in the order of the cuts.
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
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, ShardOrderEntry

from chaos.campaign import Say
from chaos.scene import ChaosError
from ckptd.commit.assemble import assemble
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.model.region import Ints
from ckptd.pipeline.budget import ByteBudget
from ckptd.pipeline.write import RankSource, WriteOptions, write_part
from ckptd.restore.checkpoint import Checkpoint, open_checkpoint
from ckptd.restore.fetch import fetch
from ckptd.restore.plan import plan
from ckptd.store.directory import DirectoryStore
from ckptd_client.arena import ID_BYTES, Arena, Shape, make_arena
from ckptd_client.capture import Plan
from ckptd_client.messages import RestoreInfo
from ckptd_client.parts import Names, part_of
from ckptd_client.restore import Targets, merge
from ckptd_client.scopes import over, per_index, per_rank, scope_of
from ckptd_client.shares import pieces_of
from ckptd_client.tree import Collector

RANKS_MAX: Final = 8
TENSORS: Final = 25  # of a state: each is on a mesh of its own before and after, and so is one pair of layouts
JOB: Final = "layouts"
_BITS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}
DTYPES: Final = tuple(
    getattr(torch, name)
    for name in (
        *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16", "float32"),
        *(
            "float64",
            "complex32",
            "complex64",
            "complex128",
            "float8_e4m3fn",
            "float8_e4m3fnuz",
            "float8_e5m2",
            "float8_e5m2fnuz",
        ),
        "float8_e8m0fnu",
    )
    if hasattr(torch, name)
)


@dataclass(frozen=True)
class Placed:
    """How a tensor lies on some ranks. ``shape`` None: plain on each; else ``order`` says which mesh dimension cuts which
    dimension of the tensor, in the order of the cuts; other mesh dimensions replicate.
    """

    ranks: tuple[int, ...]
    shape: tuple[int, ...] | None
    order: tuple[tuple[int, int], ...]  # (mesh dimension, dimension of the tensor)

    def local(self, whole: torch.Tensor, rank: int) -> torch.Tensor:
        """What that rank holds, by torch.chunk."""
        if self.shape is None:
            return whole
        coordinate = _coordinate(self, rank)
        for mesh_dim, dim in self.order:
            chunks = whole.chunk(self.shape[mesh_dim], dim)
            at = coordinate[mesh_dim]
            whole = chunks[at] if at < len(chunks) else whole.narrow(dim, 0, 0)
        return whole

    def tensor(self, local: torch.Tensor, whole: torch.Tensor, rank: int) -> torch.Tensor:
        """The tensor that the rank's state has, over the memory ``local``."""
        if self.shape is None:
            return local
        mesh = DeviceMesh("cpu", torch.tensor(self.ranks).view(self.shape), _init_backend=False, _rank=rank)
        made: torch.Tensor = DTensor.from_local(
            local, mesh, self.placements(mesh), run_check=False, shape=whole.shape, stride=whole.stride()
        )
        return made

    def placements(self, mesh: DeviceMesh) -> Sequence[Any]:
        """As torch writes this order of cuts."""
        plain: list[Any] = [Replicate()] * len(self.shape or ())
        for mesh_dim, dim in self.order:
            plain[mesh_dim] = Shard(dim)
        dims = sorted({dim for _, dim in self.order})
        entries = tuple(ShardOrderEntry(dim, tuple(at for at, cut in self.order if cut == dim)) for dim in dims)
        return DTensorSpec._convert_shard_order_to_StridedShard(entries, tuple(plain), mesh)


def _coordinate(placed: Placed, rank: int) -> list[int]:
    assert placed.shape is not None
    grid = torch.tensor(placed.ranks).view(placed.shape)
    found: list[int] = (grid == rank).nonzero()[0].tolist()
    return found


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


def noise(draw: random.Random, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """Random bits of that type."""
    size = torch.empty((), dtype=dtype).element_size()
    count = size
    for length in shape:
        count *= length
    if dtype is torch.bool:
        return torch.tensor([draw.random() < 0.5 for _ in range(count)], dtype=torch.bool).view(tuple(shape))
    body = bytearray(draw.randbytes(max(count, size)))
    return torch.frombuffer(body, dtype=torch.uint8)[:count].view(dtype).view(tuple(shape))


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether every element has the same bytes."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(_bits(one), _bits(other))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    whole = tensor.contiguous()  # of which a single element may have any stride
    return whole.as_strided((whole.numel(),), (1,)).view(_BITS[whole.element_size()])


def _draw_placed(draw: random.Random, ranks: tuple[int, ...], ndim: int) -> Placed:
    if draw.random() < 0.12:
        return Placed(ranks, None, ())
    count = len(ranks)
    shapes = [
        shape
        for dims in (1, 2, 3)
        for shape in itertools.product(range(1, count + 1), repeat=dims)
        if torch.tensor(shape).prod() == count
    ]
    shape = draw.choice(shapes)
    cuts = [(at, draw.randrange(ndim)) for at in range(len(shape)) if ndim and draw.random() < 0.75]
    draw.shuffle(cuts)
    standing = list(ranks)
    if draw.random() < 0.2:
        draw.shuffle(standing)
    return Placed(tuple(standing), shape, tuple(cuts))


def _odd_memory(draw: random.Random, like: torch.Tensor) -> torch.Tensor:
    """Memory of that shape: in a row, in the middle of something bigger, or with gaps."""
    kind = draw.random()
    if kind < 0.6 or not like.dim():
        return torch.empty(like.shape, dtype=like.dtype)
    if kind < 0.8:
        return torch.empty((*like.shape[:-1], 2 * like.shape[-1] + 1), dtype=like.dtype)[..., 1::2]
    return torch.empty(tuple(reversed(like.shape)), dtype=like.dtype).permute(*reversed(range(like.dim())))


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
    return Group(ranks, {name: _draw_placed(draw, ranks, whole[name].dim()) for name in names}, given)


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
    ring = _Ring(max((read.raw_bytes for read in reads), default=1))
    bodies = [memory.numpy() for memory in targets.memory]

    def deliver(number: int, copies: Ints) -> None:
        for start, want, at, count in copies.tolist():
            bodies[want][at : at + count] = ring.bodies[number][start : start + count]
        ring.free.put_nowait(number)

    await fetch(store, checkpoint, reads, ring, deliver, pool, ByteBudget(1 << 20))
    for finish in targets.finish:
        finish()


class _Ring:
    """Two buffers for frames."""

    count = 2

    def __init__(self, buffer_bytes: int) -> None:
        self.memory = [memoryview(bytearray(buffer_bytes)) for _ in range(self.count)]
        self.bodies = [torch.frombuffer(memory, dtype=torch.uint8).numpy() for memory in self.memory]
        self.free: asyncio.Queue[int] = asyncio.Queue()
        for number in range(self.count):
            self.free.put_nowait(number)

    async def acquire(self) -> tuple[int, memoryview]:
        number = await self.free.get()
        return number, self.memory[number]


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
                memory = _odd_memory(self.draw, true)
                memory.copy_(true) if filled else _spoil(memory, true)
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


def _spoil(memory: torch.Tensor, true: torch.Tensor) -> None:
    """Other bits than the right ones in every element."""
    if true.dtype is torch.bool:
        memory.copy_(~true)
    else:
        memory.copy_((_bits(true) ^ 1).view(true.dtype).view(true.shape))


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
