"""What this node knows of each rank of a job: plain records that outlive connections, and the facts they make.

The stream to the coordinator may break at any time, and either side may be new after that. So nothing is queued for a
coordinator that is away: after a reconnect every fact that still holds is said again (see coordinator.proto).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ckptd.model.ids import NO_GENERATION, Generation, Snapshot
from ckptd.rpc.v1 import coordinator_pb2 as pb


def to_pb(generation: Generation) -> pb.Generation:
    """A generation for the stream."""
    return pb.Generation(epoch=generation.epoch, n=generation.n)


def from_pb(generation: pb.Generation) -> Generation:
    """A generation from the stream."""
    return Generation(generation.epoch, generation.n)


def snapshot_to_pb(snapshot: Snapshot) -> pb.Snapshot:
    """A snapshot for the stream."""
    return pb.Snapshot(generation=to_pb(snapshot.generation), step=snapshot.step)


def snapshot_from_pb(snapshot: pb.Snapshot) -> Snapshot:
    """A snapshot from the stream."""
    return Snapshot(from_pb(snapshot.generation), snapshot.step)


@dataclass(slots=True)
class RankRecord:
    """One trainer process and its place in its world."""

    world_key: str
    rank: int
    world_size: int
    process: str
    generation: Generation
    base_seq: int  # 1 + the log number of the commit it restored from, 0 when none
    ready: bool
    asked: bool = False
    report: pb.RestoreReport | None = None
    finished: bool = False
    gone: str = ""
    unseen: bool = False  # it was an earlier daemon's, and ended before it came to this one: that is all there is to say

    def up(self) -> pb.FromNode:
        """The message that says this rank is there."""
        return pb.FromNode(
            rank_up=pb.RankUp(
                generation=to_pb(self.generation),
                world_key=self.world_key,
                rank=self.rank,
                world_size=self.world_size,
                process=self.process,
                base_seq=self.base_seq,
                ready=self.ready,
            )
        )

    def facts(self) -> Iterator[pb.FromNode]:
        """Everything the coordinator must know of this rank."""
        if self.unseen:
            yield self.lost()
            return
        yield self.up()
        if self.asked:
            yield pb.FromNode(restore_ask=pb.RestoreAsk(generation=to_pb(self.generation), rank=self.rank))
        if self.report is not None:
            yield pb.FromNode(restore_report=self.report)
        if self.finished:
            yield self.done()
        if self.gone:
            yield self.lost()

    def done(self) -> pb.FromNode:
        """The message that this rank has finished."""
        return pb.FromNode(finished=pb.Finished(generation=to_pb(self.generation), rank=self.rank))

    def lost(self) -> pb.FromNode:
        """The message that this rank's process has ended."""
        return pb.FromNode(
            rank_gone=pb.RankGone(
                generation=to_pb(self.generation),
                world_key=self.world_key,
                rank=self.rank,
                process=self.process,
                reason=self.gone,
            )
        )


@dataclass(slots=True)
class Ranks:
    """The records of one job on this node: those of its newest world, and of a world that is being formed."""

    by_place: dict[tuple[str, int], RankRecord] = field(default_factory=dict)
    agent_world: tuple[str, Generation] = ("", NO_GENERATION)

    def add(self, record: RankRecord) -> None:
        """A trainer said hello. It knows its generation after a reconnect; an agent may have told whose this world's key is.

        A world that no agent vouches for may come again under the same key, with other processes: those wait to be told.
        """
        if not record.generation and record.world_key == self.agent_world[0]:
            record.generation = self.agent_world[1]
        self.by_place[(record.world_key, record.rank)] = record

    def bind(self, world_key: str, generation: Generation) -> list[RankRecord]:
        """The world behind ``world_key`` is ``generation``. Forgets dead ranks of lower ones; returns the ranks it concerns."""
        self.by_place = {
            place: record
            for place, record in self.by_place.items()
            if not (record.gone or record.finished) or not record.generation or record.generation >= generation
        }
        concerned = [record for record in self.by_place.values() if record.world_key == world_key]
        for record in concerned:
            record.generation = generation
        return concerned

    def of(self, generation: Generation) -> list[RankRecord]:
        """The ranks of one generation on this node, gone ones included."""
        return [record for record in self.by_place.values() if record.generation == generation]

    def facts(self) -> Iterator[pb.FromNode]:
        """All records' facts."""
        for record in self.by_place.values():
            yield from record.facts()
