"""One rank of the stand-in: ckptd's own client (session, member, stager, follower, recover), and made-up state."""

from __future__ import annotations

import mmap
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from chaos.content import Cells, Filler, Piece, layout, tensors
from ckptd_client.arena import Arena
from ckptd_client.capture import Plan
from ckptd_client.errors import CkptdError, ResourceError, RestoreError, SaveError
from ckptd_client.member import Member
from ckptd_client.messages.coding import Message
from ckptd_client.messages.restoring import RestoreCredit, RestoreEnd, RestoreFrames, RestoreRead, RestoreRing, Want
from ckptd_client.messages.saving import Durable, Finished, Item, Vacate
from ckptd_client.place import Place
from ckptd_client.recover import PROGRESS, recover
from ckptd_client.restore import Targets
from ckptd_client.schedule import Follower
from ckptd_client.session import CLOSE_SECONDS, CONNECT_SECONDS, FRAME_SECONDS, REPORT_SECONDS, Session
from ckptd_client.staging import Stager
from ckptd_client.tree import Collected, Collector, Part
from ckptd_client.typed import decode

OWN = "standin.rank"
MEET_SECONDS = 60.0
_WORD = struct.Struct("<qq")


class WrongBytesError(RestoreError):
    """A restore said that all is well, and gave other bytes than those of its step."""


