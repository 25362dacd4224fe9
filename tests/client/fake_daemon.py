"""A daemon for the client's tests: the real wire protocol on a real socket, snapshots in a dict, no store, no coordinator.

Ranks of a world ask, report and seal; whatever needs all of them waits here as it does in the real one.
"""

from __future__ import annotations

import mmap
import os
import queue
import socket
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ckptd_client.arena import ID_BYTES, SEALED, Arena, Schedule, Shape, make_arena
from ckptd_client.errors import DaemonUnavailableError
from ckptd_client.messages.coding import Message
from ckptd_client.messages.hello import PROTOCOL_VERSION, Failed, Hello, Ok, Refused, Welcome
from ckptd_client.messages.restoring import (
    Copy,
    Filled,
    RestoreAsk,
    RestoreCredit,
    RestoreEnd,
    RestoreFrames,
    RestoreInfo,
    RestoreRead,
    RestoreReport,
    RestoreRing,
    pack_copies,
)
from ckptd_client.messages.saving import (
    Aborted,
    Durable,
    Finished,
    Item,
    Missed,
    Register,
    Registered,
    Released,
    Resume,
    Resumed,
    Sealed,
)
from ckptd_client.wire import Connection

BUFFERS, BUFFER_BYTES = 2, 1000


@dataclass
class Checkpoint:
    """One committed snapshot."""

    step: int
    seq: int
    world_size: int
    objects: dict[str, bytes] = field(default_factory=dict)
    rank_objects: dict[int, dict[str, bytes]] = field(default_factory=dict)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    pieces: dict[str, list[tuple[tuple[int, ...], tuple[int, ...], bytes]]] = field(default_factory=dict)


