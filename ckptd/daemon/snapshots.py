"""The snapshots that lie in this node's arenas: from the first sealed slot to the slot's release (PROTOCOLS 2).

Each rank's seal is reported; when all ranks of this node have sealed, their slots are uploaded together by this writer. What
the coordinator says (committed, aborted, release) decides when a slot is free again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator

import structlog

from ckptd.daemon.node import Node
from ckptd.daemon.ranks import snapshot_from_pb
from ckptd.daemon.sealed import LocalSnapshot, SealedSlot
from ckptd.daemon.tenants import Tenant
from ckptd.errors import CkptdError
from ckptd.model.ids import Snapshot
from ckptd.pipeline.unchanged import Base, remember
from ckptd.pipeline.write import layout_of, write_part
from ckptd.rpc.v1 import coordinator_pb2 as pb

_log = structlog.get_logger(__name__)
_REMEMBERED = 64  # given-up snapshots whose next attempt number is known; far more than can be open
_MISSED_IN_A_ROW = 3


class Snapshots:
    """All snapshots of one job on this node. At most as many as there are slots."""

    def __init__(self, job: str, node: Node, send: Callable[[pb.FromNode], None]) -> None:
        self._job = job
        self._node = node
        self._send = send
        self._all: dict[Snapshot, LocalSnapshot] = {}
        self._next_number: dict[Snapshot, int] = {}
        self._frees: set[asyncio.Task[None]] = set()
        self._missed_in_a_row = 0
        self._base: Base | None = None
        self._referable: frozenset[int] = frozenset()
        self.newest: pb.Durable | None = None

    def sealed(self, snapshot: Snapshot, tenant: Tenant, index: int, local_ranks: int, stall_seconds: float) -> None:
        """A rank sealed its share, now or for an earlier daemon; ``local_ranks`` of that generation are on this node.

        Raises ProtocolError when the slot isn't sealed.
        """
        tenant.take(index)
        marks = tenant.hosted.arena.look(index)
        slot = SealedSlot(tenant, index, snapshot.step, marks.lengths, stall_seconds)
        local = self._local(snapshot, marks.number)
        if slot.rank in local.slots or local.upload is not None:
            _log.warning("sealed_twice", job=self._job, snapshot=str(snapshot), rank=slot.rank)
            slot.aborted("this step was already saved in this world")
            slot.free()
            return
        tenant.hosted.arena.hold(index, local.number)
        local.slots[slot.rank] = slot
        seq = local.seq if marks.seq is None else marks.seq
        if seq is not None:
            self._committed(local, seq)
            return
        self._send(local.sealed(slot.rank))
        if len(local.slots) >= local_ranks:
            local.staged = time.monotonic()
            self._taken()
            local.upload = self._node.watch.spawn(self._upload(local))

    def missed(self, snapshot: Snapshot, rank: int, reason: str) -> None:
        """A rank can't take part."""
        local = self._local(snapshot)
        local.missed[rank] = reason
        self._not_taken(local, f"rank {rank}: {reason}")
        self._send(local.missing(rank))

    def may_refer_to(self, seqs: Iterable[int]) -> None:
        """The commits in whose data frames of snapshots to come may lie."""
        self._referable = frozenset(seqs)

    def committed(self, message: pb.Committed) -> None:
        """It is durable; the slots stay until a newer snapshot is complete, or free now if their trainers are dead."""
        local = self._all.get(snapshot_from_pb(message.attempt.snapshot))
        if local is None or local.committed or local.number != message.attempt.number:
            return
        now = time.monotonic()
        self._node.metrics.snapshots.labels(self._job, "durable").inc()
        self._node.metrics.durable_seconds.labels(self._job).observe(now - local.staged)
        self.newest = pb.Durable(
            step=local.id.step,
            bytes=local.raw_bytes,
            staged_to_durable_seconds=now - local.staged,
            unix_seconds=time.time(),
            stall_seconds=max((slot.stall_seconds for slot in local.slots.values()), default=0.0),
        )
        _log.info("durable", job=self._job, snapshot=str(local.id), seq=message.seq)
        self._committed(local, message.seq)

    def _committed(self, local: LocalSnapshot, seq: int) -> None:
        local.seq = seq
        if local.part is not None and (self._base is None or self._base.seq < seq):
            self._base = remember(seq, layout_of(local.sources()), local.part)
        local.part = local.encoded = None
        for slot in local.slots.values():
            slot.committed(seq)
        if not local.trainers_alive:
            self._free(local)

    def aborted(self, message: pb.Aborted) -> None:
        """It was given up. Whoever seals it again does so under the next number, on all nodes alike."""
        snapshot = snapshot_from_pb(message.attempt.snapshot)
        self._next_number[snapshot] = max(self._next_number.get(snapshot, 0), message.attempt.number + 1)
        while len(self._next_number) > _REMEMBERED:
            del self._next_number[min(self._next_number)]
        local = self._all.get(snapshot)
        if local is None or local.committed or local.number != message.attempt.number:
            return
        self._node.metrics.snapshots.labels(self._job, "aborted").inc()
        _log.warning("aborted", job=self._job, snapshot=str(local.id), reason=message.reason)
        for slot in local.slots.values():
            slot.aborted(message.reason)
        self._free(local)

    def _taken(self) -> None:
        self._missed_in_a_row = 0
        self._node.metrics.snapshots.labels(self._job, "sealed").inc()
        self._node.troubles.end("snapshots", self._job)

    def _not_taken(self, local: LocalSnapshot, reason: str) -> None:
        """Now and then a snapshot is missed; over and over is a trouble."""
        if not local.missing_said:
            local.missing_said = True
            self._missed_in_a_row += 1
            self._node.metrics.snapshots.labels(self._job, "missed").inc()
        if self._missed_in_a_row >= _MISSED_IN_A_ROW:
            what = f"the last {_MISSED_IN_A_ROW} snapshots or more were missed here, the last one by {reason}"
            self._node.troubles.begin("snapshots", what, self._job)

    def uploads(self) -> Iterator[pb.Upload]:
        """What is on its way to the store."""
        for local in self._all.values():
            if local.upload is not None and not local.upload.done():
                yield pb.Upload(
                    step=local.id.step,
                    done_bytes=local.stored_bytes,
                    total_bytes=local.raw_bytes,
                    seconds=time.monotonic() - local.staged,
                )

    @property
    def settled(self) -> bool:
        """Nothing lies here whose fate is open."""
        return all(local.committed for local in self._all.values())

    def release_before(self, snapshot: Snapshot) -> None:
        """A newer snapshot is complete on all ranks: older ones may go, once they are committed."""
        for local in [local for local in self._all.values() if local.id < snapshot and local.committed]:
            self._free(local)

    def trainer_gone(self) -> None:
        """A trainer's process ended: committed snapshots of the dead serve nobody any more from here."""
        for local in [local for local in self._all.values() if local.committed and not local.trainers_alive]:
            self._free(local)

    def give_up_before(self, seconds: float) -> None:
        """Of snapshots whose trainers all ended before this time, and whose coordinator has not spoken since, nobody asks."""
        for local in list(self._all.values()):
            tenants = [slot.tenant for slot in local.slots.values()]
            if tenants and not local.trainers_alive and max(tenant.since_seconds for tenant in tenants) < seconds:
                _log.error("sealed_snapshot_given_up", job=self._job, snapshot=str(local.id), why="no coordinator, no trainer")
                self._free(local)

    def facts(self) -> Iterator[pb.FromNode]:
        """What the coordinator must know."""
        for local in self._all.values():
            yield from local.facts()

    async def drain(self, seconds: float) -> None:
        """Let running uploads end, for at most so long; then stop them. What is sealed stays so, for the next daemon."""
        uploads = self._uploads()
        if uploads:
            await asyncio.wait(uploads, timeout=seconds)
        for upload in self._uploads():
            upload.cancel()
        if waits := [*self._uploads(), *self._frees]:
            await asyncio.wait(waits)

    def _uploads(self) -> list[asyncio.Task[None]]:
        return [local.upload for local in self._all.values() if local.upload is not None and not local.upload.done()]

    def _local(self, snapshot: Snapshot, number: int | None = None) -> LocalSnapshot:
        if snapshot not in self._all:
            self._all[snapshot] = LocalSnapshot(snapshot, self._next_number.get(snapshot, 0) if number is None else number)
        return self._all[snapshot]

    def _free(self, local: LocalSnapshot) -> None:
        del self._all[local.id]
        task = self._node.watch.spawn(self._free_when_idle(local))
        self._frees.add(task)
        task.add_done_callback(self._frees.discard)

    async def _free_when_idle(self, local: LocalSnapshot) -> None:
        """A slot is free only when no thread of the pipeline reads it any more."""
        if local.upload is not None and not local.upload.done():
            local.upload.cancel()
            await asyncio.wait([local.upload])
        for slot in local.slots.values():
            slot.free()

    async def _upload(self, local: LocalSnapshot) -> None:
        node = self._node

        raw_bytes, stored_bytes = node.metrics.raw_bytes.labels(self._job), node.metrics.stored_bytes.labels(self._job)

        def stored(raw: int, stored: int) -> None:
            local.stored_bytes += raw
            raw_bytes.inc(raw)
            stored_bytes.inc(stored)

        try:
            part = await write_part(
                node.upload_store,
                self._job,
                local.attempt,
                node.writer,
                local.sources(),
                node.write_options,
                node.pool,
                node.segment_numbers,
                stored,
                node.meter,
                self._base,
                self._referable,
            )
        except CkptdError as error:
            # The data store tries for ever what may work later; what comes here won't.
            _log.error("upload_failed", job=self._job, snapshot=str(local.id), error=str(error))
            node.troubles.begin("uploads", f"the upload of step {local.id.step} was given up: {error}", self._job)
            for rank in local.slots:
                self.missed(local.id, rank, f"node {node.name} can't upload: {error}")
            return
        node.troubles.end("uploads", self._job)
        local.part, local.encoded = part, part.encode()
        self._send(local.uploaded(local.encoded))
