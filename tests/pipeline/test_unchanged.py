"""Chains of saves in which some frames change: every part parses, and has each frame's bytes where it says."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptd.codec.frames import decode_into
from ckptd.codec.hash import frame_hash
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.model.keys import segment_key
from ckptd.model.part import Part
from ckptd.pipeline.unchanged import Base, remember
from ckptd.pipeline.write import RankSource, WriteOptions, layout_of, write_part
from tests.restore.states import JOB, Slot


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


class Memory:
    """A store of dicts, and what was put since it was last asked."""

    url = "memory"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self._before = 0

    async def put(self, key: str, data: tuple[memoryview, ...]) -> None:
        assert key not in self.objects, "a key is never used twice"
        self.objects[key] = b"".join(data)

    @property
    def put_bytes(self) -> int:
        found = sum(map(len, self.objects.values())) - self._before
        self._before += found
        return found


class Chain:
    """One writer's saves, each committed as record 10 × its number."""

    def __init__(self, pool: ThreadPoolExecutor, frame_bytes: int = 48, segment_bytes: int = 100, codec: str = "raw") -> None:
        self.store = Memory()
        self.base: Base | None = None
        self.numbers = itertools.count()
        self._pool = pool
        self._options = WriteOptions(frame_bytes=frame_bytes, segment_bytes=segment_bytes, codec=codec)  # type: ignore[arg-type]
        self._attempts: dict[int, Attempt] = {}

    async def save(self, sources: list[RankSource], allowed: set[int] | None = None, writer: str = "n.a") -> Part:
        seq = 10 * (len(self._attempts) + 1)
        self._attempts[seq] = Attempt(Snapshot(Generation(1, 1), seq), 0)
        part = await write_part(
            self.store,  # type: ignore[arg-type]
            JOB,
            self._attempts[seq],
            writer,
            sources,
            self._options,
            self._pool,
            self.numbers,
            base=self.base,
            allowed=set(self._attempts) if allowed is None else allowed,
        )
        part = Part.decode(part.encode())
        assert frames_of(part, self.store, self._attempts, seq) == b"".join(plain(source) for source in sources)
        self.base = remember(seq, layout_of(sources), part)
        return part


def frames_of(part: Part, store: Memory, attempts: dict[int, Attempt], seq: int) -> bytes:
    """The bytes of all items in a row, read from where the part says that they lie."""
    raw = []
    for row in part.frames:
        segment = part.segments[row["segment"]]
        attempt = attempts[part.bases[segment.base - 1] if segment.base else seq]
        body = store.objects[segment_key(JOB, attempt, part.writers[segment.writer], segment.n)]
        assert len(body) == segment.size_bytes
        stored, room = body[int(row["offset"]) :][: int(row["stored_bytes"])], bytearray(int(row["raw_bytes"]))
        assert frame_hash([stored]) == row["stored_hash"].tobytes()
        decode_into(int(row["codec"]), stored, memoryview(room))
        raw.append(bytes(room))
    found = []
    for entry in part.entries:
        place = entry.place
        joined = b"".join(raw[place.first_frame : place.first_frame + place.frame_count])
        found.append(joined[place.frame_offset : place.frame_offset + place.nbytes])
    return b"".join(found)


def plain(source: RankSource) -> bytes:
    lengths = iter(source.lengths)
    sizes = [next(lengths) if item.kind == "object" else item.capacity for item in source.items]
    return b"".join(bytes(source.slot[i.slot_offset :][:size]) for i, size in zip(source.items, sizes, strict=True))


