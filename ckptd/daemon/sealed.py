"""One snapshot, as far as it lies in this node's arenas: the sealed slots, and what the coordinator must know of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from ckptd.daemon.ranks import snapshot_to_pb
from ckptd.daemon.tenants import Tenant
from ckptd.model.ids import Attempt, Snapshot
from ckptd.model.part import Part
from ckptd.pipeline.write import RankSource
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd_client.messages.saving import Aborted, Durable


@dataclass(slots=True)
class SealedSlot:
    """One rank's share, in its tenant's arena."""

    tenant: Tenant
    index: int
    step: int
    lengths: list[int]
    stall_seconds: float  # how long training stood still for it; 0 when an earlier daemon was told

    @property
    def rank(self) -> int:
        """Whose it is."""
        return self.tenant.deed.rank

    def source(self) -> RankSource:
        """What the pipeline reads."""
        slot = self.tenant.hosted.arena.slot(self.index)
        return RankSource(self.rank, self.tenant.deed.items, self.lengths, slot)

    def committed(self, seq: int) -> None:
        """It is durable. Written down first, so that a next daemon doesn't upload it again."""
        self.tenant.hosted.arena.note_commit(self.index, seq)
        self.tenant.tell(Durable(self.step, seq))

    def aborted(self, reason: str) -> None:
        """It was given up."""
        self.tenant.tell(Aborted(self.step, reason))

    @property
    def raw_bytes(self) -> int:
        """Of the state in it."""
        objects = sum(self.lengths)
        return objects + sum(item.capacity for item in self.tenant.deed.items if item.kind != "object")

    def free(self) -> None:
        """Give the slot and its hold on the arena back."""
        self.tenant.give_back(self.index)


@dataclass(slots=True)
class LocalSnapshot:
    """One snapshot, as far as it lies on this node."""

    id: Snapshot
    number: int
    slots: dict[int, SealedSlot] = field(default_factory=dict)
    missed: dict[int, str] = field(default_factory=dict)
    upload: asyncio.Task[None] | None = None
    part: Part | None = None
    encoded: bytes | None = None  # the part, as it is sent until the snapshot is settled
    staged: float = field(default_factory=time.monotonic)  # when all ranks of this node had sealed; found later: when that was
    stored_bytes: int = 0  # raw bytes that are in the store
    missing_said: bool = False
    seq: int | None = None  # of its commit

    @property
    def committed(self) -> bool:
        """Is it durable?"""
        return self.seq is not None

    @property
    def trainers_alive(self) -> bool:
        """Does any trainer live whose share it is?"""
        return any(slot.tenant.alive for slot in self.slots.values())

    @property
    def attempt(self) -> Attempt:
        """The try at making it durable."""
        return Attempt(self.id, self.number)

    @property
    def raw_bytes(self) -> int:
        """Of all that this node stores for it."""
        return sum(slot.raw_bytes for slot in self.slots.values())

    def sources(self) -> list[RankSource]:
        """What the pipeline reads of all of them."""
        return [slot.source() for _, slot in sorted(self.slots.items())]

    @property
    def _attempt(self) -> pb.Attempt:
        return pb.Attempt(snapshot=snapshot_to_pb(self.id), number=self.number)

    def facts(self) -> Iterator[pb.FromNode]:
        """What the coordinator must know of it."""
        if self.committed:
            return
        for rank in self.slots:
            yield self.sealed(rank)
        for rank in self.missed:
            yield self.missing(rank)
        if self.encoded is not None:
            yield self.uploaded(self.encoded)

    def sealed(self, rank: int) -> pb.FromNode:
        """The message that a rank has staged its share."""
        return pb.FromNode(sealed=pb.Sealed(attempt=self._attempt, rank=rank))

    def missing(self, rank: int) -> pb.FromNode:
        """The message that a rank can't take part."""
        return pb.FromNode(missed=pb.Missed(attempt=self._attempt, rank=rank, reason=self.missed[rank]))

    def uploaded(self, part: bytes) -> pb.FromNode:
        """The message that all of this node's share is in the store."""
        return pb.FromNode(uploaded=pb.Uploaded(attempt=self._attempt, ranks=sorted(self.slots), part=part))
