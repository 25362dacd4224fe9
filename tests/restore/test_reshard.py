"""W → W' keeps every (FQN, index, byte) exactly once (I9), through all stages and a real store."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptd.codec.frames import Codec
from ckptd.pipeline.write import WriteOptions
from ckptd.store.directory import DirectoryStore
from ckptd_client.messages.restoring import Want
from tests.restore.states import Slot, load, opened, region, save

DTYPES = {"float32": "<u4", "bfloat16": "<u2", "uint8": "u1", "complex128": "V16", "bool": "u1"}


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, tuple[str, np.ndarray]]:
    found = {}
    for number in range(draw(st.integers(1, 4))):
        shape = draw(st.lists(st.integers(0, 9), min_size=0, max_size=3))
        dtype = draw(st.sampled_from(sorted(DTYPES)))
        kind = np.dtype(DTYPES[dtype])
        count = int(np.prod(shape, dtype=int)) * kind.itemsize
        body = np.random.default_rng(draw(st.integers(0, 2**32))).bytes(count)
        found[f"model.{number}"] = (dtype, np.frombuffer(body, kind).reshape(shape))
    return found


def shard(slots: list[Slot], fqn: str, dtype: str, whole: np.ndarray, dim: int) -> None:
    """Cut over all ranks along ``dim``; a 0-dim tensor is the last rank's. Empty shards are listed, too."""
    if whole.ndim == 0:
        slots[-1].tensor(fqn, dtype, whole, (), ())
        return
    for slot in slots:
        slot.tensor(fqn, dtype, whole, *region(whole.shape, dim % whole.ndim, slot.rank, len(slots)))


def wants(
    state: dict[str, tuple[str, np.ndarray]], dim: int, rank: int, world: int
) -> tuple[list[Want], list[bytes], list[int]]:
    found, expected, itemsizes = [], [], []
    for fqn, (dtype, whole) in state.items():
        offsets, sizes = region(whole.shape, dim % whole.ndim, rank, world) if whole.ndim else ((), ())
        found.append(Want(fqn, -1, dtype, whole.shape, offsets, sizes))
        cut = whole[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))]
        expected.append(np.ascontiguousarray(cut).tobytes())
        itemsizes.append(whole.itemsize)
    return found, expected, itemsizes


@settings(max_examples=80)
@given(
    state=tensors(),
    saved=st.tuples(st.integers(1, 4), st.integers(0, 1)),
    loaded=st.tuples(st.integers(1, 4), st.integers(0, 2)),
    nodes=st.integers(1, 3),
    sizes=st.sampled_from([(16, 64), (37, 37), (100, 64), (4096, 8192)]),
    codec=st.sampled_from(["raw", "planes"]),
    buffers=st.integers(1, 3),
)
def test_any_layout_serves_any_other(
    pool: ThreadPoolExecutor,
    state: dict[str, tuple[str, np.ndarray]],
    saved: tuple[int, int],
    loaded: tuple[int, int],
    nodes: int,
    sizes: tuple[int, int],
    codec: Codec,
    buffers: int,
) -> None:
    async def run(root: Path) -> None:
        slots = [Slot(rank) for rank in range(saved[0])]
        for fqn, (dtype, whole) in state.items():
            shard(slots, fqn, dtype, whole, saved[1])
        for slot in slots:
            slot.object("rng", b"rng of %d" % slot.rank, "rank")
        slots[0].object("scheduler", b"x" * 300, "global")
        slots[0].object("nothing", b"", "global")
        options = WriteOptions(frame_bytes=sizes[0], segment_bytes=sizes[1], codec=codec, memory_bytes=200, concurrency=2)
        groups = [[slot.source() for slot in slots[i::nodes]] for i in range(min(nodes, len(slots)))]
        _, manifest = await save(DirectoryStore(root), groups, options, pool)
        store, checkpoint = await opened(root, manifest)
        for rank in range(loaded[0]):
            found, expected, itemsizes = wants(state, loaded[1], rank, loaded[0])
            assert await load(store, checkpoint, found, pool, itemsizes, buffers) == expected
        ranks = (-1, saved[0] - 1, saved[0])
        everybodys, last, nobodys = await checkpoint.read_objects(store, ranks)
        assert everybodys == {"scheduler": b"x" * 300, "nothing": b""}
        assert last == {"rng": b"rng of %d" % (saved[0] - 1)} and nobodys == {}
        assert checkpoint.tensors() == [(fqn, -1, dtype, whole.shape) for fqn, (dtype, whole) in sorted(state.items())]

    with tempfile.TemporaryDirectory(dir="/dev/shm") as root:
        asyncio.run(run(Path(root)))
