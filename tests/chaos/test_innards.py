"""The checker of contents bites: a commit with the right hashes and the wrong bytes is told from a right one."""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chaos.content import Filler, layout, tensors
from chaos.innards import wrong_contents
from chaos.logbook import Committed
from chaos.objects import DirectoryObjects
from chaos.standin_rank import MadeUp
from ckptd.commit.assemble import assemble
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.pipeline.write import RankSource, WriteOptions, write_part
from ckptd.store.directory import DirectoryStore
from ckptd_client.arena import ID_BYTES, Shape, make_arena
from ckptd_client.tree import Collector, Part

SEED, BYTES, WORLD, STEP = 4, 20_000, 3, 40


def staged(rank: int, step: int, spoil: int | None) -> RankSource:
    """A rank's slot as the stand-in fills it, with one byte of its tensors wrong if told so."""
    fd = os.memfd_create("slot")
    parts = [Part("ckptd.progress", {"step": step}), Part("standin.rank", {"rank": rank, "step": step}, scope="rank")]
    found = Collector(rank).collect(parts)
    plan = MadeUp([Filler(SEED, piece) for piece in layout(tensors(SEED, BYTES), "w", WORLD, rank)], found)
    shape = Shape(1, plan.slot_bytes, len(plan.objects), 0)
    os.ftruncate(fd, shape.total_bytes)
    arena = make_arena(fd, bytes(ID_BYTES), shape, b"")
    os.close(fd)
    lengths = plan.copy_into(arena, 0, found)
    slot = arena.slot(0)
    last = plan.items[-1]
    if spoil == rank and last.kind == "tensor":
        slot[last.slot_offset] ^= 1
    return RankSource(rank, plan.items, lengths, slot)


@pytest.mark.parametrize(
    ("step", "spoil", "codec", "wrong"),
    [(STEP, None, "raw", 0), (STEP, None, "planes", 0), (STEP, 1, "raw", 1), (20, None, "raw", 6)],
)
async def test_contents(tmp_path: Path, step: int, spoil: int | None, codec: str, wrong: int) -> None:
    store = DirectoryStore(tmp_path)
    attempt = Attempt(Snapshot(Generation(1, 1), STEP), 0)
    options = WriteOptions(frame_bytes=4096, segment_bytes=8192, codec=codec)  # type: ignore[arg-type]
    with ThreadPoolExecutor(2) as pool:
        sources = [staged(rank, step, spoil) for rank in range(WORLD)]
        part = await write_part(store, "job", attempt, "a.0", sources, options, pool, itertools.count())
    _, name = await assemble(store, "job", attempt, WORLD, None, [part])
    await store.close()
    commit = Committed(1, str(attempt), (1, 1), STEP, name, None)
    problems = list(wrong_contents(DirectoryObjects(tmp_path), "job", commit, SEED, BYTES))
    assert (len(problems) >= wrong) if wrong > 1 else (len(problems) == wrong), problems
