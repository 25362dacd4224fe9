"""Every damaged byte is found, and named; what is missing is an error, too."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptd.restore.fetch as fetch_module
from ckptd.commit.assemble import assemble, merge
from ckptd.errors import CorruptError, MissingStateError
from ckptd.model.keys import index_key, layout_key, manifest_key
from ckptd.model.layout import Layout, StoredRegion
from ckptd.model.part import Part
from ckptd.model.region import Region
from ckptd.pipeline.budget import ByteBudget
from ckptd.pipeline.write import WriteOptions
from ckptd.restore.buffers import HeapBuffers
from ckptd.restore.checkpoint import Checkpoint, open_checkpoint
from ckptd.restore.fetch import fetch
from ckptd.restore.plan import plan
from ckptd.store.directory import DirectoryStore
from ckptd_client.messages.restoring import Want
from tests.restore.states import ATTEMPT, JOB, Slot, load, opened, region, save, write_one

WHOLE = np.arange(15, dtype="<u4").reshape(5, 3)
WANT = Want("w", -1, "float32", (5, 3), (0, 0), (5, 3))
OPTIONS = WriteOptions(frame_bytes=16, segment_bytes=40, codec="planes")


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def slots() -> list[Slot]:
    found = [Slot(0), Slot(1)]
    for slot in found:
        slot.tensor("w", "float32", WHOLE, *region(WHOLE.shape, 0, slot.rank, 2))
        slot.object("rng", bytes(16), "rank")
    return found


def stored_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


async def saved(root: Path, pool: ThreadPoolExecutor) -> tuple[list[Part], str]:
    return await save(DirectoryStore(root), [[slot.source()] for slot in slots()], OPTIONS, pool)


async def everything(store: DirectoryStore, checkpoint: Checkpoint, pool: ThreadPoolExecutor) -> None:
    assert await load(store, checkpoint, [WANT], pool, [4]) == [WHOLE.tobytes()]
    assert await checkpoint.read_objects(store, (0, 1)) == [{"rng": bytes(16)}] * 2


async def test_every_flipped_byte_of_every_object_is_found_and_named(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    _, manifest = await saved(tmp_path, pool)
    files = stored_files(tmp_path)
    assert {path.parent.parent.name for path in files} == {"job", "data", "layout"} and len(files) > 5
    for path in files:
        good = path.read_bytes()
        name = path.relative_to(tmp_path).as_posix()
        for at in range(len(good)):
            damaged = bytearray(good)
            damaged[at] ^= 0x10
            path.write_bytes(damaged)
            with pytest.raises(CorruptError, match=name):
                await everything(*await opened(tmp_path, manifest), pool)
        path.write_bytes(good[:-1])
        with pytest.raises(CorruptError, match=name):
            await everything(*await opened(tmp_path, manifest), pool)
        path.unlink()
        with pytest.raises(CorruptError, match=rf"missing \S+={name}"):
            await everything(*await opened(tmp_path, manifest), pool)
        path.write_bytes(good)
    await everything(*await opened(tmp_path, manifest), pool)


async def test_the_error_says_which_hash(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    _, manifest = await saved(tmp_path, pool)
    store, checkpoint = await opened(tmp_path, manifest)
    for column, name in (("raw_hash", "raw"), ("stored_hash", "stored")):
        frames = checkpoint.index.frames.copy()
        frames[0][column] = np.void(bytes(16))
        wrong = replace(checkpoint, index=replace(checkpoint.index, frames=frames))
        with pytest.raises(CorruptError, match=rf"segment=job/data/1-2.30.0/n0.aa-0.seg frame=0 offset=0 hash={name}"):
            await load(store, wrong, [WANT], pool, [4])


async def test_another_jobs_manifest_and_a_checkpoint_that_is_not_there(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    _, manifest = await saved(tmp_path, pool)
    store = DirectoryStore(tmp_path)
    with pytest.raises(CorruptError, match="missing key=job/manifest"):
        await open_checkpoint(store, JOB, "ab" * 32)
    await store.put(manifest_key("other", manifest), await store.get(manifest_key(JOB, manifest)))
    with pytest.raises(CorruptError, match="another job's"):
        await open_checkpoint(store, "other", manifest)


async def test_a_known_layout_is_not_written_again(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    parts, first = await saved(tmp_path, pool)
    store = DirectoryStore(tmp_path)
    manifest = (await open_checkpoint(store, JOB, first)).manifest
    await store.delete(layout_key(JOB, manifest.attempt.snapshot.generation, manifest.layout.hash))
    await store.delete(index_key(JOB, ATTEMPT, manifest.index.hash))
    assert await assemble(store, JOB, ATTEMPT, 2, None, parts, {}, {manifest.layout.hash}) == (manifest, first)
    with pytest.raises(CorruptError, match="the layout of a checkpoint is missing"):
        await open_checkpoint(store, JOB, first)
    await assemble(store, JOB, ATTEMPT, 2, None, parts)
    assert (await open_checkpoint(store, JOB, first)).manifest == manifest


async def test_parts_that_make_no_whole_state_are_refused(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    async def parts(*given: Slot) -> list[Part]:
        store = DirectoryStore(tmp_path)
        return [await write_one(store, slot, OPTIONS, pool) for slot in given]

    def tensor(rank: int, offset: int, size: int, shape: tuple[int, ...] = (5, 3), dtype: str = "float32") -> Slot:
        slot = Slot(rank)
        slot.tensor("model.w", dtype, np.zeros(shape, "<u4"), (offset, 0), (size, shape[1]))
        return slot

    def with_object(rank: int) -> Slot:
        slot = Slot(rank)
        slot.object("sched", b"x", "global")
        return slot

    cases = [
        ([tensor(0, 0, 3), tensor(1, 4, 1)], "exactly once fqn='model.w'"),
        ([tensor(0, 0, 3), tensor(1, 2, 3)], "exactly once fqn='model.w'"),
        ([tensor(0, 0, 3), tensor(1, 2, 2)], "exactly once fqn='model.w'"),
        ([tensor(0, 0, 3), tensor(1, 3, 2, (5, 4))], "type or shape fqn='model.w'"),
        ([tensor(0, 0, 3), tensor(1, 3, 2, dtype="int32")], "type or shape fqn='model.w'"),
        ([with_object(0), with_object(1)], "exactly once fqn='sched'"),
        ([tensor(0, 0, 5)], "each rank once"),
        ([tensor(0, 0, 5), tensor(0, 0, 0)], "each rank once"),
    ]
    for given, message in cases:
        with pytest.raises(CorruptError, match=message):
            merge(await parts(*given), 2)
    good = await parts(tensor(0, 0, 3), tensor(1, 3, 2))
    merge(good, 2)
    with pytest.raises(CorruptError, match="one writer"):
        merge([good[0], replace(good[1], writers=good[0].writers)], 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fqn": "v"}, "no such tensor"),
        ({"rank": 0}, "no such tensor"),
        ({"fqn": "rng", "rank": 0, "dtype": "object", "shape": (), "offsets": (), "sizes": ()}, "no such tensor"),
        ({"dtype": "int32"}, "stored=float32"),
        ({"shape": (5, 4)}, r"wanted=float32\[5, 4\]"),
        ({"offsets": (1, 0)}, "no such region"),
        ({"offsets": (0,)}, "no such region"),
        ({"sizes": (-1, 3)}, "no such region"),
    ],
)
async def test_what_was_never_saved_is_missing_state(
    tmp_path: Path, pool: ThreadPoolExecutor, change: dict[str, object], message: str
) -> None:
    _, manifest = await saved(tmp_path, pool)
    _, checkpoint = await opened(tmp_path, manifest)
    with pytest.raises(MissingStateError, match=message):
        plan(checkpoint.layout, checkpoint.index, [replace(WANT, **change)])  # type: ignore[arg-type]


async def test_a_layout_with_holes_or_overlaps_serves_no_want_that_meets_them(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    _, manifest = await saved(tmp_path, pool)
    _, checkpoint = await opened(tmp_path, manifest)
    tensor = checkpoint.layout.by_name["w", -1]
    moved = StoredRegion(Region((2, 0), (2, 3)), 1, 1)  # instead of rows 3 and 4
    broken = Layout([replace(tensor, regions=(tensor.regions[0], moved))])
    for offset, size in ((0, 5), (2, 1), (4, 1)):
        with pytest.raises(CorruptError, match="each element once fqn='w'"):
            plan(broken, checkpoint.index, [replace(WANT, offsets=(offset, 0), sizes=(size, 3))])
    assert plan(broken, checkpoint.index, [replace(WANT, sizes=(2, 3))])


async def test_a_cancelled_fetch_leaves_no_thread_in_the_buffers(
    tmp_path: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, manifest = await saved(tmp_path, pool)
    store, checkpoint = await opened(tmp_path, manifest)
    begun, go_on, inside = threading.Event(), threading.Event(), [0]
    real = fetch_module.decode_frame

    def slow_decode(*arguments: Any) -> None:
        inside[0] += 1
        begun.set()
        go_on.wait(10)
        real(*arguments)
        inside[0] -= 1

    monkeypatch.setattr(fetch_module, "decode_frame", slow_decode)
    reads = plan(checkpoint.layout, checkpoint.index, [WANT])
    task = asyncio.create_task(fetch(store, checkpoint, reads, HeapBuffers(16, 3), lambda *_: None, pool, ByteBudget(99)))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert inside == [0]


async def test_a_fetch_that_gets_no_credit_can_be_cancelled(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    _, manifest = await saved(tmp_path, pool)
    store, checkpoint = await opened(tmp_path, manifest)
    reads = plan(checkpoint.layout, checkpoint.index, [WANT])
    given, budget = asyncio.Event(), ByteBudget(99)
    task = asyncio.create_task(fetch(store, checkpoint, reads, HeapBuffers(16, 1), lambda *_: given.set(), pool, budget))
    await given.wait()  # the only buffer; nobody gives it back
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)
    await asyncio.wait_for(budget.take(99), 10)  # nothing of it is held any more
