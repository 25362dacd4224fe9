"""Checkpoints as a client makes them, without a daemon: the client's own walk and layout, the daemon's own writer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from ckptd.commit.assemble import assemble
from ckptd.commit.fold import restore_candidate
from ckptd.commit.log import CommitLog
from ckptd.commit.office import Committer, take_office
from ckptd.errors import CkptdError
from ckptd.interchange.spans import SPAN_BYTES
from ckptd.model.dtypes import OBJECT
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.model.layout import GLOBAL
from ckptd.pipeline.write import RankSource, WriteOptions, write_part
from ckptd.restore.buffers import HeapBuffers
from ckptd.restore.checkpoint import Checkpoint, open_checkpoint
from ckptd.restore.plan import plan
from ckptd.store.directory import DirectoryStore
from ckptd_client.capture import Plan
from ckptd_client.messages.restoring import RestoreInfo
from ckptd_client.parts import Names, part_of
from ckptd_client.recover import PROGRESS, STATE
from ckptd_client.restore import Targets, materialise, merge
from ckptd_client.scopes import scope_of
from ckptd_client.shares import pieces_of
from ckptd_client.tree import Collector, Part

JOB = "job"
ALL_DTYPES = [
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16", "float32"),
    *("float64", "complex32", "complex64", "complex128", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"),
    *("float8_e5m2fnuz", "float8_e8m0fnu"),
]


def bits(tensor: torch.Tensor) -> bytes:
    """The tensor's bytes, row-major."""
    flat = tensor.detach().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes()) if flat.numel() else b""


def random_tensor(dtype: str, *shape: int, seed: int = 0) -> torch.Tensor:
    """Any bits, NaNs and negative zeros among them; bools are 0 and 1."""
    kind = getattr(torch, dtype)
    itemsize = torch.empty(0, dtype=kind).element_size()
    count = itemsize
    for size in shape:
        count *= size
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 2 if kind is torch.bool else 256, (count,), dtype=torch.uint8, generator=generator)
    return raw.view(kind).reshape(shape) if count else torch.empty(shape, dtype=kind)