def staged(values: list[np.ndarray], lengths: list[int], ranks: int = 2) -> list[RankSource]:
    """Tensors, some of many frames and some packed, and an object of changing length for each rank."""
    sources = []
    for rank in range(ranks):
        slot = Slot(rank)
        for number, value in enumerate(values):
            slot.tensor(f"w{number}", "uint8", value, (0,), value.shape, "rank")
        slot.object("o", bytes(lengths[rank % len(lengths)]), "rank")
        sources.append(slot.source())
    # The same room for the object whatever its length, as a client keeps it.
    return [
        replace(
            s,
            items=[replace(i, capacity=400) if i.kind == "object" else i for i in s.items],
            slot=memoryview(bytes(s.slot) + bytes(400)),
        )
        for s in sources
    ]


SIZES = (300, 5, 7, 48, 11, 90, 1, 30)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["raw", "planes"]))
def test_random_chains(data: st.DataObject, codec: str) -> None:
    async def run() -> None:
        with ThreadPoolExecutor(2) as pool:
            chain = Chain(pool, codec=codec)
            values = [np.arange(size, dtype=np.uint8) for size in SIZES]
            for _ in range(data.draw(st.integers(2, 5))):
                for number, at in data.draw(
                    st.lists(st.tuples(st.integers(0, len(SIZES) - 1), st.integers(0, 299)), max_size=4)
                ):
                    values[number][at % SIZES[number]] ^= 1
                lengths = data.draw(st.lists(st.integers(0, 200), min_size=2, max_size=2))
                seqs = [10 * n for n in range(1, 6)]
                allowed = set(data.draw(st.lists(st.sampled_from(seqs)))) if data.draw(st.booleans()) else set(seqs)
                part = await chain.save(staged(values, lengths), allowed)
                assert set(part.bases) <= allowed

    asyncio.run(run())


async def test_only_what_changed_is_written_and_names_where_it_lies_itself(pool: ThreadPoolExecutor) -> None:
    chain = Chain(pool)
    values = [np.arange(size, dtype=np.uint8) for size in SIZES]
    whole = await chain.save(staged(values, [10, 20]))
    total = chain.store.put_bytes
    assert whole.bases == () and total == sum(int(n) for n in whole.frames["raw_bytes"])
    same = await chain.save(staged(values, [10, 20]))
    assert chain.store.put_bytes == 0 and same.bases == (10,) and all(segment.base == 1 for segment in same.segments)
    values[0][100] ^= 1  # the third frame of six of each rank
    third = await chain.save(staged(values, [10, 20]))
    assert chain.store.put_bytes == 2 * 48 and third.bases == (10,)
    values[0][299] ^= 1
    fourth = await chain.save(staged(values, [10, 20]))
    assert fourth.bases == (10, 30) and chain.store.put_bytes == 2 * (300 % 48)  # record 20 wrote nothing
    last = await chain.save(staged(values, [10, 20]), {30, 40})
    assert last.bases == (30, 40) and chain.store.put_bytes == total - 2 * 48 - 2 * (300 % 48)


async def test_an_object_that_outgrows_its_frame_moves_no_other(pool: ThreadPoolExecutor) -> None:
    chain = Chain(pool)
    values = [np.arange(size, dtype=np.uint8) for size in SIZES]
    await chain.save(staged(values, [10, 20]))
    chain.store.put_bytes  # noqa: B018 (it counts from here)
    for lengths in ([190, 20], [0, 0], [30, 200]):
        await chain.save(staged(values, lengths))
        assert chain.store.put_bytes <= sum(lengths)


async def test_another_layout_another_writer(pool: ThreadPoolExecutor) -> None:
    chain = Chain(pool)
    values = [np.arange(size, dtype=np.uint8) for size in SIZES]
    await chain.save(staged(values, [10, 20]))
    total = chain.store.put_bytes
    assert (await chain.save(staged(values, [10, 20]), writer="n.b")).writers == ("n.b", "n.a")
    assert chain.store.put_bytes == 0
    assert (await chain.save(staged(values, [10, 20], ranks=1))).bases == ()  # other ranks: other places
    assert chain.store.put_bytes > total / 3
    assert (await chain.save(staged(values[::-1], [10], ranks=1))).bases == ()
