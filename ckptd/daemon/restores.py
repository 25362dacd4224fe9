"""Restores: one target for all ranks of a generation, and the delivery of what each rank wants (PROTOCOLS 5)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from ckptd.daemon.node import Node
from ckptd.daemon.peer import Peer
from ckptd.daemon.ranks import from_pb
from ckptd.errors import CkptdError, RestoreError
from ckptd.model.ids import Generation
from ckptd.model.region import Ints
from ckptd.restore.checkpoint import Checkpoint, open_checkpoint
from ckptd.restore.fetch import fetch
from ckptd.restore.plan import plan
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd_client.arena import PAGE
from ckptd_client.messages import RestoreEnd, RestoreFrame, RestoreRing, Want

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Target:
    """What one generation restores, and how it ended."""

    message: pb.RestoreTarget | None = None
    outcome: str | None = None  # "" once all ranks have verified their parts, else why not
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


class Ring:
    """Frame buffers that go round between daemon and trainer; a buffer without credit is not written."""

    def __init__(self, memory: memoryview, buffers: int, buffer_bytes: int) -> None:
        self.count = buffers
        self._memory = memory
        self._buffer_bytes = buffer_bytes
        self._lent: set[int] = set()
        self._free: asyncio.Queue[int] = asyncio.Queue()
        for index in range(buffers):
            self._free.put_nowait(index)

    async def acquire(self) -> tuple[int, memoryview]:
        """Wait for a free buffer."""
        index = await self._free.get()
        self._lent.add(index)
        return index, self._memory[index * self._buffer_bytes : (index + 1) * self._buffer_bytes]

    def credit(self, index: int) -> None:
        """The trainer has copied what it needs out of a buffer."""
        if index in self._lent:
            self._lent.remove(index)
            self._free.put_nowait(index)


class Restores:
    """All restores of one job on this node."""

    def __init__(self, job: str, node: Node) -> None:
        self._job = job
        self._node = node
        self._targets: dict[Generation, Target] = {}
        self._checkpoint: tuple[str, asyncio.Task[Checkpoint]] | None = None

    def _of(self, generation: Generation) -> Target:
        for older in [known for known in self._targets if known < generation]:
            del self._targets[older]
        return self._targets.setdefault(generation, Target())

    async def targeted(self, message: pb.RestoreTarget) -> None:
        """The coordinator named the checkpoint."""
        target = self._of(from_pb(message.generation))
        async with target.changed:
            target.message = message
            target.changed.notify_all()

    async def ended(self, generation: Generation, outcome: str) -> None:
        """All ranks have it ("") or the restore failed (why)."""
        target = self._of(generation)
        async with target.changed:
            target.outcome = target.outcome or outcome
            target.changed.notify_all()

    async def target(self, generation: Generation) -> pb.RestoreTarget:
        """Wait for the target. Raises RestoreError when there will be none. The trainer bounds the wait."""
        target = self._of(generation)
        async with target.changed:
            await target.changed.wait_for(lambda: target.message is not None or target.outcome)
        if target.message is None:
            raise RestoreError(f"nothing can be restored: {target.outcome}")
        return target.message

    async def outcome(self, generation: Generation) -> None:
        """Wait until every rank has reported. Raises RestoreError when one couldn't. The trainer bounds the wait."""
        target = self._of(generation)
        async with target.changed:
            await target.changed.wait_for(lambda: target.outcome is not None)
        if target.outcome:
            raise RestoreError(f"no rank restores, because not all of them can: {target.outcome}")

    async def checkpoint(self, manifest: str) -> Checkpoint:
        """The checkpoint behind a manifest's hash; opened once for all ranks of the node."""
        if self._checkpoint is None or self._checkpoint[0] != manifest or _failed(self._checkpoint[1]):
            opening = asyncio.create_task(open_checkpoint(self._node.read_store, self._job, manifest))
            self._checkpoint = (manifest, opening)
        return await asyncio.shield(self._checkpoint[1])


async def deliver(
    node: Node, checkpoint: Checkpoint, wants: Sequence[Want], peer: Peer, request: int, lend: Callable[[Ring | None], None]
) -> None:
    """Fetch, verify and hand over every byte of ``wants``; ``lend`` says whose credits the peer's messages mean."""
    reads = await asyncio.to_thread(plan, checkpoint.layout, checkpoint.index, wants)
    size = node.settings.daemon.frame_bytes
    size = max([size, *(read.raw_bytes for read in reads)])
    size = -(-size // PAGE) * PAGE
    buffers = max(1, min(len(reads), node.settings.arena.ring_bytes // size))
    async with node.arenas.ring(buffers, size) as (fd, memory):
        ring = Ring(memory, buffers, size)
        lend(ring)
        try:
            peer.send(RestoreRing(buffers, size), (fd,))

            def hand_over(buffer: int, copies: Ints) -> None:
                peer.send(RestoreFrame(buffer, copies.tobytes()))

            await fetch(node.read_store, checkpoint, reads, ring, hand_over, node.pool, node.fetch_budget)
        finally:
            lend(None)
    peer.send(RestoreEnd(request))


def _failed(task: asyncio.Task[Checkpoint]) -> bool:
    return task.done() and (task.cancelled() or isinstance(task.exception(), CkptdError))
