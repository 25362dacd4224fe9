"""Opening a committed checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ckptd.commit.state import Entry
from ckptd.errors import CorruptError, NotFoundError
from ckptd.model.canonical import digest
from ckptd.model.dtypes import OBJECT
from ckptd.model.index import Index, decode_index
from ckptd.model.keys import index_key, layout_key, manifest_key, segment_key
from ckptd.model.layout import Layout, decode_layout
from ckptd.model.manifest import MAX_MANIFEST_BYTES, Manifest, ObjectRef, decode_manifest
from ckptd.model.region import Ints
from ckptd.pipeline.budget import ByteBudget
from ckptd.restore.buffers import HeapBuffers
from ckptd.restore.fetch import READ_BYTES, fetch
from ckptd.restore.plan import plan_objects
from ckptd.store.base import Store, get_small


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint whose description is verified; its frames are verified when they are fetched."""

    manifest: Manifest
    layout: Layout
    index: Index

    def segment_key(self, row: int) -> str:
        """Where the segment in this row of the index lies: in this checkpoint's own data, or in that of one of its bases."""
        segment, manifest = self.index.segments[row], self.manifest
        attempt = manifest.bases[segment.base - 1].attempt if segment.base else manifest.attempt
        return segment_key(manifest.job, attempt, self.index.writers[segment.writer], segment.n)

    @property
    def all_bytes(self) -> int:
        """Stored bytes of its frames, wherever they lie, of its layout and of its index."""
        described = self.manifest.layout.size_bytes + self.manifest.index.size_bytes
        return int(self.index.frames["stored_bytes"].sum(dtype="i8")) + described

    def tensors(self) -> list[tuple[str, int, str, tuple[int, ...]]]:
        """(FQN, owning rank or -1, dtype, shape) of every tensor."""
        return [(t.fqn, t.rank, t.dtype, t.shape) for t in self.layout.tensors if t.dtype != OBJECT]

    async def read_objects(self, store: Store, ranks: Sequence[int]) -> list[dict[str, bytes]]:
        """The typed msgpack, by FQN, of the objects of each of ``ranks`` (none if it never had any), -1 for global scope.

        Raises what `fetch.fetch` raises.
        """
        found, reads = plan_objects(self.layout, self.index, ranks)
        bodies = [bytearray(nbytes) for _, _, nbytes in found]
        scratch = HeapBuffers(max((read.raw_bytes for read in reads), default=0), 2)

        def deliver(number: int, copies: Ints) -> None:
            for offset, want, want_offset, count in copies.tolist():
                bodies[want][want_offset : want_offset + count] = scratch.memory[number][offset : offset + count]
            scratch.give_back(number)

        with ThreadPoolExecutor(1, thread_name_prefix="ckptd-objects") as pool:
            await fetch(store, self, reads, scratch, deliver, pool, ByteBudget(READ_BYTES))
        objects: dict[int, dict[str, bytes]] = {rank: {} for rank in ranks}
        for (rank, fqn, _), body in zip(found, bodies, strict=True):
            objects[rank][fqn] = bytes(body)
        return [objects[rank] for rank in ranks]


async def open_checkpoint(store: Store, job: str, manifest_hash: str) -> Checkpoint:
    """Read and verify manifest, layout and index.

    Raises CorruptError when one of them is missing, doesn't match its hash or doesn't parse, and what the store raises.
    """
    manifest = await open_manifest(store, job, manifest_hash)
    layout, index = await asyncio.gather(open_layout(store, job, manifest), _index_body(store, job, manifest))
    return Checkpoint(manifest, layout, _index(job, manifest, index, layout))


async def open_manifest(store: Store, job: str, manifest_hash: str) -> Manifest:
    """The manifest of that hash. Raises as `open_checkpoint` does."""
    body = await _get(store, "manifest", manifest_key(job, manifest_hash), manifest_hash, MAX_MANIFEST_BYTES)
    manifest = decode_manifest(body)
    if manifest.job != job:
        raise CorruptError(f"a manifest is another job's manifest={manifest_hash} job={job} says={manifest.job}")
    return manifest


def check_entry(manifest: Manifest, entry: Entry) -> None:
    """Raise CorruptError unless the manifest says of itself what its COMMIT record says."""
    bases = tuple(base.seq for base in manifest.bases)
    if (manifest.attempt, manifest.parent, bases) != (entry.attempt, entry.parent, entry.bases):
        raise CorruptError(
            "a manifest is of another attempt, parent or bases than its record says"
            f" attempt={manifest.attempt} parent={manifest.parent} bases={bases[:20]}"
            f" expected={entry.attempt} parent={entry.parent} bases={entry.bases[:20]}"
        )


async def open_layout(store: Store, job: str, manifest: Manifest) -> Layout:
    """The layout that a manifest refers to. Raises as `open_checkpoint` does."""
    key = layout_key(job, manifest.attempt.snapshot.generation, manifest.layout.hash)
    body = await _get_ref(store, "layout", key, manifest.layout)
    try:
        return decode_layout(body)
    except CorruptError as error:
        raise CorruptError(f"{error} key={key}") from None


async def open_index(store: Store, job: str, manifest: Manifest, layout: Layout | None) -> Index | None:
    """The index that a manifest refers to; without its layout only its hash is checked. Raises as `open_checkpoint` does."""
    body = await _index_body(store, job, manifest)
    return None if layout is None else _index(job, manifest, body, layout)


async def _index_body(store: Store, job: str, manifest: Manifest) -> bytes:
    return await _get_ref(store, "index", index_key(job, manifest.attempt, manifest.index.hash), manifest.index)


def _index(job: str, manifest: Manifest, body: bytes, layout: Layout) -> Index:
    try:
        return decode_index(body, layout, len(manifest.bases))
    except CorruptError as error:
        raise CorruptError(f"{error} key={index_key(job, manifest.attempt, manifest.index.hash)}") from None


async def _get_ref(store: Store, what: str, key: str, ref: ObjectRef) -> bytes:
    body = await _get(store, what, key, ref.hash, ref.size_bytes)
    if len(body) != ref.size_bytes:
        raise CorruptError(f"the {what} has another size than its manifest says key={key}")
    return body


async def _get(store: Store, what: str, key: str, name: str, limit_bytes: int) -> bytes:
    """An object named by its content."""
    try:
        body = await get_small(store, key, limit_bytes)
    except NotFoundError:
        raise CorruptError(f"the {what} of a checkpoint is missing key={key}") from None
    if len(body) > limit_bytes or digest(body) != name:
        raise CorruptError(f"the {what} of a checkpoint doesn't match its hash key={key} hash={name}")
    return body