class Trainer:
    """One connected rank."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.hello: Hello
        self.items: list[Item] = []
        self.arena: Arena | None = None
        self.layout = 0
        self.credits: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.sealed: dict[int, Sealed] = {}
        self.held: list[int] = []
        self.ask = self.report = self.report_error = None


class FakeDaemon:
    """Serves one job. ``schedule`` is (first, every)."""

    def __init__(self, path: Path, schedule: tuple[int, int] = (0, 0), version: int = PROTOCOL_VERSION) -> None:
        self.path, self.schedule, self.version = path, schedule, version
        self.checkpoints: list[Checkpoint] = []
        self.generation = (1, 0)
        self.trainers: list[Trainer] = []
        self.hellos: list[Hello] = []
        self.pidfds = 0
        self.finished: list[int] = []
        self.missed: list[Missed] = []
        self.stalls: dict[int, float] = {}  # seconds, by step
        self.reports: list[str] = []
        self.registrations = self.resumed = 0
        self.arenas: dict[str, tuple[Arena, list[Item]]] = {}
        self.keep_slots = self.keep_open = False
        self.lets_go = False  # of what it finds sealed, right after the answer to Resume
        self.itemsize: dict[str, int] = {}
        self._lock = threading.RLock()
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        """Die as a killed daemon does: every connection ends."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.path.unlink(missing_ok=True)
        for trainer in self.trainers:
            trainer.connection.close()

    def announce(self, first: int, every: int) -> None:
        """Publish a schedule in all arenas."""
        self.schedule = (first, every)
        for trainer in self.trainers:
            if trainer.arena is not None:
                trainer.arena.write_schedule(Schedule(self.generation, first, every))

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            trainer = Trainer(Connection(sock))
            threading.Thread(target=self._serve, args=(trainer,), daemon=True).start()

    def _serve(self, trainer: Trainer) -> None:
        try:
            hello, fds = trainer.connection.receive()
            self.pidfds += len(fds)
            for fd in fds:
                os.close(fd)
            assert isinstance(hello, Hello)
            self.hellos.append(hello)
            if self.version != hello.protocol:
                trainer.connection.send(Refused(self.version, "version", "too old"))
                return
            trainer.hello = hello
            with self._lock:
                self.trainers.append(trainer)
            trainer.connection.send(Welcome(self.version, "node", "incarnation"))
            while True:
                message, _ = trainer.connection.receive()
                with self._lock:
                    self._handle(trainer, message)
        except DaemonUnavailableError:
            pass
        finally:
            with self._lock:
                if trainer in self.trainers:
                    self.trainers.remove(trainer)
            trainer.connection.close()

    def _handle(self, trainer: Trainer, message: Message) -> None:
        if isinstance(message, Register):
            self._register(trainer, message)
        elif isinstance(message, Resume):
            self._resume(trainer, message)
        elif isinstance(message, RestoreAsk):
            trainer.ask = message
            self._all_asked(trainer)
        elif isinstance(message, RestoreRead):
            threading.Thread(target=self._deliver, args=(trainer, message, self.checkpoints[-1]), daemon=True).start()
        elif isinstance(message, RestoreCredit):
            for buffer in message.buffers:
                trainer.credits.put(buffer)
        elif isinstance(message, RestoreReport):
            trainer.report, trainer.report_error = message, message.error
            self._all_reported(trainer)
        elif isinstance(message, Sealed):
            trainer.sealed[message.step] = message
            self.stalls[message.step] = message.stall_seconds
            self._all_sealed(message.step)
        elif isinstance(message, Missed):
            self.missed.append(message)
            self._abort(message)
        elif isinstance(message, Finished):
            self.finished.append(trainer.hello.rank)
            trainer.connection.send(Ok(message.id))

    def _register(self, trainer: Trainer, message: Register) -> None:
        fd, name = tempfile.mkstemp(dir="/dev/shm")
        os.unlink(name)
        shape = Shape(message.slots, message.slot_bytes, sum(item.kind == "object" for item in message.items), 0)
        os.posix_fallocate(fd, 0, shape.total_bytes)
        trainer.arena = make_arena(fd, os.urandom(ID_BYTES), shape, b"")
        trainer.items, trainer.held, trainer.sealed = message.items, [], {}
        self.registrations += 1
        trainer.layout = self.registrations
        trainer.arena.write_schedule(Schedule(self.generation, *self.schedule))
        self.arenas[trainer.arena.id] = (trainer.arena, message.items)
        trainer.connection.send(Registered(message.id, trainer.layout, shape.total_bytes), (fd,))
        os.close(fd)

    def _resume(self, trainer: Trainer, message: Resume) -> None:
        if message.arena not in self.arenas:
            trainer.connection.send(Failed(message.id, "ProtocolError", "no such arena"))
            return
        trainer.arena, trainer.items = self.arenas[message.arena]
        trainer.held, trainer.sealed = [], {}
        self.resumed += 1
        trainer.layout = 1000 + self.resumed
        trainer.arena.write_schedule(Schedule(self.generation, *self.schedule))
        for index in range(trainer.arena.slots):
            slot = trainer.arena.look(index)
            if slot.state == SEALED:
                trainer.sealed[slot.step] = Sealed(trainer.layout, index, slot.step, 0.0)
        busy = [sealed.slot for sealed in trainer.sealed.values()]
        for step in list(trainer.sealed):
            self._all_sealed(step)
        free = [index for index in range(trainer.arena.slots) if index not in busy]
        trainer.connection.send(Resumed(message.id, trainer.layout, free))
        while self.lets_go and trainer.held:
            trainer.connection.send(Released(trainer.layout, trainer.held.pop()))

    def _world(self, trainer: Trainer) -> list[Trainer]:
        return [t for t in self.trainers if t.hello.world_key == trainer.hello.world_key]

    def _all_asked(self, trainer: Trainer) -> None:
        world = self._world(trainer)
        if len(world) < trainer.hello.world_size or any(t.ask is None for t in world):
            return
        self.generation = (1, self.generation[1] + 1)
        last = self.checkpoints[-1] if self.checkpoints else None
        for t in world:
            number, t.ask, t.report = t.ask.id, None, None
            if last is None:
                t.connection.send(RestoreInfo(number, self.generation, -1, 0, 0, {}, {}, [], ""))
                continue
            tensors = [(fqn, -1, dtype, shape) for fqn, (dtype, shape) in last.tensors.items()]
            ranked = last.rank_objects.get(t.hello.rank, {})
            t.connection.send(
                RestoreInfo(number, self.generation, last.seq, last.step, last.world_size, last.objects, ranked, tensors, "")
            )

    def _all_reported(self, trainer: Trainer) -> None:
        world = self._world(trainer)
        self.reports.append(trainer.report_error)
        if trainer.report_error:
            for t in world:
                if t.report is not None:
                    t.connection.send(Failed(t.report.id, "RestoreError", trainer.report_error))
        elif len(world) == trainer.hello.world_size and all(t.report is not None for t in world):
            for t in world:
                t.connection.send(Ok(t.report.id))

    def _abort(self, missed: Missed) -> None:
        for t in self.trainers:
            if (sealed := t.sealed.pop(missed.step, None)) is not None:
                t.connection.send(Released(sealed.layout, sealed.slot))
                t.connection.send(Aborted(missed.step, missed.reason))

    def _all_sealed(self, step: int) -> None:
        holders = [t for t in self.trainers if step in t.sealed]
        if not holders or len(holders) < holders[0].hello.world_size:
            return
        if self.keep_open:
            return
        checkpoint = Checkpoint(step, len(self.checkpoints) + 10, holders[0].hello.world_size)
        for t in holders:
            sealed = t.sealed.pop(step)
            self._absorb(checkpoint, t, sealed)
            t.held.append(sealed.slot)
        self.checkpoints.append(checkpoint)
        for t in holders:
            while len(t.held) > 1 and not self.keep_slots:
                t.connection.send(Released(t.layout, t.held.pop(0)))
            t.connection.send(Durable(step, checkpoint.seq))

    def _absorb(self, into: Checkpoint, trainer: Trainer, sealed: Sealed) -> None:
        place, lengths = trainer.arena.slot(sealed.slot), iter(trainer.arena.look(sealed.slot).lengths)
        for item in trainer.items:
            assert item.slot_offset % 64 == 0 and item.slot_offset + item.capacity <= trainer.arena.slot_bytes
            if item.kind == "object":
                body = bytes(place[item.slot_offset : item.slot_offset + next(lengths)])
                ranked = into.rank_objects.setdefault(trainer.hello.rank, {}) if item.scope == "rank" else into.objects
                assert item.fqn not in ranked
                ranked[item.fqn] = body
                continue
            assert into.tensors.setdefault(item.fqn, (item.dtype, item.shape)) == (item.dtype, item.shape)
            body = bytes(place[item.slot_offset : item.slot_offset + item.capacity])
            into.pieces.setdefault(item.fqn, []).append((item.offsets, item.sizes, body))
        assert next(lengths, None) is None

    def _whole(self, checkpoint: Checkpoint, fqn: str) -> np.ndarray:
        """The tensor as an array of opaque elements; every element must have come exactly once (I9)."""
        _, shape = checkpoint.tensors[fqn]
        pieces = checkpoint.pieces[fqn]
        count = sum(int(np.prod(sizes)) for _, sizes, _ in pieces)
        assert count == int(np.prod(shape)), f"{fqn} has {count} of {shape}"
        width = sum(len(body) for _, _, body in pieces) // count
        whole = np.zeros(shape, dtype=f"V{width}")
        seen = np.zeros(shape, dtype=int)
        for offsets, sizes, body in pieces:
            cut = tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))
            whole[cut] = np.frombuffer(body, f"V{width}").reshape(sizes)
            seen[cut] += 1
        assert (seen == 1).all(), fqn
        return whole

    def _deliver(self, trainer: Trainer, read: RestoreRead, checkpoint: Checkpoint) -> None:
        fd, name = tempfile.mkstemp(dir="/dev/shm")
        os.unlink(name)
        os.posix_fallocate(fd, 0, BUFFERS * BUFFER_BYTES)
        ring = mmap.mmap(fd, BUFFERS * BUFFER_BYTES)
        trainer.connection.send(RestoreRing(BUFFERS, BUFFER_BYTES), (fd,))
        os.close(fd)
        for buffer in range(BUFFERS):
            trainer.credits.put(buffer)
        for number, want in enumerate(read.wants):
            cut = tuple(slice(o, o + s) for o, s in zip(want.offsets, want.sizes, strict=True))
            body = self._whole(checkpoint, want.fqn)[cut].tobytes()
            for at in range(0, len(body), BUFFER_BYTES):
                buffer = trainer.credits.get(timeout=20)
                piece = body[at : at + BUFFER_BYTES]
                ring[buffer * BUFFER_BYTES : buffer * BUFFER_BYTES + len(piece)] = piece
                filled = Filled(buffer, pack_copies([Copy(0, number, at, len(piece))]))
                trainer.connection.send(RestoreFrames([filled]))
        trainer.connection.send(RestoreEnd(read.id))
