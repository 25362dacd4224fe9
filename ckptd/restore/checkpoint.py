"""Opening a committed checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ckptd.errors import CorruptError, NotFoundError
from ckptd.model.dtypes import OBJECT
from ckptd.model.index import Index, decode_index
from ckptd.model.keys import index_key, layout_key, manifest_key
from ckptd.model.layout import Layout, decode_layout
from ckptd.model.manifest import MAX_MANIFEST_BYTES, Manifest, ObjectRef, decode_manifest
from ckptd.model.records import digest
from ckptd.restore.fetch import fetch
from ckptd.restore.plan import plan_objects
from ckptd.store.base import Store
from ckptd_client.messages import Copy


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint whose description is verified; its frames are verified when they are fetched."""

    manifest: Manifest
    layout: Layout
    index: Index

    def tensors(self) -> list[tuple[str, int, str, tuple[int, ...]]]:
        """(FQN, owning rank or -1, dtype, shape) of every tensor."""
        return [(t.fqn, t.rank, t.dtype, t.shape) for t in self.layout.tensors if t.dtype != OBJECT]

    async def read_objects(self, store: Store, job: str, rank: int) -> dict[str, bytes]:
        """The typed msgpack, by FQN, of the objects of global scope (rank -1) or of one rank (none if it never had it).

        Raises what `fetch.fetch` raises.
        """
        found, reads = plan_objects(self.layout, self.index, rank)
        bodies = [bytearray(nbytes) for _, nbytes in found]
        buffer = memoryview(bytearray(max((read.raw_bytes for read in reads), default=0)))
        free = asyncio.Semaphore(1)

        async def acquire() -> tuple[int, memoryview]:
            await free.acquire()
            return 0, buffer

        def deliver(_: int, copies: Sequence[Copy]) -> None:
            for copy in copies:
                piece = buffer[copy.frame_offset : copy.frame_offset + copy.count]
                bodies[copy.want][copy.want_offset : copy.want_offset + copy.count] = piece
            free.release()

        with ThreadPoolExecutor(1, thread_name_prefix="ckptd-objects") as pool:
            await fetch(store, job, self, reads, acquire, deliver, pool)
        return {fqn: bytes(body) for (fqn, _), body in zip(found, bodies, strict=True)}


async def open_checkpoint(store: Store, job: str, manifest_hash: str) -> Checkpoint:
    """Read and verify manifest, layout and index.

    Raises CorruptError when one of them is missing, doesn't match its hash or doesn't parse, and what the store raises.
    """
    body = await _get(store, "manifest", manifest_key(job, manifest_hash), manifest_hash, MAX_MANIFEST_BYTES)
    manifest = decode_manifest(body)
    if manifest.job != job:
        raise CorruptError(f"a manifest is another job's manifest={manifest_hash} job={job} says={manifest.job}")
    layout_body, index_body = await asyncio.gather(
        _get_ref(store, "layout", layout_key(job, manifest.attempt.snapshot.generation, manifest.layout.hash), manifest.layout),
        _get_ref(store, "index", index_key(job, manifest.attempt, manifest.index.hash), manifest.index),
    )
    layout = decode_layout(layout_body)
    return Checkpoint(manifest, layout, decode_index(index_body, layout))


async def _get_ref(store: Store, what: str, key: str, ref: ObjectRef) -> bytes:
    body = await _get(store, what, key, ref.hash, ref.size_bytes)
    if len(body) != ref.size_bytes:
        raise CorruptError(f"the {what} has another size than its manifest says key={key}")
    return body


async def _get(store: Store, what: str, key: str, name: str, limit_bytes: int) -> bytes:
    """An object named by its content. One byte more than the limit is asked for, so that a longer one can't pass."""
    try:
        body = await store.get(key, 0, limit_bytes + 1)
    except NotFoundError:
        raise CorruptError(f"the {what} of a checkpoint is missing key={key}") from None
    if len(body) > limit_bytes or digest(body) != name:
        raise CorruptError(f"the {what} of a checkpoint doesn't match its hash key={key} hash={name}")
    return body
