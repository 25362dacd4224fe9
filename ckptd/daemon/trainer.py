"""The daemon's side of the conversation with one trainer (`ckptd_client.messages` shows both)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from ckptd.daemon.peer import Peer
from ckptd.daemon.process import Life
from ckptd.daemon.ranks import RankRecord, to_pb
from ckptd.daemon.tenants import Tenant, deed_of
from ckptd.daemon.together import Share
from ckptd.errors import CkptdError, ConfigError, CorruptError, NewerFormatError, NotFoundError, ProtocolError
from ckptd.model.ids import NO_GENERATION, Snapshot
from ckptd.model.layout import GLOBAL
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd_client.messages.coding import Message
from ckptd_client.messages.hello import ONE_SAVE, WORLD_MAX, Ok
from ckptd_client.messages.restoring import RestoreAsk, RestoreCredit, RestoreInfo, RestoreRead, RestoreReport
from ckptd_client.messages.saving import (
    Aborted,
    Enter,
    Finished,
    Missed,
    Notice,
    Register,
    Registered,
    Resume,
    Resumed,
    Sealed,
    Vacate,
)

if TYPE_CHECKING:
    from ckptd.daemon.job import Job

_log = structlog.get_logger(__name__)


class Trainer:
    """One connected trainer process."""

    def __init__(self, job: Job, peer: Peer, record: RankRecord) -> None:
        self._job = job
        self._peer = peer
        self.record = record
        self._placed = asyncio.Event()
        self._tenant: Tenant | None = None
        self._layout = 0
        self._share: Share | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking: dict[int, asyncio.Task[None]] = {}
        if record.generation:
            self._placed.set()

    @property
    def step(self) -> int:
        """Furthest completed step, as the trainer writes it into the arena."""
        return self._tenant.hosted.arena.step if self._tenant is not None else 0

    @property
    def free_slots(self) -> int:
        """How many snapshots it could take now."""
        return self._tenant.free_slots if self._tenant is not None else 0

    def place(self) -> None:
        """Its generation is known now."""
        self._placed.set()
        self.write_schedule()

    def notice(self, text: str) -> None:
        """Something for its user to know."""
        self._peer.send(Notice(text))

    def write_schedule(self) -> None:
        """Put its world, and the job's schedule, where the trainer and the next daemon read them without a call."""
        if self._tenant is None or not self.record.generation:
            return
        arena, schedule = self._tenant.hosted.arena, self._job.schedule
        arena.write_world(_pair(self.record), self._job.local_ranks(self.record.generation))
        if schedule is not None and schedule.generation == _pair(self.record):
            arena.write_schedule(schedule)

    async def run(self) -> None:
        """Converse until the connection ends. Its arena stays for as long as the process lives, which may come back."""
        try:
            while (message := await self._peer.next()) is not None:
                await self._handle(message)
        except ProtocolError as error:
            _log.error("trainer_protocol", job=self._job.name, rank=self.record.rank, error=str(error))
        finally:
            self._peer.close()
            for task in list(self._tasks):
                task.cancel()
            self._job.node.troubles.end(f"shared memory of rank {self.record.rank}", self._job.name)
            if self._tenant is not None:
                self._tenant.disconnected()

    async def _handle(self, message: Message) -> None:
        match message:
            case Register():
                await self._register(message)
            case Resume():
                self._resume(message)
            case Enter():
                self._enter(message)
            case Vacate():
                self._job.vacated(self._peer.process)
            case RestoreCredit():
                if self._share is not None:
                    self._share.credit(message.buffers)
            case RestoreAsk():
                self._asked(message)
            case RestoreRead():
                self._spawn(self._restore_read(message), message.id)
            case RestoreReport():
                self._spawn(self._restore_report(message), message.id)
            case Sealed():
                await self._in_world()
                self._sealed(message)
            case Missed():
                await self._in_world()
                self._job.snapshots.missed(Snapshot(self.record.generation, message.step), self.record.rank, message.reason)
            case Finished():
                await self._in_world()
                self._job.leave(self.record)
                self._peer.send(Ok(message.id))
            case _:
                raise ProtocolError(f"a trainer may not send {type(message).__name__}")

    def _enter(self, message: Enter) -> None:
        if not 0 <= message.rank < message.world_size <= WORLD_MAX:
            raise ProtocolError(f"a rank lies in its world rank={message.rank} world_size={message.world_size}")
        old = self.record
        self._job.leave(old)
        if not message.world_key:
            return
        if (old.rank, old.world_size) != (message.rank, message.world_size) and self._tenant is not None:
            self._tenant.retire()
            self._tenant = None
        self._placed.clear()
        self.record = RankRecord(
            message.world_key, message.rank, message.world_size, self._peer.process, NO_GENERATION, base_seq=0, ready=False
        )
        self._job.enter(self.record)

    def aborted(self, snapshot: Snapshot, reason: str) -> None:
        """A snapshot of its world was given up. Whose world is there for this one alone must hear it before it has sealed."""
        if self.record.world_key.startswith(ONE_SAVE) and self.record.generation == snapshot.generation:
            self._peer.send(Aborted(snapshot.step, reason))

    def _asked(self, message: RestoreAsk) -> None:
        request = message.id
        if self._job.refusal:
            self._peer.fail(request, ConfigError(self._job.refusal))
            return
        task = self._asking[request] = self._spawn(self._restore_ask(request, message.bare), request)
        task.add_done_callback(lambda _: self._asking.pop(request, None))

    def refuse(self, text: str) -> None:
        """The job's coordinator and this daemon can't work together: there will be no answer to what is asked now."""
        for request, task in list(self._asking.items()):
            task.cancel()
            self._peer.fail(request, ConfigError(text))

    async def _in_world(self) -> None:
        """Wait until this rank's generation is known; a trainer that dies meanwhile ends the wait."""
        waits = [asyncio.ensure_future(self._placed.wait()), asyncio.ensure_future(self._peer.exited.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def _spawn(self, work: Coroutine[None, None, None], request: int) -> asyncio.Task[None]:
        async def guarded() -> None:
            try:
                await work
            except CkptdError as error:
                self._peer.fail(request, error)

        task = self._job.node.watch.spawn(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _register(self, message: Register) -> None:
        try:
            deed = deed_of(self._job.name, self.record, message.items)
            hosted = await self._job.make_arena(message.slots, message.slot_bytes, deed)
        except CkptdError as error:
            what = f"rank {self.record.rank} has no room, and its state is not saved: {error}"
            self._job.node.troubles.begin(f"shared memory of rank {self.record.rank}", what, self._job.name)
            self._peer.fail(message.id, error)
            return
        self._job.node.troubles.end(f"shared memory of rank {self.record.rank}", self._job.name)
        if self._tenant is not None:
            hosted.arena.step = self._tenant.hosted.arena.step
            self._tenant.retire()
        tenant = Tenant(hosted, deed, Life.ALIVE)
        self._job.tenants.add(tenant)
        self._connect(tenant)
        if not self.record.ready:
            self.record.ready = True
            self._job.send(self.record.up())
        self._peer.send(Registered(message.id, self._layout, hosted.size_bytes), (hosted.fd,))

    def _resume(self, message: Resume) -> None:
        """It comes back with its arena. What it sealed while no daemon listened is taken in now."""
        try:
            tenant = self._job.tenants.claim(message.arena, self.record)
        except ProtocolError as error:
            self._peer.fail(message.id, error)
            return
        self._connect(tenant)
        for index in tenant.sealed_slots():
            self._job.take_in(tenant, index)
        self._peer.send(Resumed(message.id, self._layout, tenant.clear()))
        _log.info("trainer_resumed", job=self._job.name, rank=self.record.rank, free_slots=tenant.free_slots)

    def _connect(self, tenant: Tenant) -> None:
        self._layout += 1
        self._tenant = tenant
        tenant.connected(self._peer.send, self._layout)
        self.write_schedule()

    def _sealed(self, message: Sealed) -> None:
        tenant = self._tenant
        if tenant is None or message.layout != self._layout or not 0 <= message.slot < tenant.hosted.arena.slots:
            raise ProtocolError(f"a slot was sealed that is not the trainer's slot={message.slot} layout={message.layout}")
        marks = tenant.hosted.arena.look(message.slot)
        if (marks.generation, marks.step) != (_pair(self.record), message.step):
            raise ProtocolError(f"a sealed slot's marks say another snapshot slot={message.slot} step={message.step}")
        self._job.take_in(tenant, message.slot, message.stall_seconds)

    async def _restore_ask(self, request: int, bare: bool) -> None:
        await self._in_world()
        self.record.asked = True
        self._job.send(pb.FromNode(restore_ask=pb.RestoreAsk(generation=to_pb(self.record.generation), rank=self.record.rank)))
        target = await self._job.restores.target(self.record.generation)
        generation = _pair(self.record)
        if bare or not target.seq_plus_one:
            size = self.record.world_size
            self._peer.send(
                RestoreInfo(request, generation, target.seq_plus_one - 1, target.step, size, {}, {}, [], target.loss)
            )
            return
        with self._reading(target):
            checkpoint = await self._job.restores.checkpoint(target.manifest)
            store = self._job.node.read_store
            objects, own = await checkpoint.read_objects(store, (GLOBAL, self.record.rank))
        self._peer.send(
            RestoreInfo(
                request,
                generation,
                target.seq_plus_one - 1,
                target.step,
                checkpoint.manifest.world_size,
                objects,
                own,
                [(fqn, rank, dtype, tuple(shape)) for fqn, rank, dtype, shape in checkpoint.tensors()],
                target.loss,
            )
        )

    async def _restore_read(self, message: RestoreRead) -> None:
        generation = self.record.generation
        target = await self._job.restores.target(generation)
        with self._reading(target):
            checkpoint = await self._job.restores.checkpoint(target.manifest)
            share = self._share = Share(self.record.rank, message.wants, self._peer, message.id)
            try:
                await self._job.restores.deliver(generation, checkpoint, share, lambda: self._job.awaited(generation))
            finally:
                self._share = None

    async def _restore_report(self, message: RestoreReport) -> None:
        record = self.record
        if record.report is None or not record.report.corrupt:
            self._report(message.error, corrupt=False)
        await self._job.restores.outcome(record.generation)
        target = await self._job.restores.target(record.generation)
        record.base_seq, record.ready = target.seq_plus_one, True
        self._peer.send(Ok(message.id))

    def _report(self, error: str, corrupt: bool) -> None:
        record = self.record
        record.report = pb.RestoreReport(
            generation=to_pb(record.generation), rank=record.rank, error=error[:4096], corrupt=corrupt
        )
        self._job.send(pb.FromNode(restore_report=record.report))
        self._job.restores.look(record.generation)

    @contextmanager
    def _reading(self, target: pb.RestoreTarget) -> Iterator[None]:
        """Report at once that stored bytes are wrong or missing: the trainer, once told, may die without a word."""
        try:
            yield
        except NewerFormatError:
            raise  # nothing is known to be wrong with it: an upgrade reads it
        except (CorruptError, NotFoundError) as error:
            number, step = target.seq_plus_one - 1, target.step
            what = "CHECKPOINT DAMAGED, as seen from here; if it is, all ranks restore the one before"
            _log.error(what, rank=self.record.rank, step=step, record=number, error=str(error))
            self._report(str(error), corrupt=True)
            raise


def _pair(record: RankRecord) -> tuple[int, int]:
    return record.generation.epoch, record.generation.n
