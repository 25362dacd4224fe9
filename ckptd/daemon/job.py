"""One job on this node: its agent, its ranks, its snapshots, and the line to its coordinator."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import structlog

from ckptd.daemon.agent import Agent
from ckptd.daemon.arenas import HostedArena
from ckptd.daemon.link import Link
from ckptd.daemon.node import Node
from ckptd.daemon.peer import Peer
from ckptd.daemon.process import Exit, Life
from ckptd.daemon.ranks import RankRecord, Ranks, from_pb, snapshot_from_pb, to_pb
from ckptd.daemon.report import REPORTED, troubles_to_pb
from ckptd.daemon.restores import Restores
from ckptd.daemon.snapshots import Snapshots
from ckptd.daemon.tenants import Deed, Tenant, Tenants, recovered
from ckptd.daemon.trainer import Trainer
from ckptd.errors import ProtocolError
from ckptd.model.ids import Generation, Snapshot
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd_client.arena import Schedule
from ckptd_client.messages.agents import Complete, Regroup, Waiting
from ckptd_client.messages.coding import Message
from ckptd_client.messages.hello import PROTOCOL_VERSION, Gen, Hello, Refused
from ckptd_client.messages.saving import Notice

_log = structlog.get_logger(__name__)


class Job:
    """Routes between the trainers and the agent on one side and the coordinator on the other."""

    def __init__(self, name: str, node: Node) -> None:
        self.name = name
        self.node = node
        self.schedule: Schedule | None = None
        self.refusal = ""  # why a coordinator that answers can't be worked with, until one has accepted this daemon
        self.restores = Restores(name, node)
        self._link = Link(name, node, self._facts, self._heartbeat, self._from_coordinator, self._refused, self._is_over)
        self.send = self._link.send
        self.snapshots = Snapshots(name, node, self.send)
        self._ranks = Ranks()
        self.tenants = Tenants()
        self._trainers: dict[int, Trainer] = {}
        self._agent: Agent | None = None
        self._complete: Complete | None = None
        self._ended_agent = ""
        self._regroup: Regroup | None = None
        self._arena_lock = asyncio.Lock()
        self._running = node.watch.spawn(self._link.run())

    # ---- from this node

    async def trainer(self, peer: Peer, hello: Hello) -> None:
        """Serve one trainer until it is gone."""
        record = RankRecord(
            hello.world_key,
            hello.rank,
            hello.world_size,
            peer.process,
            Generation(*hello.generation),
            hello.base_seq,
            hello.generation != (0, 0),
        )
        self._ranks.add(record)
        self.tenants.replaced(record)
        trainer = Trainer(self, peer, record)
        self._trainers[id(trainer)] = trainer
        if len(self._trainers) == 1:
            for trouble in self.node.troubles.of(self.name):
                trainer.notice(f"{trouble.topic}: {trouble.what}")
        self.send(record.up())
        await trainer.run()
        del self._trainers[id(trainer)]
        await peer.exited.wait()
        self.vacated(peer.process)
        record = trainer.record  # of the world that it was in last
        if self._ranks.by_place.get((record.world_key, record.rank)) is record:
            record.gone = "the trainer's process ended"
            self.send(record.lost())
            self.restores.look(record.generation)

    def enter(self, record: RankRecord) -> None:
        """A connected trainer is part of another world from now on."""
        self._ranks.add(record)
        self.send(record.up())

    def leave(self, record: RankRecord) -> None:
        """A connected trainer does nothing more in its world, which may never have been formed."""
        if not record.generation:
            record.gone = "it waits for this world no more"
            self.send(record.lost())
        elif not record.finished:
            record.finished = True
            self.send(self._heartbeat())  # with its last step: no later one speaks of it
            self.send(record.done())

    def vacated(self, process: str) -> None:
        """A process has ended, or writes nowhere any more."""
        for tenant in self.tenants:
            if tenant.deed.process == process:
                tenant.end()
        self.snapshots.trainer_gone()
        self.tenants.tidy()

    def take_in(self, tenant: Tenant, index: int, stall_seconds: float = 0.0) -> None:
        """A slot is sealed. Raises ProtocolError when it isn't."""
        slot = tenant.hosted.arena.look(index)
        generation = Generation(*slot.generation)
        local_ranks = self.local_ranks(generation)
        self.snapshots.sealed(Snapshot(generation, slot.step), tenant, index, local_ranks, stall_seconds)

    def recover(self, arenas: Sequence[tuple[HostedArena, Deed]]) -> None:
        """Take over what an earlier daemon of this node left of this job."""
        sealed = []
        for hosted, deed in arenas:
            tenant, pidfd = recovered(hosted, deed)
            self.tenants.add(tenant)
            sealed += [(tenant, index) for index in tenant.sealed_slots()]
            if pidfd >= 0:
                self.node.watch.spawn(self._watch_absent(tenant, Exit(pidfd)))
        # Whose attempt number is known goes first: the others are of the same attempt.
        for tenant, index in sorted(sealed, key=lambda pair: pair[0].hosted.arena.look(pair[1]).number is None):
            try:
                self.take_in(tenant, index)
            except ProtocolError as error:
                _log.error("sealed_slot_unreadable", job=self.name, rank=tenant.deed.rank, error=str(error))
        for tenant in self.tenants:
            if not tenant.alive:
                self._lost_unseen(tenant)

    async def _watch_absent(self, tenant: Tenant, end: Exit) -> None:
        """Its trainer has not come to this daemon yet, and may end before it does."""
        await end.event.wait()
        self._lost_unseen(tenant)

    def _lost_unseen(self, tenant: Tenant) -> None:
        deed = tenant.deed
        tenant.end()
        tenant.retire()
        self.snapshots.trainer_gone()
        self.tenants.tidy()
        if (deed.world_key, deed.rank) not in self._ranks.by_place:  # else it, or its successor, has come to us after all
            generation, _ = tenant.world
            record = RankRecord(deed.world_key, deed.rank, deed.world_size, deed.process, generation, deed.base_seq, True)
            record.gone, record.unseen = "the trainer's process ended", True
            self._ranks.add(record)
            self.send(record.lost())

    async def agent(self, peer: Peer, generation: Gen) -> None:
        """Serve the agent until it is gone. ``generation`` is the one that it says to be part of."""
        if self._agent is not None and not self._agent.peer.exited.is_set() and self._agent.peer.process != peer.process:
            reason = "another agent of this job is running on this node; stop it first"
            peer.send(Refused(PROTOCOL_VERSION, "job", reason))
            peer.close()
            return
        agent = self._agent = Agent(self, peer)
        if self._regroup is not None and self._regroup.generation == generation:
            peer.send(self._regroup)  # it may have been told while it was away
        if self._complete is not None and peer.process == self._ended_agent:
            peer.send(self._complete)
        await agent.run()
        await peer.exited.wait()
        if self._agent is agent:
            agent.join = agent.world = None
            self.send(agent.gone())

    def bind(self, world_key: str, generation: Generation) -> None:
        """A world's key belongs to a generation: its trainers are part of it from now on."""
        concerned = self._ranks.bind(world_key, generation)
        for trainer in self._trainers.values():
            if trainer.record in concerned:
                trainer.place()
                self.send(trainer.record.up())

    def bind_agent(self, world_key: str, generation: Generation) -> None:
        """As `bind`, for the world that the agent starts next: each of its worlds has a key of its own."""
        self._ranks.agent_world = (world_key, generation)
        self.bind(world_key, generation)

    def local_ranks(self, generation: Generation) -> int:
        """How many ranks of a generation run on this node."""
        if self._agent is not None and self._agent.world is not None and self._agent.generation == generation:
            return self._agent.world.local_world_size
        # After a restart trainers come back one by one: what their arenas say counts as well.
        return max(len(self._ranks.of(generation)), self.tenants.local_ranks(generation))

    def awaited(self, generation: Generation) -> set[int]:
        """Which ranks of a generation on this node have yet to say what they want restored, or that they have it."""
        records = self._ranks.of(generation)
        return {each.rank for each in records if not (each.gone or each.finished or each.ready or each.report is not None)}

    async def make_arena(self, slots: int, slot_bytes: int, deed: Deed) -> HostedArena:
        """One at a time: the sum of all arenas is bounded. Raises ResourceError, ProtocolError."""
        async with self._arena_lock:
            return await asyncio.to_thread(self.node.arenas.create, slots, slot_bytes, len(deed.objects), deed.encode())

    def tidy(self, now: float) -> None:
        """Let go of what nobody has asked for in `arena.keep_seconds`."""
        before = now - self.node.settings.arena.keep_seconds
        for tenant in self.tenants:
            if tenant.life is Life.UNKNOWN and tenant.since_seconds < before:
                tenant.end()
        self.snapshots.give_up_before(before)
        self.snapshots.trainer_gone()
        self.tenants.tidy()

    @property
    def deserted(self) -> bool:
        """Nobody on this node needs it any more, and the coordinator has heard all that there was to say."""
        agents = self._agent is not None and not self._agent.peer.exited.is_set()
        inhabited = any(tenant.alive for tenant in self.tenants)
        return not (self._trainers or agents or inhabited) and self.snapshots.settled and self._link.connected

    def _is_over(self) -> bool:
        """The job is complete, and nobody here has begun again: its coordinator has every right to be gone."""
        begun_again = self._agent is not None and self._agent.peer.process != self._ended_agent
        return self._complete is not None and not (self._trainers or begun_again) and self.snapshots.settled

    async def close(self, drain_seconds: float) -> None:
        """Finish uploads. Says goodbye only when nothing is left for the next daemon of this node."""
        await self.snapshots.drain(drain_seconds)
        await self._link.close(self._running, goodbye=self.deserted)
        self.node.troubles.forget(self.name)

    # ---- to and from the coordinator

    def _facts(self) -> Iterator[pb.FromNode]:
        if self._agent is not None:
            yield from self._agent.facts()
            if self._agent.peer.exited.is_set():
                yield self._agent.gone()
        yield from self._ranks.facts()
        yield from self.snapshots.facts()

    def _heartbeat(self) -> pb.FromNode:
        ranks = [
            pb.RankStatus(
                generation=to_pb(trainer.record.generation),
                rank=trainer.record.rank,
                step=trainer.step,
                free_slots=trainer.free_slots,
            )
            for trainer in self._trainers.values()
            if trainer.record.generation
        ]
        return pb.FromNode(heartbeat=pb.Heartbeat(ranks=ranks, report=self._report()))

    # ---- for people

    def _report(self) -> pb.NodeReport:
        return pb.NodeReport(
            troubles=troubles_to_pb(self.node.troubles.of(self.name)),
            uploads=list(self.snapshots.uploads())[:REPORTED],
            newest=self.snapshots.newest,
        )

    def status(self) -> pb.JobOnNode:
        """How it is on this node."""
        ranks = [
            pb.RankOnNode(
                rank=trainer.record.rank,
                world_size=trainer.record.world_size,
                generation=to_pb(trainer.record.generation),
                step=trainer.step,
                free_slots=trainer.free_slots,
            )
            for trainer in self._trainers.values()
        ]
        return pb.JobOnNode(
            job=self.name,
            coordinator=self._link.address,
            connected=self._link.connected,
            ranks=ranks,
            report=self._report(),
            agent=self._agent is not None and not self._agent.peer.exited.is_set(),
        )

    def measure(self) -> None:
        """Set this job's gauges."""
        metrics, trainers = self.node.metrics, self._trainers.values()
        metrics.ranks.labels(self.name).set(len(trainers))
        metrics.step.labels(self.name).set(max((trainer.step for trainer in trainers), default=0))
        metrics.free_slots.labels(self.name).set(min((trainer.free_slots for trainer in trainers), default=0))
        metrics.connected.labels(self.name).set(self._link.connected)

    def notice(self, text: str) -> None:
        """Tell one trainer of this node; its log is the one that people look at."""
        first = min(self._trainers.values(), key=lambda trainer: trainer.record.rank, default=None)
        if first is not None:
            first.notice(text)
        else:
            self._to_agent(Notice(text))

    def _refused(self, text: str) -> None:
        if text and self._link.accepted:
            return  # it worked before: whoever waits may go on waiting until it does again
        self.refusal = text
        if not text:
            return
        for trainer in self._trainers.values():
            trainer.refuse(text)
        if self._agent is not None:
            self._agent.refuse(text)

    async def _from_coordinator(self, message: pb.ToNode) -> None:
        match message.WhichOneof("body"):
            case "formed":
                self._formed(message.formed)
            case "regroup":
                generation = from_pb(message.regroup.generation)
                self._regroup = Regroup((generation.epoch, generation.n), message.regroup.reason)
                self._to_agent(self._regroup)
            case "waiting":
                self._to_agent(Waiting(message.waiting.reason))
            case "complete":
                self._completed(message.complete)
            case "restore_target":
                await self.restores.targeted(message.restore_target)
            case "restore_go":
                await self.restores.ended(from_pb(message.restore_go.generation), "")
            case "restore_failed":
                await self.restores.ended(
                    from_pb(message.restore_failed.generation), message.restore_failed.reason or "no reason"
                )
            case "schedule":
                self._scheduled(message.schedule)
            case "release":
                self.snapshots.release_before(snapshot_from_pb(message.release.before))
            case "bases":
                self.snapshots.may_refer_to(message.bases.seqs)
            case "committed":
                self.snapshots.committed(message.committed)
            case "aborted":
                self.snapshots.aborted(message.aborted)
                for trainer in self._trainers.values():
                    trainer.aborted(snapshot_from_pb(message.aborted.attempt.snapshot), message.aborted.reason)
            case "kv_value":
                if self._agent is not None:
                    self._agent.kv_value(message.kv_value)
            case other:
                _log.warning("unknown_message", job=self.name, body=other)

    def _formed(self, message: pb.Formed) -> None:
        generation = from_pb(message.generation)
        _log.info("formed", job=self.name, generation=str(generation), node_rank=message.node_rank, nodes=message.num_nodes)
        if message.world_key:
            self.bind(message.world_key, generation)
        elif self._agent is not None:
            self._agent.formed(message)

    def _completed(self, message: pb.Complete) -> None:
        if message.failed:
            _log.error("THE JOB IS STOPPED", job=self.name, diagnosis=message.reason)
        self._complete, self._ended_agent = Complete(message.reason, message.failed), message.agent
        if self._agent is not None and self._agent.peer.process == message.agent:
            self._to_agent(self._complete)

    def _to_agent(self, message: Message) -> None:
        if self._agent is not None:
            self._agent.peer.send(message)

    def _scheduled(self, message: pb.Schedule) -> None:
        self.schedule = Schedule((message.generation.epoch, message.generation.n), message.first, message.every)
        for trainer in self._trainers.values():
            trainer.write_schedule()