class MadeUp(Plan):
    """A layout plan whose tensors are pieces of made-up content."""

    def __init__(self, fillers: list[Filler], found: Collected) -> None:
        self.structure = found.structure
        self._offset = 0
        self.objects = [
            self._place(Item(fqn, "object", scope, "object", (), (), (), 0, 4096))
            for fqn, scope in found.structure.objects
            if fqn in found.bodies
        ]
        self._fillers = [(filler, self._place(_item(filler.piece))) for filler in fillers]
        self.items = self.objects + [item for _, item in self._fillers]
        self.slot_bytes = max(mmap.PAGESIZE, -(-self._offset // mmap.PAGESIZE) * mmap.PAGESIZE)

    def drop_views(self) -> None:
        """There are none."""

    def copy_into(
        self, arena: Arena, slot: int, found: Collected, later: Sequence[int] = (), outgoing: object = None
    ) -> list[int]:
        """Write the state after the step that ``found`` names."""
        step = decode(found.bodies[OWN])["step"]
        for filler, item in self._fillers:
            start = arena.slot_start(slot) + item.slot_offset
            filler.fill(step, np.frombuffer(arena.map, item.dtype, item.sizes[0] * item.sizes[1], start))
        return self.copy_objects(arena, slot, found)


def _item(piece: Piece) -> Item:
    tensor = piece.tensor
    return Item(tensor.name, "tensor", "global", tensor.dtype, tensor.shape, piece.offsets, piece.sizes, 0, piece.nbytes)


class Rank:
    """What `ckptd_client.Checkpointer` is to a torch trainer, for made-up state."""

    def __init__(self, place: Place, path: Path, seed: int, total_bytes: int, say: Callable[[str], None]) -> None:
        self._place, self._seed, self._say = place, seed, say
        whole = tensors(seed, total_bytes)
        self._fillers = [Filler(seed, piece) for piece in layout(whole, place.world_key, place.world_size, place.rank)]
        self._everybodys = [Filler(seed, Piece(tensor, (0, 0), tensor.shape)) for tensor in whole[:2]]
        self.member = Member(place)
        self._stager = Stager(self._plan)
        self._session = Session(path, self.member.hello, self._event, self._stager.on_lost)
        self.member.session = self._stager.session = self._session
        self._follower = Follower(self.member, self._stager)
        self._collector = Collector(place.rank)

    def _plan(self, found: Collected) -> MadeUp:
        return MadeUp(self._fillers, found)

    def _event(self, message: Message) -> None:
        if isinstance(message, Durable):
            epoch, n = self.member.generation
            self._say(f"durable rank={self._place.rank} step={message.step} seq={message.seq} generation={epoch}-{n}")
        self._stager.on_event(message)

    def _collected(self) -> Collected:
        step = self._follower.completed
        progress = {"step": step, "seed": self._seed, "position": step, "stream": None}
        own = {"rank": self._place.rank, "step": step}
        return self._collector.collect([Part(PROGRESS, progress), Part(OWN, own, scope="rank")])

    def restore(self) -> int:
        """Restore and check every byte; the number of completed steps. Raises WrongBytesError and what the client raises."""
        self._session.connect(CONNECT_SECONDS)
        found = recover(self._session, self.member, self._place.rank, self._place.world_size, self._want, raw=False)
        if found is None:
            return 0
        step = found[0].step
        self._follower.completed = self._follower.answered = step
        return step

    def _want(self, targets: Targets) -> None:
        targets.finish.append(lambda: self._receive(targets))

    def _receive(self, targets: Targets) -> None:
        info = targets.info
        own = info.rank_objects.get(OWN)  # none, if the world was smaller when it was saved
        if own is not None and decode(own) != {"rank": self._place.rank, "step": info.step}:
            raise WrongBytesError(f"rank {self._place.rank} got {decode(own)} as its own part of step {info.step}")
        fillers = self._everybodys + self._fillers
        memory = [np.zeros(filler.piece.nbytes, np.uint8) for filler in fillers]
        _receive(self._session, [_want(filler.piece) for filler in fillers], memory)
        for filler, got in zip(fillers, memory, strict=True):
            cells: Cells = got.view(filler.piece.tensor.dtype)
            if problem := filler.wrong(info.step, cells):
                raise WrongBytesError(problem)

    def step(self, n: int) -> None:
        """Step ``n`` is done: as `Checkpointer.step`."""
        self._stager.enter()
        self._follower.completed = n
        try:
            if self._alive():
                self._scheduled(n)
        except ResourceError:
            if not self._stager.ever_registered:
                raise
            self._session.warn("the daemon has no room for this state any more; nothing is saved")
        except CkptdError as error:
            self._session.warn(f"no snapshot of step {n}: {error}")
            if self._follower.due_step == n:
                self._follower.miss(n, str(error))

    def _alive(self) -> bool:
        if self._session.poll() and not self.member.joined:
            self.member.forget()
        if not self._session.connected:
            return False
        if not self.member.joined and self.member.join():
            self._follower.answered = self._follower.completed - 1
        return self.member.joined

    def _scheduled(self, n: int) -> None:
        if not self._stager.resume(wait=False):
            return
        if self._stager.arena is None and not self._stager.ready(self._collected(), wait=False):
            return
        if not self._follower.due(n) or n in self._stager.handles:
            return
        found = self._collected()
        self._stager.ready(found, wait=True)
        if self._stager.stage(n, self.member.generation, found, wait=False, hide=False) is None:
            self._follower.miss(n, "no free slot")

    def close(self) -> None:
        """Wait until what is staged is durable or given up, and report that this rank has finished."""
        deadline = time.monotonic() + CLOSE_SECONDS
        for handle in list(self._stager.handles.values()):
            try:
                handle.wait(max(0.0, deadline - time.monotonic()))
            except SaveError as error:
                self._say(f"given up rank={self._place.rank}: {error}")
        if self.member.joined:
            self._session.request(Finished(self._session.next_id()), REPORT_SECONDS)
        self._session.send(Vacate())
        self._session.close()
        self._stager.on_lost()


def _want(piece: Piece) -> Want:
    return Want(piece.tensor.name, -1, piece.tensor.dtype, piece.tensor.shape, piece.offsets, piece.sizes)


def _receive(session: Session, wants: list[Want], memory: list[np.ndarray[tuple[int], np.dtype[np.uint8]]]) -> None:
    """As `ckptd_client.receive.receive`, into numpy's memory."""
    stream = session.begin(RestoreRead(session.next_id(), wants), stream=True)
    left = [target.size for target in memory]
    ring, buffer_bytes = np.zeros(0, np.uint8), 0
    while True:
        message, fds = stream.take(FRAME_SECONDS)
        if isinstance(message, RestoreRing):
            ring = np.frombuffer(mmap.mmap(fds[0], message.buffers * message.buffer_bytes), np.uint8)
            buffer_bytes = message.buffer_bytes
        for fd in fds:
            os.close(fd)
        if isinstance(message, RestoreEnd):
            break
        if isinstance(message, RestoreFrames):
            for frame in message.filled:
                for copy in frame.unpacked():
                    start = frame.buffer * buffer_bytes + copy.frame_offset
                    memory[copy.want][copy.want_offset : copy.want_offset + copy.nbytes] = ring[start : start + copy.nbytes]
                    left[copy.want] -= copy.nbytes
            session.send(RestoreCredit([frame.buffer for frame in message.filled]))
    if any(left):
        raise WrongBytesError(f"the daemon left bytes out: {left}")


class Together:
    """What the collectives of a training are to its ranks: none is a step ahead, and when one dies all fail."""

    def __init__(self, place: Place) -> None:
        self._rank, self._peers = place.rank, []
        address, _, port = place.world_key.rpartition(":")
        if place.world_size == 1:
            return
        if place.rank == 0:
            with socket.create_server((address, int(port)), backlog=place.world_size) as server:
                server.settimeout(MEET_SECONDS)
                self._peers = [server.accept()[0] for _ in range(place.world_size - 1)]
        else:
            self._peers = [_dial(address, int(port))]
        for peer in self._peers:
            peer.settimeout(None)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def step(self, n: int, end: int) -> int:
        """All ranks have come to step ``n``; returns the last step, as rank 0 has read it."""
        if self._rank != 0:
            self._peers[0].sendall(_WORD.pack(n, 0))
            return self._hear(self._peers[0], n)
        for peer in self._peers:
            self._hear(peer, n)
        for peer in self._peers:
            peer.sendall(_WORD.pack(n, end))
        return end

    def _hear(self, peer: socket.socket, n: int) -> int:
        data = peer.recv(_WORD.size, socket.MSG_WAITALL)
        if len(data) != _WORD.size:
            raise ConnectionError("another rank is gone")
        theirs, end = _WORD.unpack(data)
        if theirs != n:
            raise WrongBytesError(f"ranks of one world are at different steps: {theirs} and {n}")
        return int(end)


def _dial(address: str, port: int) -> socket.socket:
    give_up_at = time.monotonic() + MEET_SECONDS
    while True:
        try:
            return socket.create_connection((address, port), MEET_SECONDS)
        except ConnectionRefusedError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.01)


def say(text: str) -> None:
    """One line in one write: several ranks share a pipe."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
