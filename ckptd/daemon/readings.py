"""Reading committed checkpoints without being part of the job's world: another job's, an older step's, by several at once.

What is open is pinned (PROTOCOLS 4.7): one pin for all readers of this daemon, in the daemon's own name. What an earlier daemon
of this node had pinned when it was killed is unpinned when somebody reads the same job again.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import structlog

from ckptd.commit.fold import restore_candidate
from ckptd.commit.log import CommitLog, RecordRefusedError
from ckptd.commit.office import pin, unpin
from ckptd.commit.state import Entry, State
from ckptd.daemon.node import Node
from ckptd.daemon.peer import Peer
from ckptd.daemon.together import Share, Together
from ckptd.errors import CkptdError, ProtocolError, RestoreError
from ckptd.model.dtypes import OBJECT
from ckptd.model.layout import GLOBAL, Tensor
from ckptd.restore.checkpoint import Checkpoint, check_entry, open_checkpoint
from ckptd_client.messages.coding import Message
from ckptd_client.messages.hello import Hello
from ckptd_client.messages.restoring import ReadInfo, ReadList, ReadListed, ReadOpen, RestoreCredit, RestoreRead, Stored

_log = structlog.get_logger(__name__)
_LIST_NUMBERS: Final = 1 << 19
"""Of regions and shapes in one answer: some MiB."""
_TRIES: Final = 3
_TURN_SECONDS: Final = 5.0


@dataclass(slots=True, eq=False)
class _Opened:
    """A pinned checkpoint and how many readers it has."""

    entry: Entry
    checkpoint: Checkpoint
    readers: int = 0


class Readings:
    """All that is read on this node, of whatever job. Bounded by the server's connections, each with one open checkpoint."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._holder = holder_of(node.name, node.incarnation)
        self._opened: dict[tuple[str, int], _Opened] = {}
        self._locks: dict[str, asyncio.Lock] = {}  # one for each job that is being read: its pins change one by one

    async def serve(self, peer: Peer, hello: Hello) -> None:
        """Serve one reader until it is gone."""
        reader = _Reader(self, self._node, peer, hello)
        try:
            await reader.run()
        finally:
            peer.forget()

    async def open(self, job: str, step: int, seq: int) -> _Opened:
        """Pin and open a checkpoint. Raises RestoreError when there is none, and what the store and the log raise."""
        async with self._locks.setdefault(job, asyncio.Lock()):
            log = CommitLog(self._node.store, job)
            for _ in range(_TRIES):
                state = await log.load()
                await self._unpin_of_the_dead(log, state)
                entry = choose(state, job, step, seq)
                opened = self._opened.get((job, entry.n))
                if opened is None:
                    try:
                        await pin(log, entry.n, self._holder)
                        checkpoint = await open_checkpoint(self._node.read_store, job, entry.manifest)
                        check_entry(checkpoint.manifest, entry)
                    except RecordRefusedError:
                        continue  # it was retired meanwhile
                    except BaseException:
                        await self._unpin(log, entry.n)
                        raise
                    opened = self._opened[(job, entry.n)] = _Opened(entry, checkpoint)
                opened.readers += 1
                return opened
        raise RestoreError(f"checkpoints are retired faster than they can be pinned job={job} step={step}")

    async def close(self, job: str, opened: _Opened) -> None:
        """One reader less; the last one ends the pin. Never raises what the store does: a pin that stays does no harm."""
        lock = self._locks.setdefault(job, asyncio.Lock())
        async with lock:
            opened.readers -= 1
            if opened.readers:
                return
            del self._opened[(job, opened.entry.n)]
            await self._unpin(CommitLog(self._node.store, job), opened.entry.n)

    async def _unpin(self, log: CommitLog, seq: int) -> None:
        try:
            await unpin(log, seq, self._holder)
        except CkptdError as error:
            _log.warning("a reader's pin stays for now", record=seq, error=str(error))

    async def _unpin_of_the_dead(self, log: CommitLog, state: State) -> None:
        for seq, who in stale_pins(state, self._node.name, self._node.incarnation):
            _log.info("unpinned", seq=seq, who=who)
            await unpin(log, seq, who)


def holder_of(node: str, incarnation: str) -> str:
    """In whose name a daemon pins what is read through it."""
    return f"read:{re.sub(r'[^A-Za-z0-9._-]', '-', node)[:80]}:{incarnation}"[:128]