def same(left: Any, right: Any, path: str = "") -> None:
    """Assert that two states are the same: types, keys, order of keys, bits."""
    if isinstance(left, torch.Tensor):
        assert isinstance(right, torch.Tensor), path
        assert (left.dtype, left.shape) == (right.dtype, right.shape), path
        assert bits(left) == bits(right), path
        return
    assert type(left) is type(right), path
    if isinstance(left, dict):
        assert list(left) == list(right), path
        for key in left:
            same(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for at, (a, b) in enumerate(zip(left, right, strict=True)):
            same(a, b, f"{path}.{at}")
    else:
        assert left == right or (left != left and right != right), path


def save(root: Path, state: Mapping[str, Any], step: int = 7, parts: bool = False, frame_bytes: int = 1 << 20) -> int:
    """Commit ``state`` as `Checkpointer.save` would, or with ``parts`` as registered parts; the record's number."""
    progress = {"step": step, "seed": 5, "position": 12, "stream": None}
    known = [Part(name, tree) for name, tree in state.items()] if parts else [Part(STATE, dict(state), whole=None)]
    source = _source([Part(PROGRESS, progress), *known], 0, 1)
    return asyncio.run(_commit(root, [source], step, WriteOptions(frame_bytes=frame_bytes, codec="planes")))


def save_registered(root: Path, ranks: Sequence[Mapping[str, Any]], step: int = 7) -> int:
    """Commit what each rank of a world has registered, as `Checkpointer.step` would; the record's number."""
    progress = Part(PROGRESS, {"step": step, "seed": 5, "position": 12, "stream": None})
    sources = []
    for rank, given in enumerate(ranks):
        scoped = {name: scope_of(name, one, rank, len(ranks)) for name, one in given.items()}
        names = Names().with_modules({name: thing for name, (thing, _) in scoped.items()})
        parts = [part_of(name, thing, scope, names) for name, (thing, scope) in scoped.items()]
        sources.append(_source([progress, *parts], rank, len(ranks)))
    return asyncio.run(_commit(root, sources, step, WriteOptions(codec="planes")))


def _source(parts: Sequence[Part], rank: int, world_size: int) -> RankSource:
    """A rank's slot with its share of the parts; the tensors are plain ones."""
    found = Collector(rank).collect(parts)
    layout = Plan(found, pieces_of(found, rank, world_size))
    slot = bytearray(layout.slot_bytes)
    for item in layout.objects:
        slot[item.slot_offset : item.slot_offset + len(found.bodies[item.fqn])] = found.bodies[item.fqn]
    for piece, item in zip(layout.pieces, layout.stored, strict=True):
        whole = found.tensors[piece.source]
        slot[item.slot_offset : item.slot_offset + item.capacity] = bits(
            whole if piece.rows is None else whole.narrow(0, *piece.rows)
        )
    lengths = [len(found.bodies[item.fqn]) for item in layout.objects]
    return RankSource(rank, layout.items, lengths, memoryview(slot))


async def _commit(root: Path, sources: Sequence[RankSource], step: int, options: WriteOptions) -> int:
    store = DirectoryStore(root)
    log = CommitLog(store, JOB)
    state = await log.load()
    office = await take_office(log)
    attempt = Attempt(Snapshot(Generation(office.epoch, 1), step), 0)
    newest = restore_candidate(state)
    with ThreadPoolExecutor(1) as pool:
        part = await write_part(store, JOB, attempt, "n0.aa", sources, options, pool, itertools.count())
    _, name = await assemble(store, JOB, attempt, len(sources), newest.n if newest else None, [part])
    return await Committer(log, office).commit(attempt, name)


def load(root: Path, into: dict[str, Any] | None = None) -> tuple[Any, RestoreInfo]:
    """The newest checkpoint's state as `Checkpointer.load` would load it: with ``into`` merged, else all made anew."""
    checkpoint, info, targets = asyncio.run(_opened(root))
    tree = targets.tree(STATE)
    made = materialise(targets, tree) if into is None else merge(targets, into, tree, "")
    bodies = asyncio.run(_fetched(root, checkpoint, targets))
    for memory, body in zip(targets.memory, bodies, strict=True):
        memory.copy_(torch.frombuffer(bytearray(body), dtype=torch.uint8))
    for finish in targets.finish:
        finish()
    return made, info


async def _opened(root: Path) -> tuple[Checkpoint, RestoreInfo, Targets]:
    store = DirectoryStore(root)
    entry = restore_candidate(await CommitLog(store, JOB).load())
    if entry is None:
        raise CkptdError("nothing is committed")
    checkpoint = await open_checkpoint(store, JOB, entry.manifest)
    (objects,) = await checkpoint.read_objects(store, [GLOBAL])
    info = RestoreInfo(
        id=0,
        generation=(1, 1),
        seq=entry.n,
        step=entry.attempt.snapshot.step,
        world_size=1,
        objects=objects,
        rank_objects={},
        tensors=checkpoint.tensors(),
        loss="",
    )
    return checkpoint, info, Targets(info, 0, 1)


async def _fetched(root: Path, checkpoint: Checkpoint, targets: Targets) -> list[bytes]:
    from ckptd.pipeline.budget import ByteBudget
    from ckptd.restore.fetch import fetch

    assert all(t.dtype == OBJECT or t.rank == GLOBAL for t in checkpoint.layout.tensors)
    bodies = [bytearray(memory.numel()) for memory in targets.memory]
    ring = HeapBuffers(4 << 20, 4)

    def deliver(number: int, copies: Any) -> None:
        for offset, want, at, count in copies.tolist():
            bodies[want][at : at + count] = ring.memory[number][offset : offset + count]
        ring.give_back(number)

    reads = plan(checkpoint.layout, checkpoint.index, targets.wants)
    with ThreadPoolExecutor(1) as pool:
        await fetch(DirectoryStore(root), checkpoint, reads, ring, deliver, pool, ByteBudget(SPAN_BYTES))
    return [bytes(body) for body in bodies]