def stale_pins(state: State, node: str, incarnation: str) -> list[tuple[int, str]]:
    """(record, holder) of the pins that earlier daemons of this node have left."""
    mine = holder_of(node, incarnation)
    stem = holder_of(node, "")
    return [(seq, who) for seq, names in state.pins.items() for who in sorted(names) if who.startswith(stem) and who != mine]


def choose(state: State, job: str, step: int, seq: int) -> Entry:
    """Which commit is meant, as `ReadOpen` says. Raises RestoreError when there is none."""
    live = [entry for entry in state.commits.values() if entry.live]
    found: Entry | None
    if seq >= 0:
        found = next((entry for entry in live if entry.n == seq), None)
    elif step >= 0:
        found = next((entry for entry in reversed(live) if entry.attempt.snapshot.step == step), None)
    else:
        found = restore_candidate(state)
    if found is None:
        meant = f"record {seq}" if seq >= 0 else f"step {step}" if step >= 0 else "checkpoint"
        steps = sorted({entry.attempt.snapshot.step for entry in live})
        raise RestoreError(f"job {job!r} has no {meant} to read; see `ckptd ls` has={steps[-20:]}")
    return found


class _Reader:
    """One connection, with at most one checkpoint open, and one delivery under way."""

    def __init__(self, readings: Readings, node: Node, peer: Peer, hello: Hello) -> None:
        self._readings = readings
        self._node = node
        self._peer = peer
        self._job = hello.job
        self._rank = hello.rank
        self._opened: _Opened | None = None
        self._share: Share | None = None
        self._work: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Converse until the connection ends."""
        try:
            while (message := await self._peer.next()) is not None:
                if isinstance(message, RestoreCredit):
                    if self._share is not None:
                        self._share.credit(message.buffers)
                    continue
                if self._work is not None:
                    await asyncio.wait([self._work], timeout=_TURN_SECONDS)  # it may have been answered just now
                    if not self._work.done():
                        raise ProtocolError("a reader may ask for one thing at a time")
                self._work = self._node.watch.spawn(self._answer(message))
        except ProtocolError as error:
            _log.error("reader_protocol", job=self._job, error=str(error))
        finally:
            self._peer.close()
            if self._work is not None:
                self._work.cancel()
                await asyncio.wait([self._work])
            await self._let_go()

    async def _let_go(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            await self._readings.close(self._job, opened)

    async def _answer(self, message: Message) -> None:
        if not isinstance(message, ReadOpen | ReadList | RestoreRead):
            _log.error("reader_protocol", job=self._job, error=f"a reader may not send {type(message).__name__}")
            self._peer.close()
            return
        try:
            if isinstance(message, ReadOpen):
                await self._open(message)
            elif isinstance(message, ReadList):
                self._list(message)
            else:
                await self._read(message)
        except CkptdError as error:
            self._peer.fail(message.id, error)

    async def _read(self, message: RestoreRead) -> None:
        share = self._share = Share(self._rank, message.wants, self._peer, message.id)
        try:
            await Together(self._node, self._checkpoint(), set, lambda _: None).deliver(share)
        finally:
            self._share = None

    def _checkpoint(self) -> Checkpoint:
        if self._opened is None:
            raise ProtocolError("nothing is open; send ReadOpen first")
        return self._opened.checkpoint

    async def _open(self, message: ReadOpen) -> None:
        await self._let_go()
        self._opened = opened = await self._readings.open(self._job, message.step, message.seq)
        checkpoint = opened.checkpoint
        objects, own = await checkpoint.read_objects(self._node.read_store, (GLOBAL, self._rank))
        info = ReadInfo(
            message.id,
            opened.entry.n,
            opened.entry.attempt.snapshot.step,
            checkpoint.manifest.world_size,
            objects,
            own,
            sum(1 for _ in _tensors(checkpoint)),
        )
        self._peer.send(info)

    def _list(self, message: ReadList) -> None:
        found: list[Stored] = []
        numbers = 0
        for at, tensor in enumerate(_tensors(self._checkpoint())):
            if at < message.first:
                continue
            numbers += len(tensor.shape) * (1 + 2 * len(tensor.regions)) + 1
            if found and numbers > _LIST_NUMBERS:
                break
            regions = [(stored.region.offsets, stored.region.sizes) for stored in tensor.regions]
            found.append(Stored(tensor.fqn, tensor.rank, tensor.dtype, tensor.shape, regions))
        self._peer.send(ReadListed(message.id, found))


def _tensors(checkpoint: Checkpoint) -> Iterator[Tensor]:
    return (tensor for tensor in checkpoint.layout.tensors if tensor.dtype != OBJECT)
